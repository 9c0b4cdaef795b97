//! What `train` must not lose, and what it says before it begins.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use headshare_gguf::input::ModelFile;
use headshare_testmodels::ModelSpec;
use serde_json::Value;

use super::{arguments, is_made_of, of, refused, train};
use crate::repair::steps::words;
use crate::support::{PROGRAM, json, preset, written};

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
    for (option, value) in [
        ("--rate", "nan"),
        ("--rate", "-1"),
        ("--beta1", "1"),
        ("--held-out", "1"),
        ("--distill", "-1"),
        ("--gamma", "-0.5"),
    ] {
        let named = format!("'{value}' for '{option}");
        let method = if option == "--gamma" {
            "postshare"
        } else {
            "tied"
        };
        let more = ["--ratio", "0.5", option, value];
        let out = train(method, &source, &text, &at("no"), &more).output();
        let out = out.unwrap();
        let stderr = String::from_utf8_lossy(&out.stderr);
        assert!(
            out.status.code() == Some(2) && stderr.contains(&named),
            "{stderr}"
        );
    }
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
    assert!(stderr.contains("shares or repairs otherwise"), "{stderr}");
}

/// Ctrl-C ends a run with its state where it has a file for it.
#[cfg(unix)]
#[test]
fn a_run_that_is_interrupted_keeps_its_state() {
    use rustix::process::{Pid, Signal, kill_process};
    let folder = tempfile::tempdir().unwrap();
    let (source, text) = of(folder.path());
    let at = |name: &str| folder.path().join(name);
    let (state, log) = (at("state"), at("log"));
    let steps = ["--ratio", "0.5", "--json", "--steps", "60"];
    json(&mut train("tied", &source, &text, &at("whole"), &steps));
    let (file, figures) = (state.to_str().unwrap(), log.to_str().unwrap());
    let kept = [
        "--checkpoint",
        file,
        "--checkpoint-every",
        "1000",
        "--log",
        figures,
    ];
    let kept = [&steps[..], &kept].concat();
    let child = std::process::Command::new(PROGRAM)
        .args(arguments("tied", &source, &text, &at("out"), &kept))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // As soon as there are figures of a step.
    while std::fs::metadata(&log).map_or(true, |log| log.len() == 0) {
        std::thread::sleep(Duration::from_millis(2));
    }
    let pid = Pid::from_raw(child.id().cast_signed()).unwrap();
    kill_process(pid, Signal::INT).unwrap();
    let out = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{stderr}");
    let said = format!("with the state in {file}");
    assert!(
        stderr.contains("stopped after step ") && stderr.contains(&said),
        "{stderr}"
    );
    assert!(stderr.contains("--resume goes on"), "{stderr}");
    assert!(state.exists() && !at("out").exists());
    let resumed = [&kept[..], &["--resume"]].concat();
    json(&mut train("tied", &source, &text, &at("out"), &resumed));
    let read = |name: &str| std::fs::read(at(name)).unwrap();
    assert_eq!(read("out"), read("whole"));
    let figures = read("log");
    assert_eq!(figures.iter().filter(|&&byte| byte == b'\n').count(), 60);
}

/// Neither a file of something else nor one at its limit is a log.
#[cfg(unix)]
#[test]
fn figures_do_no_harm() {
    let folder = tempfile::tempdir().unwrap();
    let (source, text) = of(folder.path());
    let at = |name: &str| folder.path().join(name);
    let (state, other) = (at("state"), at("other"));
    let more = ["--ratio", "0.5", "--checkpoint", state.to_str().unwrap()];
    assert!(
        train("tied", &source, &text, &at("out"), &more)
            .output()
            .unwrap()
            .status
            .success()
    );
    std::fs::write(&other, "{\"step\": 1}\nmy notes\n").unwrap();
    let over = ["--resume", "--log", other.to_str().unwrap()];
    let over = [&more[..], &over].concat();
    let out = train("tied", &source, &text, &at("again"), &over)
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(3), "{stderr}");
    assert!(
        stderr.contains("other: line 1 has no figures of a step"),
        "{stderr}"
    );
    assert_eq!(
        std::fs::read_to_string(&other).unwrap(),
        "{\"step\": 1}\nmy notes\n"
    );

    let log = at("log");
    let long = [
        "--ratio",
        "0.5",
        "--steps",
        "40",
        "--log",
        log.to_str().unwrap(),
    ];
    let out = std::process::Command::new("bash")
        .args(["-c", "ulimit -f 1 && exec \"$@\"", "bash", PROGRAM])
        .args(arguments("tied", &source, &text, &at("no"), &long))
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("cannot write the figures to"), "{stderr}");
}
