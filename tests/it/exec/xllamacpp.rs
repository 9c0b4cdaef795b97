//! The server inside PyPI's xllamacpp, a llama.cpp that nobody here built: for
//! a converted file through `exec` it answers as for the plain file, with less
//! memory.
//!
//! One test at a time: a page of the library that two processes have counts half
//! in either's PSS, and ggml's threads spin while they wait.

use std::path::{Path, PathBuf};
use std::process::Command;

use headshare_testmodels::{ModelSpec, self_merge};
use serde_json::Value;

use super::models::{Models, exec_with, stderr};
use crate::repair::steps::{expand, words};
use crate::support::{PROGRAM, SMOLLM2, needs, root, smollm2, take_turns};

/// The Python that has xllamacpp.
fn python() -> PathBuf {
    let python = std::env::var_os("HEADSHARE_XLLAMACPP_PYTHON").map_or_else(
        || root().join("target/tools/xllamacpp/bin/python"),
        PathBuf::from,
    );
    assert!(
        python.is_file(),
        "{} is missing: run scripts/test.sh, or name a Python that has xllamacpp in \
         HEADSHARE_XLLAMACPP_PYTHON",
        python.display()
    );
    python
}

/// What xllamacpp makes of a file.
struct Answer {
    text: String,
    tokens: Value,
    pss_kib: u64,
    seconds: (f64, f64),
    stderr: String,
}

impl Answer {
    fn of(mut command: Command, model: &Path, arguments: &[&str]) -> Self {
        let out = command
            .arg(root().join("tests/xllamacpp_generate.py"))
            .arg(model)
            .args(["--threads", "1"])
            .args(arguments)
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", stderr(&out));
        let json: Value = serde_json::from_slice(&out.stdout).unwrap();
        Self {
            text: json["text"].as_str().unwrap().to_owned(),
            tokens: json["tokens"].clone(),
            pss_kib: json["memory"]["generated"]["pss_kib"].as_u64().unwrap(),
            seconds: (
                json["seconds"]["load"].as_f64().unwrap(),
                json["seconds"]["generate"].as_f64().unwrap(),
            ),
            stderr: stderr(&out),
        }
    }

    fn stock(model: &Path, arguments: &[&str]) -> Self {
        Self::of(Command::new(python()), model, arguments)
    }

    fn through_exec(model: &Path, arguments: &[&str]) -> Self {
        let command = exec_with(&["--perf"], &[python().to_str().unwrap()]);
        let answer = Self::of(command, model, arguments);
        assert!(
            answer.stderr.contains("converted.gguf: "),
            "{}",
            answer.stderr
        );
        answer
    }

    fn ids(&self) -> Vec<u64> {
        let tokens = self.tokens.as_array().unwrap();
        tokens.iter().map(|t| t["id"].as_u64().unwrap()).collect()
    }
}

/// Asks both, asserts that the answers are the same to the last bit of every
/// printed probability, and returns the two sizes in KiB, stock first.
fn compare(models: &Models, what: &str, arguments: &[&str]) -> (u64, u64) {
    let stock = Answer::stock(&models.plain, arguments);
    let exec = Answer::through_exec(&models.converted, arguments);
    println!(
        "{what}: PSS {} KiB stock, {} KiB through exec; loading {:.2} and {:.2} s, generating \
         {:.2} and {:.2} s",
        stock.pss_kib,
        exec.pss_kib,
        stock.seconds.0,
        exec.seconds.0,
        stock.seconds.1,
        exec.seconds.1
    );
    assert!(!stock.ids().is_empty());
    assert_eq!(stock.text, exec.text);
    assert_eq!(stock.tokens, exec.tokens);
    (stock.pss_kib, exec.pss_kib)
}

/// Bytes of the plain file that `inspect` says are in memory once more.
fn resident_saved_kib(models: &Models) -> u64 {
    let out = Command::new(PROGRAM)
        .args(["inspect", "--json"])
        .arg(&models.converted)
        .output()
        .unwrap();
    let json: Value = serde_json::from_slice(&out.stdout).unwrap();
    json["sharing"]["saved"]["resident_bytes"].as_u64().unwrap() >> 10
}

