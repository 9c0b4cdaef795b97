//! `train`: tied heads learn, pairs are pulled together, runs go on where they were killed.

mod resumed;
mod trouble;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use assert_cmd::Command;
use serde_json::Value;

use crate::repair::silenced::is_silent;
use crate::repair::steps::{expand, tokens, words};
use crate::support::{PROGRAM, json, program, svg_lines, written};

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

/// `train tied` ends with this status, says this, and writes nothing.
#[track_caller]
fn refused(source: &Path, text: &Path, arguments: &[&str], status: i32, part: &str) {
    let no = text.with_file_name("no");
    let out = train("tied", source, text, &no, arguments).output();
    let out = out.unwrap();
    let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(status), "{stderr}");
    assert!(stderr.contains(part) && !no.exists(), "{stderr}");
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
    command.arg("--curves").arg(at("curves.svg"));
    let done = json(command.arg("--log").arg(&log));
    let lines = std::fs::read_to_string(&log).unwrap();
    let lines: Vec<Value> = lines
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    // What was before, and the steps.
    assert_eq!(lines.len(), 7);
    assert_eq!(lines[0]["step"], 0);
    assert_eq!(lines[0]["evaluation"], done["start"]);
    let lines = &lines[1..];
    let loss = |line: &Value| line["loss"].as_f64().unwrap();
    assert!(loss(&lines[5]) < loss(&lines[0]), "{lines:?}");
    assert_eq!(lines[5], done["last"]);
    let speed = |what: &str| done["speed"][what].as_f64().unwrap();
    assert!(
        speed("operations") > 0.0 && speed("products") > 1e8,
        "{done}"
    );
    let tokens = |line: &Value| line["tokens_per_second"].as_f64().unwrap();
    let slowest = lines.iter().map(tokens).fold(f64::INFINITY, f64::min);
    let fastest = lines.iter().map(tokens).fold(0.0, f64::max);
    assert!((slowest..=fastest).contains(&speed("tokens")), "{done}");
    let held_out = |line: &Value| line["evaluation"].as_f64();
    assert!(held_out(&lines[0]).is_none() && held_out(&lines[1]).is_some());
    let best = lines
        .iter()
        .filter_map(held_out)
        .fold(f64::INFINITY, f64::min);
    assert_eq!(done["best"][1].as_f64(), Some(best));
    // The picture has all of it: a line of six steps, one of the start and three evaluations.
    let svg = std::fs::read_to_string(at("curves.svg")).unwrap();
    let drawn = svg_lines(&svg, 3);
    let lengths: Vec<usize> = drawn.iter().map(Vec::len).collect();
    assert_eq!(lengths, [6, 4], "{svg}");
    let told = format!("{best:.4} after step {}", done["best"][0]);
    assert!(svg.contains(&told), "{told}: {svg}");
    // Higher losses stand higher.
    for (i, j) in [(0, 5), (1, 2), (3, 4)] {
        let order = loss(&lines[i]).total_cmp(&loss(&lines[j]));
        assert!(order == drawn[0][j].1.cmp(&drawn[0][i].1) || drawn[0][i].1 == drawn[0][j].1);
    }
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
    is_made_of(&at("tied"), &source);
    let said = |arguments: &[&str], status: i32, part: &str| {
        refused(&source, &text, arguments, status, part);
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
    said(
        &["--ratio", "0.5", "--curves", "c.pdf"],
        2,
        "use .svg or .png",
    );
    let there = at("curves.svg");
    let there = there.to_str().unwrap();
    said(&["--ratio", "0.5", "--curves", there], 2, "exists");
    let twice = [
        "--ratio", "0.5", "--force", "--curves", there, "--log", there,
    ];
    said(&twice, 2, "named for two outputs");
    let moe = written(folder.path(), "tiny-moe");
    let refused = train("tied", &moe, &text, &at("no"), &["--ratio", "0.5"])
        .output()
        .unwrap();
    assert!(
        String::from_utf8_lossy(&refused.stderr).contains("cannot train"),
        "{refused:?}"
    );
}

/// `verify` against the file that it was made from finds nothing.
#[track_caller]
fn is_made_of(file: &Path, source: &Path) {
    let mut command = program();
    let report = json(
        command
            .arg("verify")
            .arg(file)
            .arg("--source")
            .arg(source)
            .arg("--json"),
    );
    assert_eq!(report["ok"], true, "{report}");
}

