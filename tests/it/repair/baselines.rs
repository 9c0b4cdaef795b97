//! Baselines: units that other methods would remove.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::dropped::by_plan;
use super::steps::{tokens, verify, words};
use crate::support::{json, program, written};

fn baseline(source: &Path, out: &Path, by: &str, more: &[&str]) -> assert_cmd::Command {
    let mut command = program();
    command.arg("convert").arg(source).arg("-o").arg(out);
    command.args(["--ratio", "0.5", "--baseline", by, "--json"]);
    command.args(more);
    command
}

fn kinds(plan: &Value) -> Vec<&str> {
    let edits = plan["edits"].as_array().unwrap().iter();
    let mut kinds: Vec<&str> = (edits.flat_map(|edit| edit.as_object().unwrap().keys()))
        .map(String::as_str)
        .collect();
    kinds.dedup();
    kinds
}

#[test]
fn baselines_remove_units_by_their_measures() {
    let folder = tempfile::tempdir().unwrap();
    let text = words(folder.path());
    let text = text.to_str().unwrap();
    let at = |name: &str| folder.path().join(name);
    let source = written(folder.path(), "tiny-gqa");
    for by in ["magnitude", "llm-pruner"] {
        let file = |name: &str| at(&format!("{by}-{name}"));
        let read: &[&str] = match by {
            "magnitude" => &[],
            _ => &["--calibrate", text],
        };
        let result = json(&mut baseline(&source, &file("small"), by, read));
        let plan = &result["plan"];
        assert_eq!(plan["choice"]["by"], by);
        assert_eq!(kinds(plan), ["drop"]);
        assert!(result["saved"]["file_bytes"].as_i64().unwrap() > 0);
        // As a plan it does the same.
        std::fs::write(file("plan.json"), plan.to_string()).unwrap();
        by_plan(&source, &file("plan.json"), &file("by-plan")).success();
        let small = std::fs::read(file("small")).unwrap();
        assert!(small == std::fs::read(file("by-plan")).unwrap());
        json(&mut baseline(&source, &file("again"), by, read));
        assert!(small == std::fs::read(file("again")).unwrap());
        assert_eq!(verify(&file("small"), &source)["ok"], true);
        // And it can be repaired; the text of that will do for gradients, too.
        let repaired = ["--repair", text, "--windows", "4", "--window", "32"];
        let repaired = json(&mut baseline(&source, &file("repaired"), by, &repaired));
        assert_eq!(repaired["plan"]["edits"], plan["edits"]);
        assert!(!repaired["repair"]["tensors"].as_array().unwrap().is_empty());
        assert!(!tokens(&file("repaired")).as_array().unwrap().is_empty());
        // The same units can be silenced.
        let silence = [read, &["--silence"]].concat();
        let silent = json(&mut baseline(&source, &file("silent"), by, &silence));
        assert_eq!(kinds(&silent["plan"]), ["silence"]);
        let units = |plan: &Value, kind: &str| -> Vec<Value> {
            let edits = plan["edits"].as_array().unwrap().iter();
            edits.map(|edit| edit[kind].clone()).collect()
        };
        assert_eq!(units(&silent["plan"], "silence"), units(plan, "drop"));
        assert_eq!(tokens(&file("silent")), tokens(&file("small")));
        assert!(silent["saved"]["file_bytes"].as_i64().unwrap() <= 0);
    }
}

#[test]
fn where_units_cannot_go_they_are_silenced() {
    let folder = tempfile::tempdir().unwrap();
    let text = words(folder.path());
    let text = text.to_str().unwrap();
    for name in ["tiny-qwen2", "tiny-qwen3", "tiny-gemma3", "tiny-gpt2"] {
        let source = written(folder.path(), name);
        for by in ["magnitude", "llm-pruner"] {
            let out = folder.path().join(format!("{name}-{by}"));
            let mut command = baseline(&source, &out, by, &[]);
            if by == "llm-pruner" {
                command.args(["--calibrate", text]);
            }
            let output = command.output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{said}");
            assert!(
                said.contains("note: units are silenced, which saves nothing"),
                "{said}"
            );
            let result: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(kinds(&result["plan"]), ["silence"], "{name}");
            assert_eq!(verify(&out, &source)["ok"], true, "{name}");
            assert!(!tokens(&out).as_array().unwrap().is_empty());
        }
    }
}

#[test]
fn what_a_baseline_cannot_do_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let text = words(folder.path());
    let text = text.to_str().unwrap();
    let at = |name: &str| folder.path().join(name);
    let source = written(folder.path(), "tiny-gqa");
    let refused = |source: &Path, by: &str, more: &[&str], status: i32, says: &str| {
        let output = baseline(source, &at("no"), by, more).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(status), "{more:?}: {stderr}");
        assert!(
            stderr.contains(says) && !at("no").exists(),
            "{more:?}: {stderr}"
        );
    };
    // Another way to choose is another thing.
    for by in ["magnitude", "llm-pruner"] {
        for more in ["--match=qk", "--units=drop", "--choose=match"] {
            refused(
                &source,
                by,
                &["--repair", text, more],
                2,
                "cannot be used with",
            );
        }
    }
    let pruner = "llm-pruner";
    refused(&source, pruner, &[], 2, "needs a text");
    refused(&source, pruner, &["--quantize", "q8_0"], 2, "needs a text");
    refused(
        &source,
        pruner,
        &["--calibrate", "self"],
        2,
        "must be a file",
    );
    refused(
        &source,
        pruner,
        &["--calibrate", "-", "--repair", text],
        2,
        "read twice",
    );
    refused(
        &source,
        pruner,
        &["--calibrate", text, "--windows", "4"],
        2,
        "--repair",
    );
    refused(
        &source,
        "magnitude",
        &["--calibrate", text],
        2,
        "reads no text",
    );
    let missing = at("missing");
    refused(
        &source,
        pruner,
        &["--calibrate", missing.to_str().unwrap()],
        3,
        "missing",
    );
    let write = |name: &str, bytes: &[u8]| -> PathBuf {
        std::fs::write(at(name), bytes).unwrap();
        at(name)
    };
    let short = write("short", b"too few");
    let short = short.to_str().unwrap();
    refused(
        &source,
        pruner,
        &["--calibrate", short],
        3,
        "too short a text",
    );
    let binary = write("binary", &[0xff; 4096]);
    refused(
        &source,
        pruner,
        &["--calibrate", binary.to_str().unwrap()],
        3,
        "not UTF-8",
    );
    // Only what can be trained has gradients.
    let moe = written(folder.path(), "tiny-moe");
    refused(&moe, pruner, &["--calibrate", text], 1, "cannot train");
    let mamba = written(folder.path(), "tiny-mamba");
    refused(&mamba, "magnitude", &[], 1, "mamba");
    // The text is no output.
    let mut over = program();
    over.arg("convert")
        .arg(&source)
        .arg("-o")
        .arg(text)
        .arg("--force");
    over.args(["--ratio", "0.5", "--baseline", pruner, "--calibrate", text]);
    over.assert().code(2);
    let alone = program()
        .arg("convert")
        .arg(&source)
        .arg("-o")
        .arg(at("no"))
        .args(["--ratio", "0.5", "--silence"])
        .assert();
    alone.code(2);
}
