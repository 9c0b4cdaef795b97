//! Runs that were broken off and go on: with everything that can be learned from, and only as
//! they were begun. And what a quantized source becomes.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use headshare_gguf::input::ModelFile;
use headshare_testmodels::{ModelSpec, type_named};

use super::{arguments, of, refused, runs, train};
use crate::repair::steps::{expand, words};
use crate::support::{PROGRAM, json, preset, written};

/// Kills a run as soon as it has a state, and lets it go on.
fn killed_and_resumed(method: &str, source: &Path, text: &Path, out: &Path, more: &[&str]) {
    let state = out.with_extension("state");
    let kept = [
        "--checkpoint-every",
        "1",
        "--checkpoint",
        state.to_str().unwrap(),
    ];
    let all = [more, &kept].concat();
    let mut child = Command::new(PROGRAM)
        .args(arguments(method, source, text, out, &all))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    while !state.exists() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    let status = child.wait().unwrap();
    assert!(
        !status.success() && state.exists() && !out.exists(),
        "{method}: {status}"
    );
    json(&mut train(
        method,
        source,
        text,
        out,
        &[&all[..], &["--resume"]].concat(),
    ));
}

#[test]
fn what_was_learned_from_others_goes_on_in_the_same_way() {
    let folder = tempfile::tempdir().unwrap();
    let (source, text) = of(folder.path());
    let at = |name: &str| folder.path().join(name);
    let steps = [
        "--ratio",
        "0.5",
        "--json",
        "--steps",
        "40",
        "--eval-every",
        "10",
    ];
    let hidden = ["--distill", "0.5", "--distill-hidden", "0.5"];
    let silent = ["--distill", "1", "--language", "0", "--train", "lora:2"];
    for (method, learns) in [("postshare", &hidden[..]), ("tied", &silent)] {
        let more = [&steps[..], learns].concat();
        let (whole, resumed) = (at("whole"), at("resumed"));
        json(&mut train(method, &source, &text, &whole, &more));
        killed_and_resumed(method, &source, &text, &resumed, &more);
        assert!(
            std::fs::read(&whole).unwrap() == std::fs::read(&resumed).unwrap(),
            "{method}"
        );
        for file in [whole, resumed, at("resumed.state")] {
            std::fs::remove_file(file).unwrap();
        }
    }
}

/// Types and windows decide the codes that the trained numbers get in the end.
#[test]
fn a_run_goes_on_only_to_the_file_that_it_was_begun_for() {
    let folder = tempfile::tempdir().unwrap();
    let (source, text) = of(folder.path());
    let at = |name: &str| folder.path().join(name);
    let (state, stats) = (at("state"), at("stats"));
    let run = [
        "--ratio",
        "0.5",
        "--json",
        "--checkpoint",
        state.to_str().unwrap(),
    ];
    let typed = [&run[..], &["--quantize", "q8_0", "--pure"]].concat();
    let repaired = [
        "--repair",
        text.to_str().unwrap(),
        "--save-stats",
        stats.to_str().unwrap(),
    ];
    let first = [&typed[..], &repaired].concat();
    json(&mut train("tied", &source, &text, &at("first"), &first));
    let other_types = [
        &run[..],
        &repaired,
        &["--quantize", "q4_0", "--pure", "--resume"],
    ]
    .concat();
    refused(
        &source,
        &text,
        &other_types,
        3,
        "--quantize, --pure and --tensor-type as before",
    );
    let no_types = [&run[..], &repaired, &["--resume"]].concat();
    refused(
        &source,
        &text,
        &no_types,
        3,
        "--quantize, --pure and --tensor-type as before",
    );
    let other_windows = [&first[..], &["--windows", "3", "--resume"]].concat();
    refused(&source, &text, &other_windows, 3, "--windows as before");
    // What was measured before is there already.
    let again = [&first[..], &["--resume"]].concat();
    json(&mut train("tied", &source, &text, &at("again"), &again));
    let bytes = |name: &str| std::fs::read(at(name)).unwrap();
    assert!(bytes("first") == bytes("again"));
}

#[test]
fn a_quantized_source_keeps_its_types_whatever_is_trained() {
    let folder = tempfile::tempdir().unwrap();
    let text = words(folder.path());
    let source = folder.path().join("q8_0.gguf");
    let spec = ModelSpec {
        weight_type: type_named("q8_0").unwrap(),
        ..preset("tiny-gqa")
    };
    spec.write(&source).unwrap();
    let types = |file: &Path| {
        let file = ModelFile::open(file).unwrap();
        let of = |info: &headshare_format::TensorInfo| (info.name.clone(), info.ggml_type);
        let mut all: Vec<_> = file.gguf.tensors().iter().map(of).collect();
        all.sort();
        all
    };
    for what in ["all", "attention", "lora:2", "scales"] {
        let out = folder.path().join(what.replace(':', "-"));
        let more = ["--ratio", "0.5", "--json", "--train", what];
        json(&mut train("tied", &source, &text, &out, &more));
        let plain = folder.path().join("of-types.gguf");
        expand(&out, &plain);
        assert_eq!(types(&plain), types(&source), "{what}");
        std::fs::remove_file(plain).unwrap();
        runs(&out, folder.path());
    }
}

#[test]
fn what_nothing_could_be_trained_of_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (source, text) = of(folder.path());
    let ratio = ["--ratio", "0.5", "--train"];
    let with = |train| [&ratio[..], &[train]].concat();
    let says = "no matrix has a rank of";
    refused(&source, &text, &with("lora:65"), 2, says);
    refused(&source, &text, &with("lora:18446744073709551615"), 2, says);
    let gpt2 = written(folder.path(), "tiny-gpt2");
    let long = ["--ratio", "0.5", "--window", "300"];
    refused(&gpt2, &text, &long, 2, "make windows smaller: --window 256");
    // Heads of plain numbers could not be pulled together; norms can be trained.
    let mixed = folder.path().join("mixed.gguf");
    let spec = ModelSpec {
        types: vec![("ffn_down.weight".to_owned(), type_named("q8_0").unwrap())],
        ..preset("tiny-gqa")
    };
    spec.write(&mixed).unwrap();
    let no = folder.path().join("no");
    let out = train("postshare", &mixed, &text, &no, &with("scales"))
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(2), "{stderr}");
    assert!(
        stderr.contains("no q, k or v is quantized with scales"),
        "{stderr}"
    );
    assert!(!no.exists());
    let out = train(
        "tied",
        &source,
        &text,
        &folder.path().join("norms"),
        &with("scales"),
    );
    let out = { out }.output().unwrap();
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{stderr}");
    assert!(
        stderr.contains("norms and biases alone are trained"),
        "{stderr}"
    );
}