#[test]
fn scales_are_trained_by_a_teacher_and_codes_stay() {
    let folder = tempfile::tempdir().unwrap();
    let (source, text) = of(folder.path());
    let at = |name: &str| folder.path().join(name);
    let q4 = at("q4_0.gguf");
    let mut convert = program();
    convert.arg("convert").arg(&source).arg("-o").arg(&q4);
    json(convert.args(["--quantize", "q4_0", "--pure", "--json"]));
    let teacher = source.to_str().unwrap();
    let more = [
        "--ratio",
        "0",
        "--json",
        "--distill",
        "1",
        "--language",
        "0",
        "--train",
        "scales",
        "--rate",
        "1e-2",
        "--steps",
        "12",
        "--teacher",
        teacher,
    ];
    let done = json(&mut train("tied", &q4, &text, &at("refined"), &more));
    let start = done["start"].as_f64().unwrap();
    assert!(done["best"][1].as_f64().unwrap() < 0.9 * start, "{done}");
    assert!(done["quantized"].is_null());
    // Nothing shares, so it is a plain file of the same types that says how it was made.
    is_made_of(&at("refined"), &q4);
    assert!(!tokens(&at("refined")).as_array().unwrap().is_empty());
    let bytes = std::fs::read(at("refined")).unwrap();
    let says = |what: &str| bytes.windows(what.len()).any(|w| w == what.as_bytes());
    assert!(says("\"trained\":{\"method\":\"tied\"") && !says("headshare.aliases"));
    let size = |path: &Path| std::fs::metadata(path).unwrap().len();
    assert!(size(&at("refined")) < size(&q4) + 16_384);
    // A teacher that teaches nothing, and one of another vocabulary.
    let said = |arguments: &[&str], status: i32, part: &str| {
        refused(&q4, &text, arguments, status, part);
    };
    said(
        &["--ratio", "0", "--teacher", teacher],
        2,
        "nothing is learned from the teacher",
    );
    let other = at("other.gguf");
    let spec = headshare_testmodels::ModelSpec::preset("tiny-gqa").unwrap();
    let n_vocab = spec.n_vocab * 2;
    let spec = headshare_testmodels::ModelSpec { n_vocab, ..spec };
    spec.write(&other).unwrap();
    let other = other.to_str().unwrap();
    said(
        &["--ratio", "0", "--distill", "1", "--teacher", other],
        3,
        "a vocabulary of",
    );
}

#[test]
fn other_types_are_fitted_to_what_was_trained() {
    let folder = tempfile::tempdir().unwrap();
    let (source, text) = of(folder.path());
    let at = |name: &str| folder.path().join(name);
    for (name, more) in [
        ("shared", &["--ratio", "0.5"][..]),
        ("plain", &["--ratio", "0"][..]),
    ] {
        let more = [more, &["--json", "--quantize", "q8_0", "--pure"]].concat();
        let done = json(&mut train("tied", &source, &text, &at(name), &more));
        assert_eq!(done["quantized"]["to"], "q8_0", "{done}");
        is_made_of(&at(name), &source);
        match name {
            "shared" => runs(&at(name), folder.path()),
            _ => assert!(!tokens(&at(name)).as_array().unwrap().is_empty()),
        }
        assert!(done["saved"]["file_bytes"].as_i64().unwrap() > 0, "{done}");
    }
}

