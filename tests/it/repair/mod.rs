//! Repair from end to end: what the engine reads, what the file holds.

mod baselines;
mod calibrated;
mod dropped;
mod kept;
mod naive;
mod shapes;
pub mod silenced;
pub mod steps;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use faer::Par;
use headshare_gguf::engine::normal::{Rows, Sums};
use headshare_gguf::engine::{Role, Site, Target, sites};
use headshare_gguf::input::ModelFile;
use headshare_runtime::calibrate::{CalibrateError, Calibrator, CalibratorParams};
use serde_json::Value;

use crate::support::{
    PROGRAM, SMOLLM2, json, needs, program, smollm2, valley, wait_until_worked, written,
};
use steps::{DECODERS, SMALL, expand, filled, repairing, tokens, verify, words};

#[track_caller]
fn repair(source: &Path, text: &Path, out: &Path, more: &[&str]) -> Value {
    json(
        repairing(source, text, out)
            .args(["--choose", "match", "--json"])
            .args(more),
    )
}

#[test]
fn what_the_engine_reads_is_what_a_naive_pass_computes() {
    let folder = tempfile::tempdir().unwrap();
    let path = written(folder.path(), "tiny-gqa");
    let file = ModelFile::open_plain(&path).unwrap();
    let naive = naive::Naive::new(&file);
    let (windows, window) = (3usize, 24usize);
    let tokens: Vec<i32> = (0..windows * window)
        .map(|i| (i * 37 % 290 + 5) as i32)
        .collect();
    let picked = |i: usize| i % 5 == 4;
    let mut calibrator = Calibrator::load(
        &path,
        &CalibratorParams {
            windows: 3,
            window: 24,
            outputs: 24,
            n_threads: Some(1),
            stop: Arc::default(),
        },
    )
    .unwrap();
    let sites: Vec<Site> = sites::find(calibrator.graph(), None)
        .into_iter()
        .filter(|site| site.role.writes_to_stream())
        .collect();
    assert_eq!(sites.len(), 2 * naive.n_layer);
    let mut stops: Vec<usize> = (sites.iter())
        .flat_map(|site| [site.input, site.target.node()])
        .collect();
    stops.dedup();
    let mut seen: Vec<(usize, Vec<f32>)> = Vec::new();
    calibrator
        .run::<CalibrateError>(&tokens, &picked, &stops, &[], &mut |stop, pass| {
            seen.push((stop, pass.f32s(stop).unwrap().into_owned()));
            ControlFlow::Continue(())
        })
        .unwrap();
    let at = |node: usize| &seen.iter().find(|(stop, _)| *stop == node).unwrap().1;

    let passes: Vec<Vec<naive::Layer>> = tokens.chunks(window).map(|w| naive.forward(w)).collect();
    let rows = |layer: usize, part: fn(&naive::Layer) -> &Vec<f64>, only_picked: bool| {
        let all: Vec<f64> = passes
            .iter()
            .flat_map(|p| part(&p[layer]))
            .copied()
            .collect();
        let width = all.len() / tokens.len();
        all.chunks(width)
            .enumerate()
            .filter(|(i, _)| !only_picked || picked(*i))
            .flat_map(|(_, row)| row.to_vec())
            .collect::<Vec<f64>>()
    };
    for site in &sites {
        let layer = site.layer.unwrap() as usize;
        let last = layer + 1 == naive.n_layer;
        let (input, sum) = match site.role {
            Role::AttentionOutput => (
                rows(layer, |l| &l.attention, false),
                rows(layer, |l| &l.middle, last),
            ),
            _ => (
                rows(layer, |l| &l.inner, last),
                rows(layer, |l| &l.out, last),
            ),
        };
        close(&site.name, at(site.input), &input);
        close(&site.name, at(site.target.node()), &sum);
        assert!(matches!(site.target, Target::Sum { .. }));

        let tokens = if last && site.role == Role::Down {
            sum.len() / naive.n_embd
        } else {
            windows * window
        };
        let p = input.len() / tokens;
        let weights = vec![1f32; tokens];
        let rows = Rows {
            inputs: (at(site.input), p),
            targets: (&[], 0),
            weights: &weights,
            held_from: tokens,
        };
        let normal = Sums::of(rows, Par::Seq).all();
        let gram: Vec<f64> = (0..p * p)
            .map(|at| {
                (0..tokens)
                    .map(|t| input[t * p + at / p] * input[t * p + at % p])
                    .sum()
            })
            .collect();
        let got: Vec<f32> = (0..p * p)
            .map(|at| normal.gram[(at / p, at % p)] as f32)
            .collect();
        close(&format!("X^T X of {}", site.name), &got, &gram);
    }
}

