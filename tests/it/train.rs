//! `train`: tied heads learn, pairs are pulled together, runs go on where they were killed.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use assert_cmd::Command;
use serde_json::Value;

use crate::repair::silenced::is_silent;
use crate::repair::steps::{expand, tokens, words};
use crate::support::{PROGRAM, json, program, written};

/// `train METHOD` of `source` with few steps, unless `more` says otherwise.
fn arguments(method: &str, source: &Path, text: &Path, out: &Path, more: &[&str]) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = vec!["train".into(), method.into(), source.into()];
    arguments.extend(["-o".into(), out.into(), "--text".into(), text.into()]);
    let defaults = [
        ("--window", "32"),
        ("--windows", "4"),
        ("--batch", "2"),
        ("--rate", "1e-3"),
        ("--steps", "6"),
        ("--eval-every", "2"),
    ];
    for (flag, value) in defaults {
        if !more.contains(&flag) {
            arguments.extend([flag.into(), value.into()]);
        }
    }
    arguments.extend(more.iter().map(Into::into));
    arguments
}

fn train(method: &str, source: &Path, text: &Path, out: &Path, more: &[&str]) -> Command {
    let mut command = program();
    command.args(arguments(method, source, text, out, more));
    command
}

fn of(folder: &Path) -> (PathBuf, PathBuf) {
    (written(folder, "tiny-gqa"), words(folder))
}

/// The file is in order, and what it stands for generates the same.
#[track_caller]
fn runs(file: &Path, folder: &Path) {
    let report = json(program().arg("verify").arg(file).arg("--json"));
    assert_eq!(report["ok"], true, "{report}");
    let plain = folder.join("plain.gguf");
    expand(file, &plain);
    assert!(!tokens(file).as_array().unwrap().is_empty());
    assert_eq!(tokens(file), tokens(&plain));
    std::fs::remove_file(plain).unwrap();
}

#[test]
fn tied_heads_learn_and_stay_one() {
    let folder = tempfile::tempdir().unwrap();
    let (source, text) = of(folder.path());
    let at = |name: &str| folder.path().join(name);
    let log = at("log.jsonl");
    let more = [
        "--ratio",
        "0.5",
        "--json",
        "--distill",
        "1",
        "--language",
        "0",
    ];
    let mut command = train("tied", &source, &text, &at("tied"), &more);
    let done = json(command.arg("--log").arg(&log));
    let lines = std::fs::read_to_string(&log).unwrap();
    let lines: Vec<Value> = lines
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    assert_eq!(lines.len(), 6);
    let loss = |line: &Value| line["loss"].as_f64().unwrap();
    assert!(loss(&lines[5]) < loss(&lines[0]), "{lines:?}");
    assert_eq!(lines[5], done["last"]);
    let held_out = |line: &Value| line["evaluation"].as_f64();
    assert!(held_out(&lines[0]).is_none() && held_out(&lines[1]).is_some());
    let best = lines
        .iter()
        .filter_map(held_out)
        .fold(f64::INFINITY, f64::min);
    assert_eq!(done["best"][1].as_f64(), Some(best));
    // As many blocks share as a conversion at this ratio lets share.
    let convert = json(
        program()
            .arg("convert")
            .arg(&source)
            .arg("-o")
            .arg(at("shared"))
            .args(["--ratio", "0.5", "--json"]),
    );
    assert_eq!(
        done["output"]["bytes"],
        std::fs::metadata(at("tied")).unwrap().len()
    );
    let saved = |of: &Value| of["saved"]["file_bytes"].as_i64().unwrap();
    assert!(saved(&done) > 0 && saved(&convert) > 0, "{done}");
    runs(&at("tied"), folder.path());
    let said = |arguments: &[&str], status: i32, part: &str| {
        let out = train("tied", &source, &text, &at("no"), arguments)
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(status), "{stderr}");
        assert!(stderr.contains(part) && !at("no").exists(), "{stderr}");
    };
    said(&[], 2, "--ratio");
    said(
        &["--ratio", "0.5", "--window", "60000"],
        3,
        "too short a text",
    );
    said(
        &["--ratio", "0.5", "--language", "0"],
        2,
        "every loss has the weight 0",
    );
    said(&["--ratio", "0.5", "--train", "lora:0"], 2, "lora:RANK");
    said(
        &["--ratio", "0.5", "--rate", "1e30", "--clip", "0"],
        1,
        "step",
    );
    let moe = written(folder.path(), "tiny-moe");
    let refused = train("tied", &moe, &text, &at("no"), &["--ratio", "0.5"])
        .output()
        .unwrap();
    assert!(
        String::from_utf8_lossy(&refused.stderr).contains("cannot train"),
        "{refused:?}"
    );
}

