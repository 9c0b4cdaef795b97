//! What `train` must not lose, and what it says before it begins.

use std::path::Path;

use headshare_gguf::input::ModelFile;
use headshare_testmodels::ModelSpec;
use serde_json::Value;

use super::{is_made_of, of, refused, train};
use crate::repair::steps::words;
use crate::support::{json, preset, written};

/// The numbers of a tensor that is stored as F32.
fn numbers(file: &Path, tensor: &str) -> Vec<f32> {
    let file = ModelFile::open(file).unwrap();
    let info = file.gguf.tensor(tensor).unwrap();
    assert_eq!(info.ggml_type.name(), "f32", "{tensor}");
    let bytes = file.bytes(file.gguf.data_range(info));
    let numbers = bytes.as_chunks::<4>().0.iter();
    numbers.map(|raw| f32::from_le_bytes(*raw)).collect()
}

/// Also what gets no other type holds what was trained.
#[test]
fn what_keeps_its_type_is_what_was_trained() {
    let folder = tempfile::tempdir().unwrap();
    let text = words(folder.path());
    let at = |name: &str| folder.path().join(name);
    let some_f32 = [
        "--quantize",
        "q8_0",
        "--pure",
        "--tensor-type",
        "attn_v=f32",
    ];
    let cases = [("f32", &["--quantize", "f32"][..]), ("some", &some_f32)];
    for name in ["tiny-gqa", "tiny-gpt2"] {
        let source = written(folder.path(), name);
        let trained = |case: &str, more: &[&str]| {
            let out = at(&format!("{name}-{case}"));
            let more = [&["--ratio", "0", "--json", "--rate", "1e-2"], more].concat();
            json(&mut train("tied", &source, &text, &out, &more));
            out
        };
        let plain = trained("plain", &[]);
        let fused = name == "tiny-gpt2";
        let kept = match fused {
            true => "position_embd.weight",
            false => "blk.1.attn_v.weight",
        };
        assert_ne!(numbers(&plain, kept), numbers(&source, kept));
        for (case, more) in cases {
            let out = trained(case, more);
            assert_eq!(numbers(&out, kept), numbers(&plain, kept), "{name} {case}");
            is_made_of(&out, &source);
        }
    }
}

#[test]
fn what_cannot_be_is_said_before_training() {
    let folder = tempfile::tempdir().unwrap();
    let (source, text) = of(folder.path());
    let at = |name: &str| folder.path().join(name);
    let log = at("log");
    let said = |arguments: &[&str], status: i32, part: &str| {
        let more = [
            &["--ratio", "0.5", "--log", log.to_str().unwrap()],
            arguments,
        ]
        .concat();
        refused(&source, &text, &more, status, part);
        // Not even the file of figures was begun.
        assert!(!log.exists(), "{more:?}");
    };
    said(&["--quantize", "q4_k_x"], 2, "q4_k_x");
    said(
        &["--quantize", "q8_0", "--tensor-type", "attn_v=q9"],
        2,
        "q9",
    );
    said(&["--rate", "nan"], 2, "learning rate");
    said(&["--beta1", "1"], 2, "betas");
    said(&["--distill=-1"], 2, "distillation: weights");
    let spec = ModelSpec {
        n_layer: 2,
        ..preset("tiny-gqa")
    };
    let other = at("other.gguf");
    spec.write(&other).unwrap();
    let other = [
        "--distill-hidden",
        "1",
        "--teacher",
        other.to_str().unwrap(),
    ];
    said(&other, 2, "the other model has 2 layers");
}

/// A state is of one run only: also what a repair has made of the text is part of that.
#[test]
fn a_run_goes_on_only_with_the_weights_it_began_with() {
    let folder = tempfile::tempdir().unwrap();
    let (source, text) = of(folder.path());
    let at = |name: &str| folder.path().join(name);
    let state = at("state");
    let repair = [
        "--ratio",
        "0.5",
        "--repair",
        text.to_str().unwrap(),
        "--choose",
        "match",
    ];
    let kept = ["--json", "--checkpoint", state.to_str().unwrap()];
    let with = |windows: &'static str, more: &[&'static str]| {
        let all = [&repair[..], &kept[..], &["--windows", windows], more].concat();
        train("tied", &source, &text, &at("out"), &all)
    };
    json(&mut with("4", &[]));
    let mut again = with("4", &["--resume", "--force"]);
    assert_eq!(json(&mut again)["first"], Value::Null);
    let out = with("6", &["--resume", "--force"]).output().unwrap();
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(3), "{stderr}");
    assert!(stderr.contains("other arguments"), "{stderr}");
}