/// Equal up to what llama.cpp's flash attention costs, which caches and adds up
/// in f16: on the whole closely, in single elements less so.
#[track_caller]
fn close(what: &str, got: &[f32], expected: &[f64]) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let mean_square = |values: &mut dyn Iterator<Item = f64>| {
        values.map(|v| v * v).sum::<f64>() / expected.len() as f64
    };
    let off = || got.iter().zip(expected).map(|(g, e)| f64::from(*g) - e);
    let size = mean_square(&mut expected.iter().copied()).sqrt();
    let typical = mean_square(&mut off()).sqrt();
    let largest = off().fold(0.0, |most: f64, v| most.max(v.abs()));
    assert!(typical < 3e-3 * size, "{what}: off by {typical} of {size}");
    let peak = expected.iter().fold(0.0, |most: f64, v| most.max(v.abs()));
    assert!(
        largest < 1e-2 * peak,
        "{what}: off by up to {largest} of {peak}"
    );
}

#[test]
fn every_kind_of_decoder_is_repaired() {
    let folder = tempfile::tempdir().unwrap();
    let text = words(folder.path());
    for preset in DECODERS {
        let source = written(folder.path(), preset);
        let out = folder.path().join(format!("{preset}.repaired.gguf"));
        let result = repair(&source, &text, &out, &SMALL);
        let tensors = result["repair"]["tensors"].as_array().unwrap();
        assert!(tensors.len() >= 3, "{preset}: {tensors:?}");
        for tensor in tensors {
            let (before, after) = (&tensor["before"], &tensor["after"]);
            assert!(
                after.as_f64().unwrap() <= before.as_f64().unwrap(),
                "{preset}: {tensor}"
            );
        }
        let report = verify(&out, &source);
        assert_eq!(report["ok"], true, "{preset}: {report}");
        assert_eq!(report["lossless"], false);
        // Those that a refit would not have helped are the source's still.
        let refitted = tensors.iter().filter(|t| !t["lambda"].is_null()).count();
        assert!(refitted > 0, "{preset}");
        assert_eq!(report["replaced_tensors"], refitted, "{preset}");
        let plain = folder.path().join(format!("{preset}.plain.gguf"));
        expand(&out, &plain);
        assert_eq!(tokens(&out), tokens(&plain), "{preset}");
    }
}

#[test]
fn the_same_run_gives_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let text = words(folder.path());
    let source = written(folder.path(), "tiny-gqa");
    let out = ["a", "b"].map(|name| folder.path().join(name));
    for out in &out {
        repair(&source, &text, out, &SMALL);
    }
    let [a, b] = out.map(|path| std::fs::read(path).unwrap());
    assert!(a == b, "two runs differ");
}

#[test]
fn a_real_model_is_repaired_from_its_last_layers_on() {
    needs!(SMOLLM2);
    let folder = tempfile::tempdir().unwrap();
    let source = smollm2();
    let text = valley();
    // Two units of the last two layers.
    let plan = json(
        program()
            .arg("plan")
            .arg(&source)
            .args(["--ratio", "1", "--json"]),
    );
    let mut plan = plan.as_object().unwrap().clone();
    let edits = plan["edits"].as_array().unwrap();
    let kept: Vec<Value> = edits
        .iter()
        .filter(|e| e["share"]["layer"].as_u64() >= Some(28) && e["share"]["unit"] == 1)
        .cloned()
        .collect();
    assert_eq!(kept.len(), 2);
    plan.insert("edits".into(), kept.into());
    let plan_file = folder.path().join("plan.json");
    std::fs::write(&plan_file, serde_json::to_string(&plan).unwrap()).unwrap();
    let out = folder.path().join("out.gguf");
    let plan_file = plan_file.to_str().unwrap();
    let sizes = ["--windows", "4", "--window", "128", "--plan", plan_file];
    let result = repair(&source, &text, &out, &sizes);
    let tensors = result["repair"]["tensors"].as_array().unwrap();
    assert_eq!(tensors.len(), 4);
    for tensor in tensors {
        let (before, after) = (tensor["before"].as_f64(), tensor["after"].as_f64());
        assert_eq!(after < before, !tensor["lambda"].is_null(), "{tensor}");
    }
    assert!(tensors.iter().any(|t| !t["lambda"].is_null()));
    let report = verify(&out, &source);
    assert_eq!(report["ok"], true, "{report}");
    let ran = json(program().arg("run").arg(&out).args([
        "-p",
        "The capital of France is",
        "-n",
        "4",
        "--temp",
        "0",
        "--json",
    ]));
    assert!(!ran["text"].as_str().unwrap().is_empty());
    assert!(std::fs::metadata(&out).unwrap().len() <= std::fs::metadata(&source).unwrap().len());
}

