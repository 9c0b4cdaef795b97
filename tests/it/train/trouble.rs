//! What `train` must not lose, and what it says before it begins.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use headshare_gguf::input::ModelFile;
use headshare_testmodels::ModelSpec;
use serde_json::Value;

use super::{arguments, is_made_of, of, refused, train};
use crate::repair::steps::{tokens, words};
use crate::support::{PROGRAM, json, preset, program, written};

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
    let repair = ["--repair", text.to_str().unwrap(), "--units", "drop"];
    let postshare = [&["--ratio", "0.5"][..], &repair].concat();
    let out = train("postshare", &source, &text, &at("no"), &postshare).output();
    let out = out.unwrap();
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("--units is for tied"), "{stderr}");
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
    // As many tokens, of which one is another.
    let mut bytes = std::fs::read(&source).unwrap();
    let word = "\u{2581}w".as_bytes();
    let place = bytes.windows(word.len()).position(|w| w == word).unwrap();
    bytes[place + word.len() - 1] = b'q';
    let other = at("other-tokens.gguf");
    std::fs::write(&other, bytes).unwrap();
    let other = ["--distill", "1", "--teacher", other.to_str().unwrap()];
    said(&other, 3, "other-tokens.gguf: its token ");
}

/// What cannot be gone on from is told before units are measured and layers repaired, and a
/// state that is sought at the wrong place costs no figures.
#[test]
fn a_wrong_state_is_found_before_the_repair() {
    let folder = tempfile::tempdir().unwrap();
    let (source, text) = of(folder.path());
    let at = |name: &str| folder.path().join(name);
    let (state, log, stats) = (at("state"), at("log"), at("stats.json"));
    let file = state.to_str().unwrap();
    let run = ["--ratio", "0.5", "--json", "--checkpoint", file];
    let figures = ["--checkpoint-every", "2", "--log", log.to_str().unwrap()];
    json(&mut train(
        "tied",
        &source,
        &text,
        &at("out"),
        &[&run[..], &figures].concat(),
    ));
    let said = |more: &[&str], parts: &[&str]| {
        let all = [&run[..], &["--resume"], more].concat();
        let out = train("tied", &source, &text, &at("no"), &all)
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(3), "{stderr}");
        for part in parts {
            assert!(stderr.contains(part), "{stderr}");
        }
    };
    // A run whose state is there is not begun anew by chance.
    let again = [&run[..], &figures].concat();
    let out = train("tied", &source, &text, &at("no"), &again).output();
    let out = out.unwrap();
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(2), "{stderr}");
    assert!(
        stderr.contains("state: exists already") && stderr.contains("--resume goes on"),
        "{stderr}"
    );
    let measured = [
        "--repair",
        text.to_str().unwrap(),
        "--save-stats",
        stats.to_str().unwrap(),
    ];
    said(
        &measured,
        &["arguments.choice", "has to be chosen as before"],
    );
    assert!(!stats.exists(), "units were measured");
    said(
        &["--seed", "7"],
        &["\"settings.seed\" is 0, and 7", "--seed as before"],
    );
    said(
        &["--rate", "1e-4"],
        &["--rate as before goes on from there, or --allow-changes"],
    );
    said(
        &["--window", "16"],
        &["arguments.window", "--window as before"],
    );
    let all = ["--ratio", "0.5", "--json", "--resume", "--checkpoint", file];
    let out = train("postshare", &source, &text, &at("no"), &all)
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert!(
        stderr.contains("arguments.method") && stderr.contains("have states of their own"),
        "{stderr}"
    );
    said(
        &["--held-out", "0.2"],
        &["arguments.held_out", "--held-out as before"],
    );
    // With other steps, where that is wanted: the file says so.
    let changed = [
        "--resume",
        "--allow-changes",
        "--steps",
        "9",
        "--rate",
        "1e-4",
    ];
    let changed = [&run[..], &figures, &changed].concat();
    let done = json(&mut train("tied", &source, &text, &at("changed"), &changed));
    assert_eq!(
        (&done["first"]["step"], &done["steps"]),
        (&7.into(), &9.into())
    );
    is_made_of(&at("changed"), &source);
    let bytes = std::fs::read(at("changed")).unwrap();
    let says = "\"earlier\":[{\"until\":6";
    assert!(bytes.windows(says.len()).any(|w| w == says.as_bytes()));

    let figures = std::fs::read_to_string(&log).unwrap();
    let wrong = at("stat");
    let wrong = ["--ratio", "0.5", "--checkpoint", wrong.to_str().unwrap()];
    let wrong = [&wrong[..], &["--checkpoint-every", "2", "--resume"]].concat();
    let wrong = [&wrong[..], &["--log", log.to_str().unwrap()]].concat();
    let out = train("tied", &source, &text, &at("no"), &wrong)
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(3), "{stderr}");
    assert!(
        stderr.contains("has 9 steps, and there is no state of their run"),
        "{stderr}"
    );
    assert_eq!(std::fs::read_to_string(&log).unwrap(), figures);
}

