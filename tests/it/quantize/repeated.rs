//! What is asked for is what is written: the same for the same, another for another.

use headshare_testmodels::{ModelSpec, type_named};

use super::{divergence, quantizing, quantizing_with};
use crate::repair::steps::words;
use crate::support::{json, preset, read, written};

/// Also of mixtures, of heads that share, and of an importance matrix.
#[test]
fn twice_the_same_command_gives_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("wide.gguf");
    let spec = ModelSpec {
        n_embd: 256,
        n_ff: 256,
        n_layer: 2,
        weight_type: type_named("f16").unwrap(),
        ..preset("tiny-gqa")
    };
    spec.write(&source).unwrap();
    let text = words(folder.path());
    let text = text.to_str().unwrap();
    let shared = ["--ratio", "0.3", "--choose", "match", "--repair", text];
    for (to, more) in [("q4_K_M", &[][..]), ("q2_K", &[]), ("iq4_xs", &shared)] {
        let made = |name: &str| {
            let (out, imatrix) = (folder.path().join(name), folder.path().join("imatrix"));
            let few = ["--windows", "2", "--window", "64", "--json", "--force"];
            let imatrix_to = ["--save-imatrix", imatrix.to_str().unwrap()];
            let all = [&few[..], &imatrix_to, more].concat();
            json(&mut quantizing_with(&source, to, &out, &all));
            (read(&out), read(&imatrix))
        };
        assert!(made("a") == made("b"), "{to}");
    }
}

/// How far weights go towards what makes up for losses, and how they are damped, is felt.
#[test]
fn strength_and_damping_change_what_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let source = written(folder.path(), "tiny-gqa");
    let made = |more: &[&str]| {
        let out = folder.path().join("out");
        let all = [&["--pure", "--json", "--force"], more].concat();
        let done = json(&mut quantizing(&source, "q4_0", &out, &all));
        let by = done["quantized"]["by"].to_string();
        (read(&out), by, divergence(&out, &source))
    };
    let (plain, ..) = made(&[]);
    let (none, said, of_none) = made(&["--strength", "0"]);
    let (all, _, of_all) = made(&["--strength", "1"]);
    let (damped, ..) = made(&["--damping", "0.5"]);
    assert!(none != all && none != plain && all != plain && damped != plain);
    assert!(said.contains("\"strength\":0"), "{said}");
    // On the text itself, making up for losses pays.
    assert!(of_all < of_none, "{of_all} against {of_none}");
}