#[test]
fn a_self_merge_of_smollm2_answers_the_same_from_fewer_pages() {
    needs!(SMOLLM2);
    let _turn = take_turns();
    let folder = tempfile::tempdir().unwrap();
    let plain = folder.path().join("plain.gguf");
    let layers: Vec<u32> = (0..20).chain(10..30).collect();
    self_merge(&smollm2(), &layers, &plain).unwrap();
    let models = Models::of(folder, plain, &["--lossless"]);
    let saved = resident_saved_kib(&models);
    // Q4_1 is not repacked: the mapping is what is used.
    let (stock, exec) = compare(&models, "SmolLM2 self-merge, Q4_1", &["-n", "24"]);
    assert!(exec + saved * 85 / 100 < stock, "{saved} KiB are shared");
}

#[test]
fn repacked_weights_are_shared_too() {
    let _turn = take_turns();
    let spec = ModelSpec {
        n_layer: 8,
        repeat: 2,
        n_embd: 1024,
        n_head: 16.into(),
        n_head_kv: 4.into(),
        n_ff: 4096,
        n_vocab: 4096,
        ..ModelSpec::preset("llama-3.2-1b").unwrap()
    };
    let models = Models::new(&spec, &["--lossless"]);
    let saved = resident_saved_kib(&models);
    let file = models.plain.metadata().unwrap().len() >> 10;
    assert!(saved * 100 > file * 40, "{saved} of {file} KiB");

    // Mapped, stock has the file and the repacked copy; with exec half of the
    // copy is shared, and the file is dropped.
    let what = "Q4_0, layers written twice";
    let (stock, exec) = compare(&models, &format!("{what}, mapped"), &["-n", "8"]);
    assert!(exec + (file + saved) * 9 / 10 < stock);
    // Read instead, stock has the copy only.
    let arguments = ["-n", "8", "--load-mode", "none"];
    let (stock, exec) = compare(&models, &format!("{what}, read"), &arguments);
    assert!(exec + saved * 9 / 10 < stock);
    // Not repacked, it works on the mapping.
    let arguments = ["-n", "8", "--repack", "off"];
    let (stock, exec) = compare(&models, &format!("{what}, not repacked"), &arguments);
    assert!(exec + saved * 9 / 10 < stock);
    // Direct reading of the stored file is refused, and llama.cpp falls back.
    compare(&models, what, &["-n", "2", "--load-mode", "direct_io"]);
}

/// What is quantized together with sharing, or stays equal, is in memory once as before, and
/// answers the same as what `expand` makes of it.
#[test]
fn what_is_quantized_and_shared_answers_the_same_expanded() {
    let _turn = take_turns();
    let spec = ModelSpec {
        n_layer: 3,
        repeat: 2,
        n_embd: 256,
        n_head: 4.into(),
        n_head_kv: 2.into(),
        n_ff: 1024,
        n_vocab: 1024,
        weight_type: headshare_testmodels::type_named("f16").unwrap(),
        ..ModelSpec::preset("llama-3.2-1b").unwrap()
    };
    for (what, ratio) in [("self-merge", None), ("heads", Some("0.4"))] {
        let folder = tempfile::tempdir().unwrap();
        let text = words(folder.path());
        let text = text.to_str().unwrap();
        let repeat = if ratio.is_some() { 1 } else { spec.repeat };
        let plain = folder.path().join("plain.gguf");
        let spec = ModelSpec {
            repeat,
            ..spec.clone()
        };
        spec.write(&plain).unwrap();
        let fit = ["--quantize", "q4_0", "--pure", "--calibrate", text];
        let mut convert = [&fit[..], &["--windows", "4", "--window", "64"]].concat();
        if let Some(ratio) = ratio {
            convert.extend(["--ratio", ratio, "--repair", text, "--choose", "match"]);
        }
        let models = Models::of(folder, plain, &convert);
        let expanded = models.folder.path().join("expanded.gguf");
        expand(&models.converted, &expanded);
        let models = Models {
            plain: expanded,
            ..models
        };
        let saved = resident_saved_kib(&models);
        assert!(saved > 0, "{what}");
        let what = format!("quantized, {what}, not repacked");
        let arguments = ["-n", "8", "--repack", "off"];
        let (stock, exec) = compare(&models, &what, &arguments);
        // A few heads of a small model are less than what programs differ by anyway.
        if ratio.is_none() {
            assert!(
                saved > 1024 && exec + saved / 2 < stock,
                "{what}: {saved} KiB are shared, {stock} and {exec}"
            );
        }
    }
}