#[test]
fn pairs_are_pulled_together_and_share_then() {
    let folder = tempfile::tempdir().unwrap();
    let (source, text) = of(folder.path());
    let at = |name: &str| folder.path().join(name);
    let more = ["--ratio", "0.5", "--json", "--gamma", "2"];
    let mut command = train("postshare", &source, &text, &at("post"), &more);
    let done = json(command.arg("--curves").arg(at("curves.svg")));
    // The losses, and the distance in a plot of its own.
    let svg = std::fs::read_to_string(at("curves.svg")).unwrap();
    let lengths: Vec<usize> = svg_lines(&svg, 3).iter().map(Vec::len).collect();
    assert_eq!(lengths, [6, 4, 6], "{svg}");
    assert!(
        svg.contains("loss of each step, without distances"),
        "{svg}"
    );
    let distances = done["distances"].as_array().unwrap();
    assert!(!distances.is_empty());
    for pair in distances {
        assert!(pair["after"].as_f64() < pair["before"].as_f64(), "{pair}");
        assert_eq!(pair["parts"].as_array().unwrap().len(), 3, "{pair}");
        assert_ne!(pair["alias"], pair["donor"]);
    }
    assert!(done["saved"]["file_bytes"].as_i64().unwrap() > 0);
    runs(&at("post"), folder.path());
    is_made_of(&at("post"), &source);
    // Apart they are as near, and nothing is stored once.
    let apart = [&more[..], &["--no-share"]].concat();
    let apart = json(&mut train(
        "postshare",
        &source,
        &text,
        &at("apart"),
        &apart,
    ));
    assert_eq!(apart["distances"], done["distances"]);
    let bytes = |of: &Value| of["output"]["bytes"].as_u64().unwrap();
    assert!(bytes(&apart) > bytes(&done));
    is_made_of(&at("apart"), &source);
    assert!(!tokens(&at("apart")).as_array().unwrap().is_empty());
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
    // It can have been broken off before its first state.
    let out = train("tied", &source, &text, &at("resumed"), &resumed).output();
    let stderr = String::from_utf8_lossy(&out.as_ref().unwrap().stderr);
    assert!(stderr.contains("state yet: training begins"), "{stderr}");
    assert_eq!(
        std::fs::read(at("whole")).unwrap(),
        std::fs::read(at("resumed")).unwrap()
    );
    for path in [Path::new(state), &at("resumed")] {
        std::fs::remove_file(path).unwrap();
    }
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
    assert!(stderr.contains("the state of another run"), "{stderr}");
}

#[test]
fn curves_of_a_run_that_was_broken_off_are_whole_with_a_log() {
    let folder = tempfile::tempdir().unwrap();
    let (source, text) = of(folder.path());
    let at = |name: &str| folder.path().join(name);
    let more = |curves: &str, others: &[&str]| {
        let curves = at(curves).to_str().unwrap().to_owned();
        let own = ["--ratio", "0.5", "--json", "--steps", "40", "--curves"];
        let own = own.into_iter().chain([&*curves]);
        own.chain(others.iter().copied())
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let command = |name: &str, more: &[String]| {
        let more: Vec<&str> = more.iter().map(String::as_str).collect();
        arguments("tied", &source, &text, &at(name), &more)
    };
    json(program().args(command("whole", &more("whole.svg", &[]))));
    let whole = std::fs::read_to_string(at("whole.svg")).unwrap();
    let length = |svg: &str| svg_lines(svg, 2).iter().map(Vec::len).max().unwrap();
    assert_eq!(length(&whole), 40);

    let (state, log) = (at("state"), at("log.jsonl"));
    let (state, log) = (state.to_str().unwrap(), log.to_str().unwrap());
    let kept = ["--checkpoint", state, "--checkpoint-every", "1"];
    let logged = [&kept[..], &["--log", log]].concat();
    let mut child = std::process::Command::new(PROGRAM)
        .args(command("resumed", &more("curves.svg", &logged)))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    while !Path::new(state).exists() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!at("curves.svg").exists(), "it was too fast");
    std::fs::copy(state, at("state-2")).unwrap();

    // With the log, the same picture as without a break.
    let resumed = [&logged[..], &["--resume"]].concat();
    json(program().args(command("resumed", &more("curves.svg", &resumed))));
    let drawn = std::fs::read_to_string(at("curves.svg")).unwrap();
    assert_eq!(drawn, whole);

    // Without it, what there is, and that this is not all.
    let state = at("state-2");
    let state = state.to_str().unwrap();
    let resumed = ["--checkpoint", state, "--resume", "--force"];
    let run = || {
        let mut run = program();
        let out = run
            .args(command("other", &more("part.svg", &resumed)))
            .output();
        let out = out.unwrap();
        let stderr = String::from_utf8(out.stderr).unwrap();
        assert_eq!(out.status.code(), Some(0), "{stderr}");
        let done: Value = serde_json::from_slice(&out.stdout).unwrap();
        (done["first"]["step"].as_u64(), stderr)
    };
    let (first, stderr) = run();
    let first = first.unwrap();
    let said = format!("from step {first} to 40: the figures of the steps before were not kept");
    assert!(stderr.contains(&said) && first > 1, "{stderr}");
    let part = std::fs::read_to_string(at("part.svg")).unwrap();
    assert!(part.contains(&said), "{part}");
    assert_eq!(length(&part), 41 - first as usize);
    // One that is over draws nothing, and leaves what is there.
    let (first, stderr) = run();
    assert_eq!(first, None);
    assert!(stderr.contains("no step was taken"), "{stderr}");
    assert_eq!(std::fs::read_to_string(at("part.svg")).unwrap(), part);
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
