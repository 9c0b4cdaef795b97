//! Against llama.cpp's own llama-perplexity, where HEADSHARE_LLAMA_PERPLEXITY
//! names one. Its sources are in the PyPI sdist llama-cpp-python; built outside
//! of the repository, with this machine's kernels as ours:
//!
//! ```text
//! python3 -m venv v && v/bin/pip install scikit-build-core cmake ninja
//! v/bin/pip download --no-deps --no-binary :all: --no-build-isolation llama-cpp-python
//! tar xf llama_cpp_python-*.tar.gz
//! v/bin/cmake -S llama_cpp_python-*/vendor/llama.cpp -B build -DCMAKE_BUILD_TYPE=Release \
//!     -DGGML_NATIVE=ON -DLLAMA_CURL=OFF -DBUILD_SHARED_LIBS=OFF \
//!     -DCMAKE_C_FLAGS="-mno-amx-tile -mno-amx-int8 -mno-amx-bf16" \
//!     -DCMAKE_CXX_FLAGS="-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
//! v/bin/cmake --build build --target llama-perplexity -j2
//! HEADSHARE_LLAMA_PERPLEXITY=build/bin/llama-perplexity cargo test --release --workspace \
//!     --test it perplexity::stock
//! ```

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{converted_smollm2, path};
use crate::support::{Folder, GEMMA, SMOLLM2, gemma, needs, root, smollm2, valley};

/// llama-perplexity; `None` says why the test is skipped.
fn stock() -> Option<PathBuf> {
    let program = std::env::var_os("HEADSHARE_LLAMA_PERPLEXITY").map(PathBuf::from);
    if program.is_none() {
        eprintln!("skipped: HEADSHARE_LLAMA_PERPLEXITY names no llama-perplexity");
    }
    program
}

/// WikiText-2's validation text: its last fifth, from a line on, written into
/// `folder`. As `tail -c "$(( $(wc -c < F) / 5 ))" F | tail -n +2`.
fn last_fifth(folder: &Folder) -> Option<PathBuf> {
    let data = root().join("../shared/data/wikitext2-valid.txt");
    let Ok(text) = std::fs::read(&data) else {
        eprintln!("skipped: there is no ../shared/data/wikitext2-valid.txt");
        return None;
    };
    let tail = &text[text.len() - text.len() / 5..];
    let line = tail.iter().position(|&b| b == b'\n').unwrap() + 1;
    Some(folder.write("last-fifth.txt", &tail[line..]))
}

/// What llama-perplexity prints, on both streams.
fn run_stock(program: &Path, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    let printed = [output.stdout, output.stderr].concat();
    let printed = String::from_utf8_lossy(&printed).into_owned();
    assert!(output.status.success(), "{args:?}: {printed}");
    printed
}

/// The two numbers behind `label`.
#[track_caller]
fn numbers(printed: &str, label: &str) -> (f64, f64) {
    let line = printed.lines().find(|line| line.contains(label));
    let line = line.unwrap_or_else(|| panic!("no {label:?} in {printed}"));
    let after = line.split_once(label).unwrap().1;
    let mut numbers = after
        .split(|c: char| !(c.is_ascii_digit() || c == '.' || c == '-'))
        .filter_map(|word| word.parse::<f64>().ok());
    let first = numbers.next().unwrap();
    (first, numbers.next().unwrap_or(0.0))
}

/// On all cores: one evaluation after the other.
fn ours(args: &[&str]) -> serde_json::Value {
    let mut command = crate::support::program();
    command.timeout(std::time::Duration::from_secs(3600));
    command
        .args(["-q", "eval", "perplexity", "--json"])
        .args(args);
    crate::support::Ran::of(&mut command, args.join(" "))
        .ok()
        .json()
}

#[track_caller]
fn assert_digits(ours: &serde_json::Value, stock: f64, off: f64, what: &str) {
    let ours = ours.as_f64().unwrap();
    println!("{what}: {ours} here, {stock} stock");
    assert!(
        (ours - stock).abs() <= off * stock.abs(),
        "{what}: {ours} and {stock}"
    );
}

/// Four digits.
const DIGITS: f64 = 5e-5;

#[test]
fn stock_perplexity_of_smollm2_on_the_last_fifth_of_wikitext() {
    needs!(SMOLLM2);
    let folder = Folder::new();
    let (Some(stock), Some(text)) = (stock(), last_fifth(&folder)) else {
        return;
    };
    let model = smollm2();
    let printed = run_stock(&stock, &["-m", path(&model), "-f", path(&text)]);
    let (perplexity, stderr) = numbers(&printed, "Final estimate: PPL =");
    let ours = ours(&[path(&model), "--text", path(&text)]);
    assert_digits(&ours["perplexity"], perplexity, DIGITS, "perplexity");
    assert_digits(&ours["stderr"], stderr, 1e-3, "its error");
}