/// A state has no room: the one before stays, and the run goes on from it.
#[cfg(unix)]
#[test]
fn a_full_disk_costs_no_state() {
    let folder = tempfile::tempdir().unwrap();
    let (source, text) = of(folder.path());
    let at = |name: &str| folder.path().join(name);
    let state = at("state");
    let more = ["--ratio", "0.5", "--json", "--checkpoint-every", "2"];
    let kept = ["--eval-every", "3", "--checkpoint", state.to_str().unwrap()];
    let kept = [&more[..], &kept].concat();
    let run = || arguments("tied", &source, &text, &at("out"), &kept);
    let limited = |kib: u64, more: &[&str]| {
        let out = std::process::Command::new("bash")
            .args(["-c", "ulimit -f $1 && shift && exec \"$@\"", "bash"])
            .arg(kib.to_string())
            .arg(PROGRAM)
            .args(run())
            .args(more)
            .output()
            .unwrap();
        let stderr = String::from_utf8(out.stderr).unwrap();
        assert_eq!(out.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains("the state after step"), "{stderr}");
        assert!(
            stderr.contains("no space for") && !at("out").exists(),
            "{stderr}"
        );
        stderr
    };
    // The file that is written has room, the state is three times as large.
    let first = limited(1000, &[]);
    assert!(
        first.contains("name another file with --checkpoint"),
        "{first}"
    );
    assert!(!state.exists());
    // The state of step 2 has the best numbers of the beginning, as has that of step 4: they
    // are as large. A run that is made to stop leaves one that the next cannot replace.
    json(&mut train(
        "tied",
        &source,
        &text,
        &at("whole"),
        &[&kept[..], &["--steps", "4"]].concat(),
    ));
    let before = std::fs::read(&state).unwrap();
    let more = ["--resume", "--allow-changes"];
    let second = limited(before.len() as u64 / 1024 - 1, &more);
    assert!(
        second.contains("--resume goes on from the state"),
        "{second}"
    );
    assert_eq!(std::fs::read(&state).unwrap(), before);
    let names = std::fs::read_dir(folder.path()).unwrap().count();
    // The model, the text, the state, the whole file.
    assert_eq!(names, 4, "nothing is left behind");
}

/// Layers with fewer channels are trained as any.
#[test]
fn narrowed_layers_learn() {
    let folder = tempfile::tempdir().unwrap();
    let (source, text) = of(folder.path());
    let at = |name: &str| folder.path().join(name);
    let mut plan = json(
        program()
            .arg("plan")
            .arg(&source)
            .args(["--ratio", "0", "--json"]),
    );
    let layers = ModelFile::open(&source).unwrap();
    let layers = layers.gguf.u64_value("llama.block_count").unwrap().unwrap();
    let narrow = |layer: u64| serde_json::json!({"narrow": {"layer": layer, "channels": [[0, 32], [64, 128]]}});
    plan["edits"] = (0..layers).map(narrow).collect();
    let file = at("plan.json");
    std::fs::write(&file, plan.to_string()).unwrap();
    let file = file.to_str().unwrap();
    let repair = ["--repair", text.to_str().unwrap()];
    for (name, more) in [("trained", &[][..]), ("repaired", &repair)] {
        let more = [&["--plan", file, "--json", "--rate", "1e-2"], more].concat();
        let done = json(&mut train("tied", &source, &text, &at(name), &more));
        let (start, best) = (&done["start"], &done["best"][1]);
        assert!(best.as_f64() < start.as_f64(), "{done}");
        assert!(done["saved"]["file_bytes"].as_i64().unwrap() > 0, "{done}");
        is_made_of(&at(name), &source);
        assert!(!tokens(&at(name)).as_array().unwrap().is_empty());
    }
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
    assert!(
        stderr.contains("arguments.start") && stderr.contains("the repair has to be as before"),
        "{stderr}"
    );
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
    // The model before the first step, and each step once.
    let figures = String::from_utf8(read("log")).unwrap();
    let steps = figures.lines().map(|line| {
        let line: Value = serde_json::from_str(line).unwrap();
        line["step"].as_u64().unwrap()
    });
    assert_eq!(steps.collect::<Vec<_>>(), (0..=60).collect::<Vec<_>>());
}

