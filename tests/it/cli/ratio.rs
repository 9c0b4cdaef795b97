//! `convert --ratio`: units use other units' rows, and nothing else changes.

use std::path::Path;

use headshare_testmodels::{ModelSpec, PerLayer, self_merge, type_named};
use serde_json::Value;

use super::oracle::Model;
use super::raw::Raw;
use crate::support::{
    Folder, GEMMA, Ran, SMOLLM2, assert_bytes, assert_same, gemma, needs, preset, program, read,
    small, smollm2,
};

const FUNCTIONS: [&str; 6] = ["qk", "q", "k", "v", "qkv", "separate"];

/// Plans, converts, verifies and expands `source`; holds each step against the
/// others and the expanded file against the oracle. Returns what
/// `convert --json` said.
#[track_caller]
fn check(source: &Path, ratio: &str, function: &str, page_size: &str) -> Value {
    let folder = Folder::new();
    let (converted, expanded) = (folder.file("converted.gguf"), folder.file("expanded.gguf"));
    let mut plan = run![
        "plan", source, "--ratio", ratio, "--match", function, "--json"
    ]
    .ok()
    .json();
    let result = run![
        "convert",
        source,
        "-o",
        converted,
        "--ratio",
        ratio,
        "--match",
        function,
        "--page-size",
        page_size,
        "--json"
    ]
    .ok()
    .json();
    if page_size == "4096" {
        assert_eq!(plan["expected"]["saved"], result["saved"]);
    }
    plan.as_object_mut().unwrap().remove("expected");
    assert_eq!(result["plan"], plan);
    let inspection = run!["inspect", converted, "--json"].ok().json();
    assert_eq!(inspection["sharing"]["plan"], plan);
    assert_eq!(inspection["sharing"]["saved"], result["saved"]);

    let report = run!["verify", converted, "--source", source, "--json"]
        .ok()
        .json();
    let no_aliases = plan["edits"].as_array().unwrap().is_empty();
    assert_eq!(report["lossless"], no_aliases, "{report}");
    run!["verify", converted].ok();
    run!["expand", converted, "-o", expanded].ok();
    let model = Model::new(read(source));
    assert_bytes(
        &read(&expanded),
        &model.expanded(&plan),
        "the expanded file and the oracle's",
    );
    result
}

#[track_caller]
fn write(folder: &Folder, spec: &ModelSpec) -> std::path::PathBuf {
    let path = folder.file("source.gguf");
    spec.write(&path).unwrap();
    path
}

fn aliases(result: &Value) -> Vec<&Value> {
    let edits = result["plan"]["edits"].as_array().unwrap();
    edits.iter().map(|edit| &edit["share"]).collect()
}

#[test]
fn smollm2_with_every_match_function() {
    needs!(SMOLLM2);
    for function in FUNCTIONS {
        let result = check(&smollm2(), "0.3", function, "4096");
        let n = if function == "separate" { 3 * 27 } else { 27 };
        assert_eq!(aliases(&result).len(), n, "{function}");
        // A unit's q, k and v blocks: 5 x 64 rows of 576 Q4_1 weights.
        let shared = 27 * 5 * 64 * 576 / 32 * 20;
        let saved = result["saved"]["file_bytes"].as_i64().unwrap();
        assert!(
            saved > shared * 9 / 10 && saved < shared,
            "{function}: {saved} of {shared}"
        );
    }
}

#[test]
fn gemma_whose_types_vary_by_layer() {
    needs!(GEMMA);
    let result = check(&gemma(), "0.3", "qk", "16384");
    assert_eq!(aliases(&result).len(), 5);
    assert!(result["saved"]["resident_bytes"].as_i64().unwrap() > 3_000_000);
}

#[test]
fn the_same_arguments_give_the_same_bytes_with_any_number_of_threads() {
    needs!(SMOLLM2);
    let folder = Folder::new();
    let [a, b, c] = ["a", "b", "c"].map(|name| folder.file(name));
    run!["convert", smollm2(), "-o", a, "--ratio", "0.3"].ok();
    run!["convert", smollm2(), "-o", b, "--ratio", "0.3"].ok();
    assert_same(&a, &b);
    let mut command = program();
    command.env("RAYON_NUM_THREADS", "1");
    command
        .arg("convert")
        .arg(smollm2())
        .args(["--ratio", "0.3", "-o"])
        .arg(&c);
    Ran::of(&mut command, "convert on one thread".to_owned()).ok();
    assert_same(&a, &c);
    // Nor does the source's path matter.
    let copy = folder.file("copy.gguf");
    std::fs::copy(smollm2(), &copy).unwrap();
    run!["convert", copy, "-o", b, "--ratio", "0.3", "--force"].ok();
    assert_same(&a, &b);
}

