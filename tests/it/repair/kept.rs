//! Outputs stay what they were: the digests of what these conversions wrote
//! once are kept in `tests/data/kept.json`.
//!
//! Of a lossless file and of what `expand` gives back it is the whole file, of
//! others what they store: names, types, shapes, places and data. Repaired
//! weights are sums whose order depends on the processor and the libraries'
//! kernels for it, so theirs are compared on the kind of machine that made them.

use std::collections::BTreeMap;
use std::path::Path;

use headshare_format::Gguf;
use headshare_testmodels::{ModelSpec, self_merge};

use super::steps::{expand, repairing, words};
use crate::support::{json, program, root, written};

type Digests = BTreeMap<String, String>;

#[derive(serde::Serialize, serde::Deserialize)]
struct Kept {
    /// What every machine computes.
    everywhere: Digests,
    /// The processor that the others were computed on.
    processor: String,
    there: Digests,
}

fn whole(path: &Path) -> String {
    blake3::hash(&std::fs::read(path).unwrap()).to_string()
}

fn stored(path: &Path) -> String {
    let file = std::fs::read(path).unwrap();
    let gguf = Gguf::parse(&file).unwrap();
    let mut hasher = blake3::Hasher::new();
    for info in gguf.tensors() {
        let data = gguf.data_range(info);
        hasher.update(info.name.as_bytes());
        hasher.update(info.ggml_type.name().as_bytes());
        for number in info.dims.iter().chain([&info.offset]) {
            hasher.update(&number.to_le_bytes());
        }
        hasher.update(&file[data.start as usize..data.end as usize]);
    }
    hasher.finalize().to_string()
}

/// The processor's name and what it can do.
fn processor() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = info.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_once(": "))
            .map_or("", |(_, value)| value)
    };
    let flags = blake3::hash(field("flags").as_bytes()).to_hex();
    let cache = field("cache size");
    format!("{}, {cache}, {}", field("model name"), &flags[..16])
}

#[track_caller]
fn convert(source: &Path, out: &Path, more: &[&str]) {
    json(
        program()
            .arg("convert")
            .arg(source)
            .arg("-o")
            .arg(out)
            .arg("--json")
            .args(more),
    );
}

#[test]
fn outputs_are_what_they_were() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let (out, plain) = (file("out.gguf"), file("plain.gguf"));
    let mut found = Kept {
        everywhere: Digests::new(),
        processor: processor(),
        there: Digests::new(),
    };
    let again = |path: &Path| {
        let _ = std::fs::remove_file(path);
    };
    for preset in [
        "tiny-llama",
        "tiny-gqa",
        "tiny-gemma3",
        "tiny-phi3",
        "tiny-gpt2",
        "tiny-moe",
    ] {
        let source = written(folder.path(), preset);
        let merged = file("merged.gguf");
        again(&merged);
        self_merge(&source, &[0, 1, 1, 2, 2, 3], &merged).unwrap();
        for (name, what, more) in [
            ("lossless", &merged, &["--lossless"][..]),
            (
                "lossless, 64k",
                &merged,
                &["--lossless", "--page-size", "65536"],
            ),
            ("ratio", &source, &["--ratio", "0.4"]),
            (
                "ratio, merged",
                &merged,
                &["--ratio", "0.4", "--match", "separate"],
            ),
        ] {
            again(&out);
            again(&plain);
            convert(what, &out, more);
            expand(&out, &plain);
            let digest = if more[0] == "--lossless" {
                whole(&out)
            } else {
                stored(&out)
            };
            found.everywhere.insert(format!("{preset}, {name}"), digest);
            found
                .everywhere
                .insert(format!("{preset}, {name}, expanded"), whole(&plain));
        }
    }
    let text = words(folder.path());
    let wide = file("wide.gguf");
    // Rows of 256 elements, of which a unit's columns are whole blocks.
    let spec = ModelSpec {
        n_embd: 256,
        n_ff: 512,
        weight_type: headshare_testmodels::type_named("q4_1").unwrap(),
        ..ModelSpec::preset("tiny-gqa").unwrap()
    };
    spec.write(&wide).unwrap();
    let gqa = file("tiny-gqa.gguf");
    for (name, source, more) in [
        ("match", &gqa, &["--choose", "match"][..]),
        ("calibrated", &gqa, &[]),
        ("auto", &wide, &["--units", "auto"]),
        ("drop", &wide, &["--units", "drop"]),
    ] {
        again(&out);
        again(&plain);
        let mut command = repairing(source, &text, &out);
        command.args([
            "--ratio",
            "0.4",
            "--windows",
            "6",
            "--window",
            "64",
            "--json",
        ]);
        let result = json(command.args(more).env("RAYON_NUM_THREADS", "2"));
        assert_eq!(result["dry_run"], false);
        found.there.insert(name.to_owned(), stored(&out));
    }
    let kept = root().join("tests/data/kept.json");
    let shown = serde_json::to_string_pretty(&found).unwrap();
    let kept: Kept = serde_json::from_slice(&std::fs::read(kept).unwrap()).unwrap();
    assert_eq!(found.everywhere, kept.everywhere, "{shown}");
    if found.processor == kept.processor {
        assert_eq!(found.there, kept.there, "{shown}");
    } else {
        eprintln!("skipped: repaired files, kept from another processor");
    }
}