/// Neither a file of something else nor one at its limit is a log.
#[cfg(unix)]
#[test]
fn figures_do_no_harm() {
    let folder = tempfile::tempdir().unwrap();
    let (source, text) = of(folder.path());
    let at = |name: &str| folder.path().join(name);
    let (state, other) = (at("state"), at("other"));
    let run_of_state = ["--ratio", "0.5", "--checkpoint", state.to_str().unwrap()];
    let more = [&run_of_state[..], &["--json"]].concat();
    json(&mut train("tied", &source, &text, &at("out"), &more));
    std::fs::write(&other, "{\"step\": 1}\nmy notes\n").unwrap();
    // That is found before anything is measured or repaired, too.
    let stats = at("stats");
    let repaired = [
        "--repair",
        text.to_str().unwrap(),
        "--save-stats",
        stats.to_str().unwrap(),
    ];
    let begun = at("begun");
    let measured = [
        "--ratio",
        "0.5",
        "--json",
        "--checkpoint",
        begun.to_str().unwrap(),
    ];
    let measured = [&measured[..], &repaired].concat();
    json(&mut train(
        "tied",
        &source,
        &text,
        &at("measured"),
        &measured,
    ));
    std::fs::remove_file(&stats).unwrap();
    for run in [&run_of_state[..], &measured] {
        let over = [run, &["--resume", "--log", other.to_str().unwrap()]].concat();
        let out = train("tied", &source, &text, &at("again"), &over)
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(3), "{stderr}");
        assert!(
            stderr.contains("other: line 1 has no figures of a step"),
            "{stderr}"
        );
    }
    assert!(!stats.exists(), "units were measured");
    assert_eq!(
        std::fs::read_to_string(&other).unwrap(),
        "{\"step\": 1}\nmy notes\n"
    );

    // Figures that cannot be written cost no model. The file grows up to its limit with what an
    // earlier step says.
    let log = at("log");
    let more = [
        "--steps",
        "12",
        "--checkpoint-every",
        "3",
        "--allow-changes",
    ];
    let logged = ["--resume", "--json", "--log", log.to_str().unwrap()];
    let more = [&run_of_state[..], &more, &logged].concat();
    std::fs::copy(&state, at("state-2")).unwrap();
    json(&mut train("tied", &source, &text, &at("whole"), &more));
    std::fs::copy(at("state-2"), &state).unwrap();
    let state_bytes = std::fs::metadata(&state).unwrap().len();
    let limit = (2 * state_bytes).next_multiple_of(1024);
    let padding = "x".repeat(limit as usize - 200);
    let old = format!("{{\"step\":1,\"loss\":1.0,\"padding\":\"{padding}\"}}\n");
    std::fs::write(&log, old).unwrap();
    let out = std::process::Command::new("bash")
        .args(["-c", "ulimit -f $1 && shift && exec \"$@\"", "bash"])
        .arg((limit / 1024).to_string())
        .arg(PROGRAM)
        .args(arguments("tied", &source, &text, &at("out-2"), &more))
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("cannot write the figures to"), "{stderr}");
    let read = |name: &str| std::fs::read(at(name)).unwrap();
    assert!(read("out-2") == read("whole"));
}