#[test]
fn carrying_out_a_plan_gives_the_bytes_that_matching_gives() {
    needs!(SMOLLM2);
    let folder = Folder::new();
    for function in FUNCTIONS {
        let (plan, a, b) = (folder.file("plan.json"), folder.file("a"), folder.file("b"));
        let arguments = ["--ratio", "0.3", "--match", function];
        let [r, ratio, m, function] = arguments;
        run![
            "plan",
            smollm2(),
            r,
            ratio,
            m,
            function,
            "-o",
            plan,
            "--force"
        ]
        .ok();
        run![
            "convert",
            smollm2(),
            r,
            ratio,
            m,
            function,
            "-o",
            a,
            "--force"
        ]
        .ok();
        run!["convert", smollm2(), "--plan", plan, "-o", b, "--force"].ok();
        assert_same(&a, &b);
    }
}

#[test]
fn a_plan_file_is_what_plan_prints_as_json() {
    needs!(SMOLLM2);
    let folder = Folder::new();
    let path = folder.file("plan.json");
    let printed = run!["plan", smollm2(), "--ratio", "0.1", "--json", "-o", path]
        .ok()
        .json();
    let written: Value = serde_json::from_slice(&read(&path)).unwrap();
    assert_eq!(printed, written);
    assert_eq!(folder.names(), ["plan.json"]);
    let fields: Vec<&String> = written.as_object().unwrap().keys().collect();
    assert_eq!(fields, ["version", "source", "choice", "edits", "expected"]);
    let choice = serde_json::json!({"by": "qk", "ratio": 0.1, "units": 90});
    assert_eq!(written["choice"], choice);
    assert_eq!(written["edits"].as_array().unwrap().len(), 9);
}

#[test]
fn exact_duplicates_are_shared_beside_the_plan() {
    needs!(SMOLLM2);
    let folder = Folder::new();
    let merge = folder.file("merge.gguf");
    let layers: Vec<u32> = (0..20).chain(10..30).collect();
    self_merge(&smollm2(), &layers, &merge).unwrap();
    let result = check(&merge, "0.1", "qk", "4096");
    assert_eq!(aliases(&result).len(), 12);
    // Exact copies score 1 and come first.
    for alias in aliases(&result) {
        assert_eq!(alias["score"], 1.0);
        assert_eq!(
            alias["layer"].as_u64().unwrap(),
            alias["matched_layer"].as_u64().unwrap() + 10
        );
    }
    // Of ten repeated layers of nine tensors, the six of the first four layers
    // that the plan does not touch, and all nine of the others.
    let tensors = result["duplicates"]["tensors"].as_u64().unwrap();
    assert!(tensors >= 4 * 6 + 6 * 9, "{}", result["duplicates"]);
    let lossless = folder.file("lossless.gguf");
    let lossless = run!["convert", merge, "--lossless", "-o", lossless, "--json"]
        .ok()
        .json();
    // The plan's twelve units are duplicates too; the plan makes the header longer.
    let [a, b] = [&result, &lossless].map(|r| &r["saved"]);
    assert_eq!(a["resident_bytes"], b["resident_bytes"]);
    let [a, b] = [a, b].map(|saved| saved["file_bytes"].as_u64().unwrap());
    assert!(a <= b && b - a <= 8192, "{a} {b}");
}

