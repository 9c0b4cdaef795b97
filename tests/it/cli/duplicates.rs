//! What is byte-equal is stored once, at every level at which files repeat
//! themselves, whatever else is done to the model.

use std::path::{Path, PathBuf};

use headshare_format::Gguf;
use headshare_testmodels::{ModelSpec, self_merge, type_named};
use serde_json::{Value, json};

use crate::support::{Folder, assert_same, preset, read};

/// Writes `spec`, in which bytes of a tensor are copied elsewhere: `(from, at,
/// to, at, length)`.
fn copied(
    folder: &Folder,
    spec: &ModelSpec,
    copies: &[(&str, usize, &str, usize, usize)],
) -> PathBuf {
    let path = folder.file("model.gguf");
    spec.write(&path).unwrap();
    let mut bytes = read(&path);
    let gguf = Gguf::parse(&bytes).unwrap();
    let start = |name: &str| gguf.data_range(gguf.tensor(name).unwrap()).start as usize;
    for &(from, at, to, place, len) in copies {
        let (from, to) = (start(from) + at, start(to) + place);
        bytes.copy_within(from..from + len, to);
    }
    std::fs::write(&path, bytes).unwrap();
    path
}

/// What a lossless conversion found; the file gives its source back, and is
/// smaller by about what it found.
#[track_caller]
fn lossless(folder: &Folder, source: &Path) -> Value {
    let (out, back) = (folder.file("out.gguf"), folder.file("back.gguf"));
    let result = run![
        "convert",
        source,
        "--lossless",
        "-o",
        out,
        "--force",
        "--json"
    ]
    .ok()
    .json();
    run!["expand", out, "-o", back, "--force"].ok();
    assert_same(&back, source);
    run!["verify", out, "--source", source].ok();
    let found = result["duplicates"].clone();
    let saved = result["saved"]["file_bytes"].as_i64().unwrap();
    let bytes = found["bytes"].as_i64().unwrap();
    assert!(saved > bytes - bytes / 4 - 100_000, "{result}");
    found
}

fn counts(found: &Value) -> [u64; 4] {
    ["tensors", "blocks", "experts", "runs"].map(|kind| found[kind].as_u64().unwrap())
}

#[test]
fn an_expert_that_is_another_is_stored_once() {
    let folder = Folder::new();
    let spec = ModelSpec {
        n_embd: 128,
        n_ff: 256,
        weight_type: type_named("f32").unwrap(),
        ..preset("tiny-moe")
    };
    let expert = 128 * 256 * 4;
    let (up, gate) = ("blk.1.ffn_up_exps.weight", "blk.2.ffn_gate_exps.weight");
    let source = copied(
        &folder,
        &spec,
        &[(up, 0, up, expert, expert), (up, 0, gate, expert, expert)],
    );
    let found = lossless(&folder, &source);
    assert_eq!(counts(&found), [0, 0, 2, 0], "{found}");
    assert_eq!(found["bytes"], 2 * expert);
}

#[test]
fn runs_of_rows_are_found_wherever_they_are() {
    let folder = Folder::new();
    let spec = ModelSpec {
        n_embd: 256,
        n_vocab: 2048,
        n_ff: 1024,
        weight_type: type_named("f32").unwrap(),
        ..preset("tiny-llama")
    };
    let row = 256 * 4;
    let (embd, up) = ("token_embd.weight", "blk.1.ffn_up.weight");
    let source = copied(
        &folder,
        &spec,
        &[
            // Within a tensor, to another tensor, and too little to be worth it.
            (embd, 100 * row, embd, 1000 * row, 200 * row),
            (embd, 400 * row, up, 300 * row, 100 * row),
            (embd, 600 * row, up, 600 * row, 40 * row),
        ],
    );
    let found = lossless(&folder, &source);
    assert_eq!(counts(&found), [0, 0, 0, 2], "{found}");
    assert_eq!(found["bytes"], 300 * row);
    let said = run![
        "convert",
        source,
        "--lossless",
        "-o",
        folder.file("x"),
        "--dry-run"
    ]
    .ok();
    assert!(
        said.stdout.contains("exact duplicates: 2 runs of rows, "),
        "{said:#?}"
    );
}

/// All rows of a tensor equal: nothing refers to itself, nothing fails.
#[test]
fn what_repeats_itself_all_over_is_no_trouble() {
    let folder = Folder::new();
    let spec = ModelSpec {
        n_embd: 256,
        n_vocab: 2048,
        weight_type: type_named("f32").unwrap(),
        ..preset("tiny-llama")
    };
    let row = 256 * 4;
    let embd = "token_embd.weight";
    let copies: Vec<_> = (0..1024).map(|i| (embd, 0, embd, i * row, row)).collect();
    let source = copied(&folder, &spec, &copies);
    lossless(&folder, &source);
    // A pattern longer than a grain.
    let copies: Vec<_> = (1..4)
        .map(|i| (embd, 0, embd, i * 500 * row, 500 * row))
        .collect();
    let source = copied(&folder, &spec, &copies);
    let found = lossless(&folder, &source);
    assert_eq!(found["bytes"], 3 * 500 * row);
}

/// Layers written twice stay duplicates of each other when both are edited
/// alike.
#[test]
fn duplicates_are_found_in_what_a_plan_makes() {
    let folder = Folder::new();
    let spec = ModelSpec {
        n_ff: 128,
        weight_type: type_named("q8_0").unwrap(),
        ..preset("tiny-llama")
    };
    let (single, merged) = (folder.file("single.gguf"), folder.file("merged.gguf"));
    spec.write(&single).unwrap();
    self_merge(&single, &[0, 1, 1, 2, 3], &merged).unwrap();
    let digest = format!("blake3:{}", blake3::hash(&read(&merged)).to_hex());
    let narrow = |layer: u32| json!({"narrow": {"layer": layer, "channels": [[0, 96]]}});
    let store = |layer: u32, to: &str| json!({"store": {"tensor": format!("blk.{layer}.attn_output.weight"), "type": to}});
    let convert = |edits: Vec<Value>| {
        let plan = json!({"version": 2, "source": digest, "edits": edits}).to_string();
        let plan = folder.write("plan.json", plan);
        let out = folder.file("out.gguf");
        let ran = run![
            "convert", merged, "--plan", plan, "-o", out, "--force", "--json"
        ];
        let found = ran.ok().json()["duplicates"].clone();
        run!["verify", out, "--source", merged].ok();
        let ran = run!["run", out, "-p", "a", "-n", "4", "--temp", "0", "--json"];
        assert_eq!(ran.ok().json()["tokens"].as_array().unwrap().len(), 4);
        found["tensors"].as_u64().unwrap()
    };
    // Nine tensors a layer.
    let alike = vec![narrow(1), narrow(2), store(1, "q4_0"), store(2, "q4_0")];
    assert_eq!(convert(alike), 9);
    let different = vec![narrow(1), store(1, "q4_0"), store(2, "q5_0")];
    assert_eq!(convert(different), 9 - 4);
}
