//! What is printed, and the JSON that scripts depend on.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::{eval, path};
use crate::support::{self, Folder, Ran, SMOLLM2, needs, preset, valley};

fn keys(value: &serde_json::Value) -> Vec<&str> {
    value
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect()
}

#[test]
fn json_and_text() {
    let folder = Folder::new();
    let file = folder.file("llama.gguf");
    preset("tiny-llama").write(&file).unwrap();
    let other = folder.file("other.gguf");
    let spec = headshare_testmodels::ModelSpec {
        seed: 2,
        ..preset("tiny-llama")
    };
    spec.write(&other).unwrap();
    let text = valley();
    let args = [
        path(&file),
        "--text",
        path(&text),
        "--ctx",
        "64",
        "--chunks",
        "6",
    ];

    let report = eval(&[&args[..], &["--json"]].concat()).ok().json();
    assert_eq!(
        keys(&report),
        [
            "file",
            "bytes",
            "resolve",
            "text",
            "ctx",
            "chunks",
            "tokens",
            "perplexity",
            "stderr",
            "base"
        ]
    );
    assert_eq!(report["file"], path(&file));
    assert_eq!(report["bytes"], std::fs::metadata(&file).unwrap().len());
    assert_eq!((&report["ctx"], &report["chunks"]), (&64.into(), &6.into()));
    assert_eq!(report["tokens"], 6 * 31);
    assert!(report["base"].is_null());
    // Random weights know nothing: about as many guesses as tokens.
    assert!(report["perplexity"].as_f64().unwrap() > 100.0);
    assert!(report["stderr"].as_f64().unwrap() > 0.0);

    let shown = eval(&args).ok();
    assert_eq!(shown.stderr, "");
    let perplexity = format!(
        "{:.4} ± {:.4}",
        report["perplexity"].as_f64().unwrap(),
        report["stderr"].as_f64().unwrap()
    );
    assert!(shown.stdout.contains(&perplexity), "{shown:#?}");
    assert!(
        shown
            .stdout
            .contains("186 tokens scored in 6 windows of 64"),
        "{shown:#?}"
    );
    assert_eq!(shown.stdout.lines().count(), 2, "{shown:#?}");

    let with_base = [&args[..], &["--base", path(&other)]].concat();
    let report = eval(&[&with_base[..], &["--json"]].concat()).ok().json();
    let base = &report["base"];
    assert_eq!(
        keys(base),
        [
            "file",
            "bytes",
            "resolve",
            "perplexity",
            "stderr",
            "ratio",
            "ratio_stderr",
            "ln_ratio",
            "ln_ratio_stderr",
            "correlation",
            "kl_mean",
            "kl_stderr",
            "kl_median",
            "kl_p99",
            "kl_max",
            "same_top",
            "same_top_stderr",
            "delta_p_mean",
            "delta_p_mean_stderr",
            "delta_p_rms",
            "delta_p_rms_stderr",
            "delta_p_max"
        ]
    );
    assert_eq!(base["file"], path(&other));
    assert!(
        keys(base)[3..].iter().all(|key| base[*key].is_number()),
        "{report}"
    );
    let shown = eval(&with_base).ok();
    for (label, key, digits) in [("KL  ", "kl_mean", 5), ("ratio", "ratio", 5)] {
        let value = base[key].as_f64().unwrap();
        let line = shown.stdout.lines().find(|line| line.starts_with(label));
        assert!(
            line.unwrap().contains(&format!(" {value:.digits$} ± ")),
            "{shown:#?}"
        );
    }
    for label in ["against ", "same top ", "Δp "] {
        assert!(
            shown.stdout.lines().any(|line| line.starts_with(label)),
            "{shown:#?}"
        );
    }
}

#[test]
fn more_windows_than_there_are() {
    let folder = Folder::new();
    let file = folder.file("llama.gguf");
    preset("tiny-llama").write(&file).unwrap();
    let text = folder.write(
        "short.txt",
        "the quick brown fox jumps over the lazy dog\n".repeat(3),
    );
    let args = [
        "eval",
        "perplexity",
        path(&file),
        "--text",
        path(&text),
        "--ctx",
        "32",
        "--json",
        "-t",
        "1",
    ];
    let all = crate::support::run(&args.map(std::ffi::OsStr::new)).ok();
    let chunks = all.json()["chunks"].as_u64().unwrap();
    assert_eq!(all.stderr, "");
    let more: Vec<_> = args
        .iter()
        .chain(&["--chunks", "1000"])
        .map(std::ffi::OsStr::new)
        .collect();
    let more = crate::support::run(&more).ok();
    assert_eq!(more.stdout, all.stdout);
    assert_eq!(
        more.stderr,
        format!("the text has {chunks} windows of 32 tokens\n")
    );
}

/// A line end at the end of a file is not part of the text.
#[test]
fn the_last_line_end_does_not_count() {
    let folder = Folder::new();
    let file = folder.file("llama.gguf");
    preset("tiny-llama").write(&file).unwrap();
    let text = "the river rose in the night and fell in the morning ".repeat(2);
    let of = |name: &str, text: &str| {
        let text = folder.write(name, text);
        let report = eval(&[path(&file), "--text", path(&text), "--ctx", "8", "--json"])
            .ok()
            .json();
        (report["tokens"].clone(), report["perplexity"].clone())
    };
    assert_eq!(of("a.txt", &text), of("b.txt", &format!("{text}\n")));
}

/// Whether other programs run decides how many threads evaluate: that must not
/// change a bit of the result.
#[test]
fn threads_and_busy_neighbours_change_nothing() {
    needs!(SMOLLM2);
    let stop = AtomicBool::new(false);
    let measured = |threads: &[&str]| {
        let (model, text) = (support::smollm2(), valley());
        let (model, text) = (path(&model), path(&text));
        let args = ["-q", "eval", "perplexity", model, "--text", text];
        let args = [
            &args[..],
            &["--ctx", "128", "--chunks", "2", "--json"],
            threads,
        ]
        .concat();
        let mut command = support::program();
        command.timeout(Duration::from_secs(1200)).args(&args);
        Ran::of(&mut command, args.join(" ")).ok().json()
    };
    let alone = measured(&["-t", "1"]);
    assert_eq!(measured(&["-t", "2"]), alone);
    assert_eq!(measured(&["-t", "3"]), alone);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let besides = std::panic::catch_unwind(|| measured(&[]));
        stop.store(true, Ordering::Relaxed);
        assert_eq!(besides.unwrap(), alone);
    });
}
