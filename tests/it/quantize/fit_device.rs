//! Plans of what fits, into a file or into memory, and how far predictions hold.

use std::path::Path;

use headshare_testmodels::ModelSpec;
use serde_json::Value;

use super::fit::{fitting, refused};
use super::{divergence, tokens_both_ways};
use crate::repair::steps::words;
use crate::support::{json, preset, program, read, written};

#[test]
fn a_plan_of_what_fits_is_carried_out_with_the_same_outcome() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let source = written(folder.path(), "tiny-gqa");
    let size = read(&source).len() as u64;
    let bytes = size / 5;
    let types = ["--types", "q8_0"];
    let (fitted, plan, planned) = (at("fitted"), at("plan.json"), at("planned"));
    let done = json(&mut fitting(
        &source,
        bytes,
        &fitted,
        &["--types", "q8_0", "--json"],
    ));
    let text = words(folder.path());
    let windows = ["--windows", "6", "--window", "64", "--json"];
    let mut command = program();
    command.arg("plan").arg(&source).arg("-o").arg(&plan);
    command.args(["--fit", &bytes.to_string(), "--calibrate"]);
    let said = json(command.arg(&text).args(windows).args(types));
    let kept: Value = serde_json::from_slice(&read(&plan)).unwrap();
    assert_eq!(said, kept);
    assert_eq!(kept["choice"]["by"], "calibrated");
    assert_eq!(kept["expected"]["divergence"], done["fit"]["predicted"]);
    let count = |edit: &str| {
        let edits = kept["edits"].as_array().unwrap().iter();
        edits.filter(|e| e.get(edit).is_some()).count()
    };
    assert!(count("store") > 0 && count("narrow") > 0, "{kept}");
    let mut command = program();
    command.arg("convert").arg(&source).arg("-o").arg(&planned);
    command
        .arg("--plan")
        .arg(&plan)
        .arg("--calibrate")
        .arg(&text);
    json(command.args(windows));
    assert!(read(&fitted) == read(&planned));
    // Without a text, it is rounded.
    let rounded = at("rounded");
    let mut command = program();
    command.arg("convert").arg(&source).arg("-o").arg(&rounded);
    json(command.arg("--plan").arg(&plan).arg("--json"));
    assert!(divergence(&rounded, &source) > divergence(&planned, &source));
    // What the plan says of a tensor that is not there is named.
    let wrong = std::fs::read_to_string(&plan).unwrap();
    std::fs::write(
        &plan,
        wrong.replace("blk.0.attn_q.weight", "blk.9.attn_q.weight"),
    )
    .unwrap();
    let mut command = program();
    command.arg("convert").arg(&source).arg("-o").arg(at("no"));
    command
        .arg("--plan")
        .arg(&plan)
        .arg("--calibrate")
        .arg(&text);
    let ran = command.args(windows).output().unwrap();
    let stderr = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert_eq!(ran.status.code(), Some(3), "{stderr}");
    assert!(
        stderr.contains("plan.json") && stderr.contains("blk.9.attn_q"),
        "{stderr}"
    );
    assert!(!at("no").exists());
}