#[track_caller]
fn refused(source: &Path, text: &Path, more: &[&str], code: i32, says: &str) {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.gguf");
    let output = repairing(source, text, &out)
        .args(["--choose", "match"])
        .args(more)
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(
        stderr.starts_with("error: ") && stderr.contains(says),
        "{stderr}"
    );
    assert!(!out.exists());
}

#[test]
fn what_cannot_be_repaired_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let long = words(folder.path());
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let llama = written(folder.path(), "tiny-llama");
    refused(
        &written(folder.path(), "tiny-falcon"),
        &long,
        &SMALL,
        1,
        "falcon",
    );
    refused(
        &written(folder.path(), "tiny-bert"),
        &long,
        &SMALL,
        1,
        "bert",
    );
    let short = write("short", b"too short");
    refused(&llama, &short, &SMALL, 3, "needs at least 128");
    refused(
        &llama,
        &write("empty", b""),
        &SMALL,
        3,
        "empty: the calibration text has 0 tokens",
    );
    refused(
        &llama,
        &write("binary", b"abc\xff\xfe"),
        &SMALL,
        3,
        "not UTF-8 at byte 3",
    );
    refused(&llama, &folder.path().join("absent"), &SMALL, 3, "absent");
    let little = [&SMALL[..], &["--memory", "1000000"]].concat();
    refused(&llama, &long, &little, 2, "--memory");
    let lossless = ["--lossless"];
    refused(&llama, &long, &lossless, 2, "--lossless");
}

/// The number that the message asks for is enough.
#[test]
fn as_much_memory_as_is_asked_for_is_enough() {
    let folder = tempfile::tempdir().unwrap();
    let text = words(folder.path());
    let source = written(folder.path(), "tiny-llama");
    let out = folder.path().join("out.gguf");
    let with = |memory: &str| {
        let mut command = repairing(&source, &text, &out);
        let output = command.args(SMALL).args(["--memory", memory]).output();
        output.unwrap()
    };
    let stderr = String::from_utf8(with("1000000").stderr).unwrap();
    let (_, needed) = stderr.split_once("needs at least ").expect(&stderr);
    let digits: String = needed.chars().take_while(char::is_ascii_digit).collect();
    let output = with(&digits);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert!(stderr.contains("note: 2 windows"), "{stderr}");
}

#[test]
fn of_experts_only_attention_is_refitted_and_that_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let text = words(folder.path());
    let source = written(folder.path(), "tiny-moe");
    let out = folder.path().join("out.gguf");
    let mut command = repairing(&source, &text, &out);
    let output = command.args(SMALL).arg("--json").output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert!(
        stderr.contains("no single ffn_down (experts): only their attn_output is refitted"),
        "{stderr}"
    );
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    for tensor in result["repair"]["tensors"].as_array().unwrap() {
        let name = tensor["name"].as_str().unwrap();
        assert!(name.ends_with("attn_output.weight"), "{name}");
    }
}

