//! `bench` as scripts see it, on tiny synthetic models: the fields, the order,
//! the mistakes. How fast anything is, no test says.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use headshare_testmodels::ModelSpec;
use serde_json::Value;

use crate::support::PROGRAM;

/// A plain model that repeats its layers, and the same one converted.
struct Models {
    folder: tempfile::TempDir,
}

impl Models {
    fn new() -> Self {
        let this = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        let spec = ModelSpec {
            repeat: 2,
            ..ModelSpec::preset("tiny-llama").unwrap()
        };
        spec.write(&this.plain()).unwrap();
        let out = program()
            .arg("convert")
            .arg(this.plain())
            .args(["--lossless", "-o"])
            .arg(this.converted())
            .output()
            .unwrap();
        assert_eq!(out.status.code(), Some(0), "{out:?}");
        this
    }

    fn plain(&self) -> PathBuf {
        self.folder.path().join("plain.gguf")
    }

    fn converted(&self) -> PathBuf {
        self.folder.path().join("converted.gguf")
    }
}

fn program() -> Command {
    Command::new(PROGRAM)
}

/// `bench` with few tokens, on one thread.
fn bench(files: &[&Path], args: &[&str]) -> Output {
    program()
        .args(["bench", "-t", "1"])
        .args(args)
        .args(files)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn files_are_named_as_llama_bench_takes_them() {
    let models = Models::new();
    let out = program()
        .args([
            "bench", "-t", "1", "-p", "8", "-n", "1", "-r", "1", "-o", "json",
        ])
        .arg("-m")
        .arg(models.plain())
        .arg("--model")
        .arg(models.converted())
        .args(["-ngl", "99"])
        .output()
        .unwrap();
    assert_eq!(out.status.code(), Some(0), "{out:?}");
    let stderr = text(&out.stderr);
    assert!(stderr.contains("note: -ngl has no effect"), "{stderr}");
    let found: Value = serde_json::from_slice(&out.stdout).unwrap();
    let names: Vec<&str> = (found.as_array().unwrap().iter())
        .map(|row| row["model_filename"].as_str().unwrap())
        .collect();
    assert!(
        names.iter().any(|name| name.ends_with("plain.gguf")),
        "{names:?}"
    );
    assert!(
        names.iter().any(|name| name.ends_with("converted.gguf")),
        "{names:?}"
    );
}

#[test]
fn json_has_llama_benchs_fields_and_ours() {
    let models = Models::new();
    let plain = models.plain();
    let out = bench(
        &[&models.converted()],
        &[
            "--stock",
            plain.to_str().unwrap(),
            "-p",
            "40",
            "-n",
            "4",
            "-r",
            "3",
            "-o",
            "json",
            "-q",
            "--resolve",
            "auto,expand",
        ],
    );
    assert_eq!(out.status.code(), Some(0), "{out:?}");
    assert_eq!(text(&out.stderr), "");
    assert_eq!(text(&out.stdout).lines().count(), 1);
    let json: Value = serde_json::from_slice(&out.stdout).unwrap();
    let elements = json.as_array().unwrap();
    // Two tests of each configuration, the reference first.
    let labels: Vec<&str> = elements
        .iter()
        .map(|e| e["label"].as_str().unwrap())
        .collect();
    let expected = [
        "plain.gguf: stock, mmap",
        "plain.gguf: stock, no mmap",
        "plain.gguf: dropping",
        "converted.gguf: auto",
        "converted.gguf: expand",
    ];
    assert_eq!(labels, expected.map(|label| [label; 2]).concat());
    for (i, element) in elements.iter().enumerate() {
        let (n_prompt, n_gen) = if i % 2 == 0 { (40, 0) } else { (0, 4) };
        assert_eq!(element["n_prompt"], n_prompt);
        assert_eq!(element["n_gen"], n_gen);
        assert_eq!(element["n_batch"], 2048);
        assert_eq!(element["n_ubatch"], 512);
        assert_eq!(element["n_threads"], 1);
        assert_eq!(element["use_mmap"], i / 2 != 1);
        assert_eq!(element["stock"], i / 2 < 2);
        assert_eq!(element["reference"], expected[0]);
        for number in [
            "model_size",
            "model_n_params",
            "avg_ns",
            "avg_ts",
            "median_ts",
            "ratio_median",
            "ratio_min",
            "ratio_max",
            "load_ms",
            "load_ratio_median",
            #[cfg(target_os = "linux")]
            "cpu_ratio_median",
            "file_bytes",
        ] {
            assert!(
                element[number].as_f64().unwrap() > 0.0,
                "{number}: {element}"
            );
        }
        for samples in ["samples_ns", "samples_ts", "samples_load_ms"] {
            assert_eq!(element[samples].as_array().unwrap().len(), 3, "{samples}");
        }
        assert!(element["stddev_ts"].as_f64().unwrap() >= 0.0);
        for string in ["build_commit", "cpu_info", "model_type", "model_filename"] {
            assert!(element[string].is_string(), "{string}");
        }
        for memory in ["memory", "memory_after_load"] {
            let memory = element[memory].as_object().unwrap();
            let names: Vec<&str> = memory.keys().map(String::as_str).collect();
            assert_eq!(
                names,
                [
                    "pss_bytes",
                    "weights_pss_bytes",
                    "logical_weight_bytes",
                    "unique_weight_bytes",
                    "shared_bytes",
                    "vmas"
                ]
            );
        }
    }
    assert_eq!(elements[0]["ratio_median"], 1.0);
    assert_eq!(elements[0]["ratio_max"], 1.0);
    let weights = |i: usize| elements[i]["memory"]["weights_pss_bytes"].as_u64().unwrap();
    let shared = |i: usize| elements[i]["memory"]["shared_bytes"].as_u64().unwrap();
    assert_eq!(elements[6]["resolve"], "map");
    assert_eq!(elements[8]["resolve"], "expand");
    assert!(shared(6) > 500_000);
    assert_eq!([shared(0), shared(2), shared(4), shared(8)], [0; 4]);
    // Each in a process of its own: nobody else's mapping halves the pages.
    let size = elements[0]["model_size"].as_u64().unwrap();
    for i in [0, 2, 4, 8] {
        assert!(weights(i) > size * 9 / 10, "{}", elements[i]);
    }
    assert!(
        weights(6) < size - shared(6) + (100 << 10),
        "{}",
        elements[6]
    );
}

#[test]
fn configurations_take_turns_and_every_second_round_goes_back() {
    let models = Models::new();
    let out = bench(
        &[&models.plain(), &models.converted(), &models.plain()],
        &["-p", "8", "-n", "0", "-r", "3"],
    );
    assert_eq!(out.status.code(), Some(0), "{out:?}");
    let order: Vec<&str> = text(&out.stderr)
        .lines()
        .map(|line| line.split_once(": loaded in").unwrap().0)
        .collect();
    let [a, b, c] = [
        "plain.gguf: dropping",
        "converted.gguf: auto",
        "plain.gguf: dropping #2",
    ];
    let rounds = [(1, [a, b, c]), (2, [c, b, a]), (3, [a, b, c])];
    let expected: Vec<String> = rounds
        .iter()
        .flat_map(|(n, order)| order.map(|label| format!("{n}/3 {label}")))
        .collect();
    assert_eq!(order, expected);
}

#[test]
fn markdown_is_one_table() {
    let models = Models::new();
    let out = bench(
        &[&models.plain(), &models.converted()],
        &["-p", "8", "-n", "2", "-r", "1", "-o", "md", "-q"],
    );
    assert_eq!(out.status.code(), Some(0), "{out:?}");
    let rows: Vec<Vec<&str>> = text(&out.stdout)
        .lines()
        .map(|line| {
            let inside = line.strip_prefix("| ").and_then(|l| l.strip_suffix(" |"));
            inside.unwrap().split(" | ").collect()
        })
        .collect();
    // A head, a rule, and two tests of each file.
    assert_eq!(rows.len(), 6);
    assert!(
        rows.iter().all(|row| row.len() == rows[0].len()),
        "{rows:?}"
    );
    assert!(rows[1].iter().all(|cell| ["---", "---:"].contains(cell)));
    let column = |name: &str| {
        let at = rows[0].iter().position(|cell| *cell == name).unwrap();
        rows[2..].iter().map(|row| row[at]).collect::<Vec<_>>()
    };
    assert_eq!(column("test"), ["pp8", "tg2", "pp8", "tg2"]);
    assert_eq!(column("configuration")[2], "converted.gguf: auto");
    assert_eq!(column("ratio")[..2], ["1", "1"]);
}

#[test]
fn the_table_names_every_configuration() {
    let models = Models::new();
    let out = bench(
        &[&models.converted()],
        &["-p", "0", "-n", "2", "-r", "1", "-q"],
    );
    assert_eq!(out.status.code(), Some(0), "{out:?}");
    let table = text(&out.stdout);
    assert_eq!(table.matches("converted.gguf: auto").count(), 3, "{table}");
    assert!(
        table.contains("tg2 t/s") && !table.contains("pp0"),
        "{table}"
    );
}

#[test]
fn mistakes_have_their_exit_status_and_say_what_to_do() {
    let models = Models::new();
    let (plain, converted) = (models.plain(), models.converted());
    let bert = models.folder.path().join("bert.gguf");
    ModelSpec::preset("tiny-bert")
        .unwrap()
        .write(&bert)
        .unwrap();
    let path = |path: &PathBuf| path.to_str().unwrap().to_owned();
    let cases: [(i32, Vec<String>, &str); 9] = [
        (2, vec![], "FILE"),
        (
            2,
            vec![path(&plain), "-r".into(), "0".into()],
            "--repetitions",
        ),
        (
            2,
            vec![path(&plain), "-b".into(), "0".into()],
            "--batch-size",
        ),
        (
            2,
            vec![
                path(&plain),
                "-p".into(),
                "0".into(),
                "-n".into(),
                "0".into(),
            ],
            "-p 0 -n 0",
        ),
        (2, vec![path(&plain), "-o".into(), "sql".into()], "json"),
        (3, vec![path(&plain), "no/such.gguf".into()], "no/such.gguf"),
        (3, vec![path(&plain), path(&bert)], "bert"),
        (
            3,
            vec!["--stock".into(), path(&converted)],
            "hint: expand it first",
        ),
        // What only llama.cpp finds out, in the worker.
        (3, vec![path(&broken(&models))], "broken.gguf"),
    ];
    for (code, args, message) in cases {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let out = bench(&[], &args);
        assert_eq!(out.status.code(), Some(code), "{args:?}: {out:?}");
        assert!(text(&out.stderr).contains(message), "{args:?}: {out:?}");
        assert_eq!(text(&out.stdout), "", "{args:?}");
        let errors = text(&out.stderr).matches("error: ").count();
        assert_eq!(errors, 1, "{args:?}: {out:?}");
    }
}

/// A valid GGUF that llama.cpp does not load.
fn broken(models: &Models) -> PathBuf {
    let path = models.folder.path().join("broken.gguf");
    let spec = ModelSpec {
        arch: "nonesuch".into(),
        ..ModelSpec::preset("tiny-llama").unwrap()
    };
    spec.write(&path).unwrap();
    path
}

#[test]
fn nothing_else_shows_the_workers_command() {
    let out = program().arg("help").output().unwrap();
    assert!(text(&out.stdout).contains("bench"));
    assert!(!text(&out.stdout).contains("worker"), "{out:?}");
}