#[test]
fn a_model_is_made_to_fit_into_memory() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let source = at("source.gguf");
    // Weights that stand out from what the program takes.
    let spec = ModelSpec {
        n_layer: 2,
        n_embd: 256,
        n_vocab: 40_000,
        ..preset("tiny-gqa")
    };
    spec.write(&source).unwrap();
    let text = words(folder.path());
    let fitting = |ram: u64, out: &Path, more: &[&str]| {
        let mut command = program();
        command.arg("convert").arg(&source).arg("-o").arg(out);
        command.args([
            "--fit",
            "--ram",
            &ram.to_string(),
            "--ctx",
            "256",
            "--calibrate",
        ]);
        command
            .arg(&text)
            .args(["--windows", "4", "--window", "32"]);
        command.args(more);
        command
    };
    let refused = |ram: u64, says: &[&str]| {
        let ran = fitting(ram, &at("no"), &[]).output().unwrap();
        let stderr = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert_eq!(ran.status.code(), Some(2), "{stderr}");
        for part in says {
            assert!(stderr.contains(part), "{part}: {stderr}");
        }
        assert!(!at("no").exists());
        stderr
    };
    refused(1 << 20, &["256 tokens", "KV cache", "--ctx", "--ram"]);
    let says = refused(1 << 36, &["source.gguf", "as it is", "nothing is written"]);
    let takes = says
        .split("takes ")
        .nth(1)
        .unwrap()
        .split(' ')
        .next()
        .unwrap();
    let takes: u64 = takes.parse().unwrap();
    let ram = takes - (30 << 20);
    let done = json(&mut fitting(ram, &at("out"), &["--json"]));
    let memory = &done["fit"]["memory"];
    let of = |name: &str| memory[name].as_i64().unwrap();
    assert_eq!((of("bytes"), of("ctx")), (ram as i64, 256));
    assert_eq!(of("left"), of("bytes") - of("weights") - of("others"));
    // Nearly all of it is used.
    assert!(of("left") > -(1 << 20) && of("left") < 12 << 20, "{memory}");
    assert!(of("weights") < 60 << 20, "{memory}");
    let size = read(&source).len() as u64;
    let len = read(&at("out")).len() as u64;
    assert!(
        len + (20 << 20) < size && len + (40 << 20) > size,
        "{len} of {size}"
    );
    tokens_both_ways(&at("out"));
    // Both bounds hold where both are given.
    let half = (size / 2).to_string();
    let mut command = program();
    command
        .arg("convert")
        .arg(&source)
        .arg("-o")
        .arg(at("both"));
    command.args(["--fit", &half, "--ram", &ram.to_string(), "--ctx", "256"]);
    command.arg("--calibrate").arg(&text);
    let both = json(command.args(["--windows", "4", "--window", "32", "--dry-run", "--json"]));
    assert_eq!(both["fit"]["wanted"].as_u64(), Some(size / 2));
    assert!(both["fit"]["memory"]["left"].as_i64().unwrap() > 8 << 20);
}

#[test]
fn measuring_can_be_cut_short() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let source = written(folder.path(), "tiny-gqa");
    let bytes = read(&source).len() as u64 / 2;
    let some = ["--types", "q8_0,q4_0", "--json"];
    let with = |more: &[&'static str]| [&some[..], more].concat();
    json(&mut fitting(
        &source,
        bytes,
        &at("long"),
        &with(&["--time", "2h"]),
    ));
    json(&mut fitting(&source, bytes, &at("all"), &with(&[])));
    assert!(read(&at("long")) == read(&at("all")));
    for (more, says) in [
        (&["--time", "10"][..], "90s, 10m or 2h"),
        (&["--time", "1m", "--stats", "s.json"], "--stats"),
        (&["--ctx", "512"], "--ram"),
    ] {
        refused(&source, bytes, more, 2, &[says]);
    }
    let out = at("no");
    let text = words(folder.path());
    let mut command = program();
    command.arg("convert").arg(&source).arg("-o").arg(&out);
    let ran = command
        .arg("--calibrate")
        .arg(text)
        .arg("--fit")
        .output()
        .unwrap();
    assert_eq!(ran.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&ran.stderr).contains("--fit 84M, or --ram"));
}

#[test]
fn what_random_plans_cost_is_predicted_in_the_right_order() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let source = written(folder.path(), "tiny-gqa");
    let size = read(&source).len() as u64;
    let text = words(folder.path());
    let picture = at("predictions.svg");
    let predictions = |seed: &str| {
        let mut command = program();
        command.args(["analyze", "predictions"]).arg(&source);
        command.args([
            "--fit",
            &(size / 5).to_string(),
            "--seed",
            seed,
            "--plans",
            "6",
        ]);
        command
            .arg("--calibrate")
            .arg(&text)
            .args(["--windows", "8", "--window", "64"]);
        command.arg("-o").arg(&picture).args(["--force", "--json"]);
        json(&mut command)
    };
    let found = predictions("3");
    let plans = found["plans"].as_array().unwrap();
    assert_eq!(plans.len(), 6);
    for plan in plans {
        let bytes = plan["bytes"].as_u64().unwrap();
        assert!(bytes <= size / 5 && bytes >= size / 5 * 94 / 100, "{plan}");
        assert!(plan["measured"].as_f64().unwrap() > 0.0);
    }
    assert!(
        found["correlation"]["spearman"].as_f64().unwrap() > 0.5,
        "{found}"
    );
    assert!(
        std::fs::read_to_string(&picture)
            .unwrap()
            .contains("rank correlation")
    );
    assert!(predictions("4")["plans"] != found["plans"]);
}