#[test]
fn pairs_are_pulled_together_and_share_then() {
    let folder = tempfile::tempdir().unwrap();
    let (source, text) = of(folder.path());
    let at = |name: &str| folder.path().join(name);
    let more = ["--ratio", "0.5", "--json", "--gamma", "2"];
    let done = json(&mut train("postshare", &source, &text, &at("post"), &more));
    let distances = done["distances"].as_array().unwrap();
    assert!(!distances.is_empty());
    for pair in distances {
        assert!(pair[1].as_f64() < pair[0].as_f64(), "{pair}");
    }
    assert!(done["saved"]["file_bytes"].as_i64().unwrap() > 0);
    runs(&at("post"), folder.path());
    // Twice the same command, the same bytes.
    json(&mut train("postshare", &source, &text, &at("again"), &more));
    assert_eq!(
        std::fs::read(at("post")).unwrap(),
        std::fs::read(at("again")).unwrap()
    );
}

#[test]
fn a_run_that_was_broken_off_ends_in_the_same_file() {
    let folder = tempfile::tempdir().unwrap();
    let (source, text) = of(folder.path());
    let at = |name: &str| folder.path().join(name);
    let whole = ["--ratio", "0.5", "--json"];
    json(&mut train("tied", &source, &text, &at("whole"), &whole));
    let state = at("state");
    let state = state.to_str().unwrap();
    let kept = [
        "--ratio",
        "0.5",
        "--json",
        "--checkpoint",
        state,
        "--checkpoint-every",
        "1",
    ];
    let resumed = [&kept[..], &["--resume", "--force"]].concat();
    let mut child = std::process::Command::new(PROGRAM)
        .args(arguments("tied", &source, &text, &at("resumed"), &kept))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // As soon as there is a state, the run is killed.
    while !Path::new(state).exists() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    json(&mut train("tied", &source, &text, &at("resumed"), &resumed));
    assert_eq!(
        std::fs::read(at("whole")).unwrap(),
        std::fs::read(at("resumed")).unwrap()
    );
    // One that is over is only written again; and nothing that is read is written to.
    json(&mut train("tied", &source, &text, &at("resumed"), &resumed));
    assert_eq!(
        std::fs::read(at("whole")).unwrap(),
        std::fs::read(at("resumed")).unwrap()
    );
    let before = std::fs::read(&source).unwrap();
    for victim in [&source, &text] {
        let victim = victim.to_str().unwrap();
        let over = [&resumed[..], &["--log", victim]].concat();
        let out = train("tied", &source, &text, &at("other"), &over).output();
        assert_eq!(out.unwrap().status.code(), Some(2));
        let out = train("tied", &source, &text, Path::new(victim), &resumed).output();
        assert_eq!(out.unwrap().status.code(), Some(2));
    }
    assert_eq!(std::fs::read(&source).unwrap(), before);
    // Another run has nothing to go on from there.
    let other = [&resumed[..], &["--seed", "7"]].concat();
    let out = train("tied", &source, &text, &at("other"), &other)
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(3), "{stderr}");
    assert!(stderr.contains("checkpoint field"), "{stderr}");
}

/// What a plan silences stays so, whatever is trained.
#[test]
fn silent_units_stay_silent() {
    let folder = tempfile::tempdir().unwrap();
    let (source, text) = of(folder.path());
    let digest = blake3::hash(&std::fs::read(&source).unwrap()).to_hex();
    let plan = serde_json::json!({"version": 2, "source": format!("blake3:{digest}"), "edits": [
        {"drop": {"layer": 1, "unit": 0}},
        {"silence": {"layer": 1, "unit": 1}},
        {"silence": {"layer": 2, "unit": 0}},
    ]});
    let path = folder.path().join("plan.json");
    std::fs::write(&path, plan.to_string()).unwrap();
    for what in ["all", "attention", "lora:2"] {
        let out = folder.path().join(what);
        let more = ["--plan", path.to_str().unwrap(), "--train", what, "--json"];
        let done = json(&mut train("tied", &source, &text, &out, &more));
        assert!(done["last"]["loss"].as_f64() < done["first"]["loss"].as_f64());
        assert!(is_silent(&out, 1, 0, 1), "{what}");
        assert!(
            is_silent(&out, 2, 0, 2) && !is_silent(&out, 2, 1, 2),
            "{what}"
        );
    }
}