/// A real model, so that it is still at work when it is killed.
#[cfg(target_os = "linux")]
#[test]
fn a_killed_repair_leaves_nothing() {
    needs!(SMOLLM2);
    let folder = tempfile::tempdir().unwrap();
    let source = smollm2();
    let words = folder.path().join("words.txt");
    std::fs::write(
        &words,
        "A sentence of some words, and one more. ".repeat(400),
    )
    .unwrap();
    let mut child = std::process::Command::new(PROGRAM)
        .arg("convert")
        .arg(source)
        .args(["--ratio", "0.1", "--repair"])
        .arg(&words)
        .arg("--save-stats")
        .arg(folder.path().join("stats.json"))
        .arg("-o")
        .arg(folder.path().join("out.gguf"))
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    wait_until_worked(&mut child, Duration::from_secs(2));
    child.kill().unwrap();
    child.wait().unwrap();
    let left: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["words.txt"]);
}

/// A layer of zeros: its Gram matrices are zero, too, and the ridge must not be.
#[test]
fn a_layer_that_adds_nothing_is_no_trouble() {
    let folder = tempfile::tempdir().unwrap();
    let text = words(folder.path());
    let source = written(folder.path(), "tiny-gqa");
    let dead = folder.path().join("dead.gguf");
    let layer = ["attn_v", "attn_output", "ffn_up", "ffn_down"];
    let names = layer.map(|name| format!("blk.2.{name}.weight"));
    filled(&source, &dead, &names.each_ref().map(|n| n.as_str()), 0.0);
    for choose in ["match", "calibrated"] {
        let out = folder.path().join(format!("{choose}.gguf"));
        let plain = folder.path().join(format!("{choose}-plain.gguf"));
        let arguments = ["--choose", choose, "--json"];
        let report = json(repairing(&dead, &text, &out).args(SMALL).args(arguments));
        let errors = report["repair"]["tensors"].as_array().unwrap();
        assert!(!errors.is_empty(), "{choose}: nothing was refitted");
        for tensor in errors {
            assert!(tensor["after"].as_f64().unwrap().is_finite(), "{tensor}");
        }
        expand(&out, &plain);
        assert_eq!(tokens(&out), tokens(&plain), "{choose}");
    }
}

#[test]
fn activations_that_are_no_numbers_name_their_layer() {
    let folder = tempfile::tempdir().unwrap();
    let text = words(folder.path());
    let source = written(folder.path(), "tiny-gqa");
    let broken = folder.path().join("broken.gguf");
    let out = folder.path().join("out.gguf");
    for (tensor, value, says) in [
        (
            "blk.1.attn_v.weight",
            f32::MAX,
            "the activations that go into blk.1.attn_output.weight are not all finite numbers",
        ),
        (
            "blk.2.attn_output.weight",
            f32::NAN,
            "the values of blk.2.attn_output.weight are not all finite",
        ),
    ] {
        filled(&source, &broken, &[tensor], value);
        for choose in ["match", "calibrated"] {
            let mut command = repairing(&broken, &text, &out);
            command.args(SMALL).args(["--choose", choose]);
            let output = command.output().unwrap();
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(3), "{choose}: {stderr}");
            assert!(stderr.contains(says), "{choose}: {stderr}");
            assert!(!out.exists());
        }
    }
}

#[test]
fn the_text_can_come_through_a_pipe() {
    let folder = tempfile::tempdir().unwrap();
    let source = written(folder.path(), "tiny-gqa");
    let text = words(folder.path());
    let [by_file, by_pipe, stats] = ["a.gguf", "b.gguf", "s.json"].map(|n| folder.path().join(n));
    repairing(&source, &text, &by_file)
        .args(SMALL)
        .arg("--save-stats")
        .arg(&stats)
        .assert()
        .success();
    let bytes = std::fs::read(&text).unwrap();
    repairing(&source, Path::new("-"), &by_pipe)
        .args(SMALL)
        .write_stdin(bytes)
        .assert()
        .success();
    assert_eq!(
        std::fs::read(&by_file).unwrap(),
        std::fs::read(&by_pipe).unwrap()
    );
    // So can what was measured.
    repairing(&source, &text, &by_pipe)
        .args(SMALL)
        .args(["--force", "--stats", "-"])
        .write_stdin(std::fs::read(&stats).unwrap())
        .assert()
        .success();
    assert_eq!(
        std::fs::read(&by_file).unwrap(),
        std::fs::read(&by_pipe).unwrap()
    );
}