#[test]
fn shared_heads_generate_what_run_generates() {
    needs!(SMOLLM2);
    let _turn = take_turns();
    let folder = tempfile::tempdir().unwrap();
    let models = Models::of(folder, smollm2(), &["--ratio", "0.3"]);
    let expanded = models.folder.path().join("expanded.gguf");
    expand(&models.converted, &expanded);
    let prompt = "The capital of France is";
    let arguments = ["-n", "64", "--prompt", prompt];
    let stock = Answer::stock(&expanded, &arguments);
    let exec = Answer::through_exec(&models.converted, &arguments);
    assert_eq!(stock.ids().len(), 64);
    assert_eq!(stock.tokens, exec.tokens);

    // Ours has other kernels, whose sums are rounded differently: the tokens
    // are the same up to a choice that is as good as even.
    let out = Command::new(PROGRAM)
        .arg("run")
        .arg(&models.converted)
        .args(["-p", prompt, "-n", "64", "--temp", "0", "-t", "1", "--json"])
        .output()
        .unwrap();
    assert!(out.status.success(), "{out:?}");
    let run: Value = serde_json::from_slice(&out.stdout).unwrap();
    let ours = run["tokens"].as_array().unwrap();
    assert_eq!(ours.len(), 64);
    let theirs = stock.tokens.as_array().unwrap();
    let Some(at) = (0..64).find(|&i| ours[i] != theirs[i]["id"]) else {
        return;
    };
    println!("run and xllamacpp part at token {at}");
    assert!(at > 2);
    let top = theirs[at]["top"].as_array().unwrap();
    let other = top
        .iter()
        .find(|t| t[0] == ours[at])
        .expect("a probable token");
    let margin = theirs[at]["logprob"].as_f64().unwrap() - other[1].as_f64().unwrap();
    assert!(
        margin < 0.1,
        "token {at}: {} is less probable by {margin}",
        ours[at]
    );
}

#[test]
fn units_that_went_need_nothing_of_ours() {
    needs!(SMOLLM2);
    let _turn = take_turns();
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let source = smollm2();
    let ours = |arguments: &[&str]| {
        let out = Command::new(PROGRAM).args(arguments).output().unwrap();
        assert!(out.status.success(), "{}", stderr(&out));
        serde_json::from_slice::<Value>(&out.stdout).unwrap()
    };
    let source = source.to_str().unwrap();
    let mut plan = ours(&["plan", source, "--ratio", "0", "--json"]);
    plan["edits"] = serde_json::json!([
        {"drop": {"layer": 7, "unit": 0}},
        {"drop": {"layer": 26, "unit": 1}},
    ]);
    let (plan_file, cut) = (at("plan.json"), at("cut.gguf"));
    std::fs::write(&plan_file, plan.to_string()).unwrap();
    let (plan_file, cut) = (plan_file.to_str().unwrap(), cut.to_str().unwrap());
    let made = ours(&["convert", source, "-o", cut, "--plan", plan_file, "--json"]);
    assert!(
        made["saved"]["file_bytes"].as_i64().unwrap() > 200_000,
        "{made}"
    );
    let answer = Answer::stock(Path::new(cut), &["-n", "16"]);
    assert_eq!(answer.ids().len(), 16);
    let text = &answer.text;
    assert!(text.contains("Paris"), "the capital of France is {text:?}");
}