#[test]
fn units_of_different_types_never_share() {
    let folder = Folder::new();
    // v of the last two layers is larger.
    let spec = ModelSpec {
        weight_type: type_named("q8_0").unwrap(),
        types: ["blk.2.attn_v.weight", "blk.3.attn_v.weight"]
            .map(|name| (name.to_owned(), type_named("f16").unwrap()))
            .to_vec(),
        ..preset("tiny-llama")
    };
    // Types go by the names without the layer, so it is written in two halves.
    let mut raw = Raw::parse(&spec.to_bytes().unwrap());
    let other = ModelSpec {
        types: vec![("attn_v.weight".to_owned(), type_named("f16").unwrap())],
        ..spec.clone()
    };
    let other = Raw::parse(&other.to_bytes().unwrap());
    for name in ["blk.2.attn_v.weight", "blk.3.attn_v.weight"] {
        *raw.tensor(name) = other.clone().tensor(name).clone();
    }
    let source = folder.write("source.gguf", raw.bytes());
    let result = check(&source, "1", "qk", "4096");
    // Layers 1 and 3 share with 0 and 2; layer 2 finds nothing before it.
    assert_eq!(aliases(&result).len(), 8);
    for alias in aliases(&result) {
        let layers = ["layer", "donor_layer"].map(|key| alias[key].as_u64().unwrap());
        assert!(layers == [1, 0] || layers == [3, 2], "{alias}");
    }
    let separate = check(&source, "1", "separate", "4096");
    for alias in aliases(&separate) {
        let layers = ["layer", "donor_layer"].map(|key| alias[key].as_u64().unwrap());
        let across = layers[0] >= 2 && layers[1] < 2;
        assert!(
            alias["parts"] != serde_json::json!(["v"]) || !across,
            "{alias}"
        );
    }
    let note = run!["plan", source, "--ratio", "1"].ok().stderr;
    assert!(
        note.contains("note: 4 units have no earlier unit of the same types"),
        "{note}"
    );
}

#[test]
fn ratio_0_is_lossless() {
    let folder = Folder::new();
    let source = write(
        &folder,
        &ModelSpec {
            repeat: 2,
            ..small("tiny-gqa")
        },
    );
    let result = check(&source, "0.0", "qk", "4096");
    assert_eq!(aliases(&result).len(), 0);
    let (converted, expanded) = (folder.file("c"), folder.file("e"));
    run!["convert", source, "--ratio", "0", "-o", converted].ok();
    run!["expand", converted, "-o", expanded].ok();
    assert_same(&source, &expanded);
}

#[test]
fn ratio_1_shares_all_layers_but_the_first() {
    let folder = Folder::new();
    for name in ["tiny-llama", "tiny-gqa"] {
        let source = write(&folder, &preset(name));
        let result = check(&source, "1.0", "qkv", "4096");
        let units = result["plan"]["choice"]["units"].as_u64().unwrap();
        assert_eq!(aliases(&result).len() as u64, units - units / 4, "{name}");
        assert!(aliases(&result).iter().all(|a| a["donor_layer"] == 0));
    }
}

#[test]
fn a_model_of_one_layer_has_nothing_to_share() {
    let folder = Folder::new();
    let source = write(
        &folder,
        &ModelSpec {
            n_layer: 1,
            ..preset("tiny-llama")
        },
    );
    for ratio in ["0.0", "0.3", "1.0"] {
        assert_eq!(aliases(&check(&source, ratio, "qk", "4096")).len(), 0);
    }
}

#[test]
fn every_layout_of_heads_expands_to_what_the_plan_says() {
    let folder = Folder::new();
    let tiny = ModelSpec::PRESETS.iter().filter(|n| n.starts_with("tiny"));
    let with_heads = tiny.filter(|name| preset(name).n_head.at(0) > 0);
    for name in with_heads {
        let source = write(&folder, &preset(name));
        for function in ["qk", "separate"] {
            let result = check(&source, "0.5", function, "4096");
            assert!(!aliases(&result).is_empty(), "{name}");
        }
        check(&source, "0.3", "qkv", "65536");
    }
}

#[test]
fn quantized_heads_of_odd_sizes_expand_to_what_the_plan_says() {
    let folder = Folder::new();
    for (name, weight_type) in [
        ("tiny-llama", "q4_0"),
        ("tiny-gpt2", "q5_1"),
        ("tiny-phi3", "q8_0"),
    ] {
        let spec = ModelSpec {
            n_embd: 96,
            n_head: PerLayer::All(6),
            n_head_kv: PerLayer::All(if name == "tiny-phi3" { 3 } else { 6 }),
            n_ff: 160,
            weight_type: type_named(weight_type).unwrap(),
            random_padding: true,
            version: 2,
            ..preset(name)
        };
        let source = write(&folder, &spec);
        for function in FUNCTIONS {
            check(&source, "0.4", function, "4096");
        }
    }
}
