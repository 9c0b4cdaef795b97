//! What a fit can do with models of each kind, and what it says that it cannot.

use headshare_gguf::input::ModelFile;
use headshare_testmodels::{ModelSpec, type_named};

use super::fit::{fitting, refused};
use super::tokens_both_ways;
use crate::repair::steps::{DECODERS, verify};
use crate::support::{Ran, json, preset, read, small};

#[test]
fn every_kind_of_model_is_made_to_fit_and_runs() {
    let folder = tempfile::tempdir().unwrap();
    // Of the last two the heads are not known.
    for name in DECODERS.into_iter().chain(["tiny-falcon", "tiny-mamba"]) {
        let source = folder.path().join(format!("{name}.gguf"));
        small(name).write(&source).unwrap();
        let size = read(&source).len() as u64;
        let (bytes, out) = (size * 45 / 100, folder.path().join(format!("{name}.fit")));
        let done = json(&mut fitting(&source, bytes, &out, &["--json"]));
        let len = read(&out).len() as u64;
        assert!(
            len <= bytes && len + size / 10 > bytes,
            "{name}: {len} of {bytes}"
        );
        assert!(done["fit"]["predicted"].as_f64().unwrap() > 0.0, "{name}");
        tokens_both_ways(&out);
        verify(&out, &source);
    }
}

/// Blocks of the matrices that lose columns are made anew at the type that they have.
#[test]
fn channels_and_units_go_where_no_type_is_smaller() {
    let folder = tempfile::tempdir().unwrap();
    let q4_0 = type_named("q4_0").unwrap();
    let source = folder.path().join("q4_0.gguf");
    let spec = ModelSpec {
        weight_type: q4_0,
        ..preset("tiny-gqa")
    };
    spec.write(&source).unwrap();
    let size = read(&source).len() as u64;
    let (bytes, out) = (size * 85 / 100, folder.path().join("out"));
    let done = json(&mut fitting(
        &source,
        bytes,
        &out,
        &["--types", "q4_0", "--json"],
    ));
    let gone = ["units", "channels"].map(|what| done["fit"][what].as_u64().unwrap());
    assert!(gone[0] > 0 && gone[1] > 0, "{}", done["fit"]);
    assert!(read(&out).len() as u64 <= bytes);
    let file = ModelFile::open(&out).unwrap();
    let matrices = file
        .gguf
        .tensors()
        .iter()
        .filter(|info| info.dims.len() > 1);
    assert!(matrices.clone().all(|info| info.ggml_type == q4_0));
    verify(&out, &source);
    tokens_both_ways(&out);
}

/// Super-blocks of 256 columns span two units.
#[test]
fn units_go_together_where_a_block_spans_several() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("q4_K.gguf");
    let spec = ModelSpec {
        n_embd: 512,
        n_ff: 256,
        n_head_kv: 4.into(),
        weight_type: type_named("q4_K").unwrap(),
        ..small("tiny-gqa")
    };
    spec.write(&source).unwrap();
    let size = read(&source).len() as u64;
    let (bytes, out) = (size * 97 / 100, folder.path().join("out"));
    let more = ["--types", "q4_K", "--json", "--dry-run"];
    let done = json(&mut fitting(&source, bytes, &out, &more));
    let last = done["fit"]["frontier"]
        .as_array()
        .unwrap()
        .last()
        .unwrap()
        .clone();
    assert_eq!(last["units"], 2, "{last}");
    let bytes = last["bytes"].as_u64().unwrap();
    let done = json(&mut fitting(&source, bytes, &out, &more[..3]));
    assert_eq!(done["fit"]["units"], 2, "{}", done["fit"]);
    verify(&out, &source);
    tokens_both_ways(&out);
}

#[test]
fn sizes_say_what_changes_and_outputs_are_models_or_pictures() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("model.gguf");
    small("tiny-gqa").write(&source).unwrap();
    let bytes = read(&source).len() as u64 / 5;
    let at = |name: &str| folder.path().join(name);
    let more = ["--types", "q8_0", "--dry-run"];
    let said = Ran::of(
        &mut fitting(&source, bytes, &at("no.gguf"), &more),
        "convert".to_owned(),
    );
    let said = said.ok().stdout;
    let (_, sizes) = said.split_once("what other sizes would cost:\n").unwrap();
    let is_size = |line: &&str| line.contains(" bytes ");
    let lines: Vec<&str> = sizes.lines().take_while(is_size).collect();
    assert!(lines.len() > 4, "{said}");
    assert!(lines[0].contains("16 f32"), "{said}");
    let last = lines[lines.len() - 1];
    assert!(
        last.contains("16 q8_0") && last.contains("channels go"),
        "{said}"
    );
    let done = json(&mut fitting(
        &source,
        bytes,
        &at("no.gguf"),
        &[&more[..], &["--json"]].concat(),
    ));
    let sizes = done["fit"]["frontier"].as_array().unwrap();
    // Each of them is the size of the file that comes out.
    let of = sizes[sizes.len() / 2]["bytes"].as_u64().unwrap();
    let made = json(&mut fitting(
        &source,
        of,
        &at("made"),
        &["--types", "q8_0", "--json"],
    ));
    assert!(made["output"]["bytes"].as_u64().unwrap() <= of);
    // A picture is drawn by a dry run only, and a dry run writes no other files.
    let mut command = fitting(&source, bytes, &at("out.svg"), &more[..2]);
    Ran::of(&mut command, "convert".to_owned()).refused(2, &["out.svg", "with --dry-run only"]);
    let mut command = fitting(&source, bytes, &at("out.pdf"), &more);
    Ran::of(&mut command, "convert".to_owned()).refused(2, &["out.pdf", "use .svg or .png"]);
    assert!(!at("out.svg").exists() && !at("out.pdf").exists());
}

#[test]
fn a_context_beyond_the_positions_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("gpt2.gguf");
    small("tiny-gpt2").write(&source).unwrap();
    let says = ["gpt2.gguf", "positions for 256 tokens", "--ctx 256"];
    let more = ["--ram", "64M", "--ctx", "4096"];
    refused(&source, read(&source).len() as u64, &more, 2, &says);
}