/// Other windows, parts of windows, and a vocabulary with BOS.
#[test]
fn stock_perplexity_in_other_shapes() {
    needs!(SMOLLM2, GEMMA);
    let Some(stock) = stock() else { return };
    let (smollm2, gemma, text) = (smollm2(), gemma(), valley());
    for (model, ctx, batch) in [
        (&smollm2, "128", "512"),
        (&smollm2, "200", "64"),
        (&gemma, "256", "512"),
    ] {
        let printed = run_stock(
            &stock,
            &[
                "-m",
                path(model),
                "-f",
                path(&text),
                "-c",
                ctx,
                "-b",
                batch,
                "--chunks",
                "4",
            ],
        );
        let (perplexity, _) = numbers(&printed, "Final estimate: PPL =");
        let ours = ours(&[
            path(model),
            "--text",
            path(&text),
            "--ctx",
            ctx,
            "-b",
            batch,
            "--chunks",
            "4",
        ]);
        assert_digits(
            &ours["perplexity"],
            perplexity,
            DIGITS,
            &format!("windows of {ctx}"),
        );
    }
}

/// llama-perplexity keeps a reference's log-probabilities in 16 bits and
/// forgets those below e^-16: its divergence is a little different.
#[test]
fn stock_divergence_of_a_converted_file() {
    needs!(SMOLLM2);
    let folder = Folder::new();
    let (Some(stock), Some(text)) = (stock(), last_fifth(&folder)) else {
        return;
    };
    let base = smollm2();
    let converted = converted_smollm2(&folder, "0.1");
    let expanded = folder.file("expanded.gguf");
    run!("expand", converted, "-o", expanded, "-q").ok();
    let logits = folder.file("logits");
    let common = [
        "-f",
        path(&text),
        "--chunks",
        "8",
        "--kl-divergence-base",
        path(&logits),
    ];
    run_stock(&stock, &[&["-m", path(&base)], &common[..]].concat());
    let printed = run_stock(
        &stock,
        &[&["-m", path(&expanded), "--kl-divergence"], &common[..]].concat(),
    );
    let ours = ours(&[
        path(&converted),
        "--base",
        path(&base),
        "--text",
        path(&text),
        "--chunks",
        "8",
    ]);
    let against = &ours["base"];
    let percent = |label: &str| {
        let (value, error) = numbers(&printed, label);
        (value / 100.0, error / 100.0)
    };
    let (perplexity, stderr) = numbers(&printed, "Mean PPL(Q)                   :");
    assert_digits(&ours["perplexity"], perplexity, DIGITS, "perplexity");
    assert_digits(&ours["stderr"], stderr, 1e-3, "its error");
    let (ratio, stderr) = numbers(&printed, "Mean PPL(Q)/PPL(base)         :");
    assert_digits(&against["ratio"], ratio, 1e-4, "ratio");
    assert_digits(&against["ratio_stderr"], stderr, 1e-2, "its error");
    let (ln_ratio, stderr) = numbers(&printed, "Mean ln(PPL(Q)/PPL(base))     :");
    assert_digits(&against["ln_ratio"], ln_ratio, 1e-3, "ln ratio");
    assert_digits(&against["ln_ratio_stderr"], stderr, 1e-2, "its error");
    let (divergence, stderr) = numbers(&printed, "Mean    KLD:");
    assert_digits(&against["kl_mean"], divergence, 1e-2, "divergence");
    assert_digits(&against["kl_stderr"], stderr, 1e-2, "its error");
    for (key, label) in [
        ("kl_median", "Median  KLD:"),
        ("kl_p99", "99.0%   KLD:"),
        ("kl_max", "Maximum KLD:"),
    ] {
        assert_digits(&against[key], numbers(&printed, label).0, 1e-2, key);
    }
    let (same_top, stderr) = percent("Same top p:");
    assert_digits(&against["same_top"], same_top, 1e-3, "same top");
    assert_digits(&against["same_top_stderr"], stderr, 1e-2, "its error");
    let (delta_p, stderr) = percent("Mean    Δp:");
    assert_digits(&against["delta_p_mean"], delta_p, 1e-2, "change");
    assert_digits(&against["delta_p_mean_stderr"], stderr, 1e-2, "its error");
    let (rms, stderr) = percent("RMS Δp    :");
    assert_digits(&against["delta_p_rms"], rms, 1e-2, "RMS change");
    assert_digits(&against["delta_p_rms_stderr"], stderr, 1e-2, "its error");
}
