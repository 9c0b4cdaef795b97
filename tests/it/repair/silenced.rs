//! Units that are silenced: they stay, and their columns of `attn_output` are zeros.

use std::path::{Path, PathBuf};

use headshare_gguf::input::ModelFile;
use headshare_testmodels::{ModelSpec, type_named};
use serde_json::{Value, json as object};

use super::dropped::{by_plan, perplexity, plan_of, silenced};
use super::steps::{DECODERS, rows, tokens, verify, words};
use crate::support::{GEMMA, gemma, json, needs, preset, program, written};

fn silence(units: &[(u32, u32)]) -> Value {
    let edit = |(layer, unit): &(u32, u32)| object!({"silence": {"layer": layer, "unit": unit}});
    units.iter().map(edit).collect()
}

/// Whether all columns of a unit, of `per_layer`, are zeros.
#[track_caller]
pub fn is_silent(file: &Path, layer: u32, unit: usize, per_layer: usize) -> bool {
    let rows = rows(file, &format!("blk.{layer}.attn_output.weight"));
    let width = rows[0].len() / per_layer;
    let own = unit * width..(unit + 1) * width;
    rows.iter()
        .all(|row| row[own.clone()].iter().all(|&v| v == 0.0))
}

#[test]
fn a_silenced_unit_adds_nothing_in_any_architecture() {
    let folder = tempfile::tempdir().unwrap();
    let text = words(folder.path());
    let at = |name: &str| folder.path().join(name);
    for name in DECODERS {
        let source = written(folder.path(), name);
        let map = ModelFile::open(&source).unwrap();
        let map = headshare_gguf::model::AttentionMap::of(&map.gguf).unwrap();
        let per_layer = map.layers[1].n_head_kv;
        let units = [(0, 0), (1, per_layer - 1)];
        let plan = plan_of(&source, folder.path(), silence(&units));
        let [out, by_hand] = ["out", "by-hand"].map(at);
        let _ = std::fs::remove_file(&out);
        by_plan(&source, &plan, &out).success();
        silenced(&source, &by_hand, &units, per_layer);
        // The same numbers, so the same logits to the bit.
        for layer in 0..2 {
            let tensor = format!("blk.{layer}.attn_output.weight");
            assert_eq!(rows(&out, &tensor), rows(&by_hand, &tensor), "{name}");
        }
        let both = [&out, &by_hand].map(|file| perplexity(file, &text));
        assert_eq!(both[0], both[1], "{name}");
        assert_ne!(both[0], perplexity(&source, &text), "{name}");
        assert_eq!(tokens(&out), tokens(&by_hand), "{name}");
        // It is a plain file of the same architecture, which saves nothing.
        let plain = ModelFile::open(&out).unwrap();
        assert!(plain.table.is_none());
        assert_eq!(
            plain.gguf.architecture().unwrap(),
            Some(map.architecture.name)
        );
        assert!(plain.len() >= std::fs::metadata(&source).unwrap().len());
        let report = verify(&out, &source);
        assert_eq!(
            (&report["ok"], &report["replaced_tensors"]),
            (&true.into(), &Value::Null)
        );
        // Bytes that should be zero, and are not, are found.
        let info = plain.gguf.tensor("blk.0.attn_output.weight").unwrap();
        let mut bytes = std::fs::read(&out).unwrap();
        bytes[plain.gguf.data_range(info).start as usize] ^= 1;
        std::fs::write(at("bad"), bytes).unwrap();
        let mut command = program();
        command
            .arg("verify")
            .arg(at("bad"))
            .arg("--source")
            .arg(&source);
        command.assert().code(4);
    }
}

#[test]
fn silencing_goes_with_every_other_edit() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let spec = ModelSpec {
        n_embd: 256,
        weight_type: type_named("q8_0").unwrap(),
        ..preset("tiny-gqa")
    };
    let source = at("source");
    spec.write(&source).unwrap();
    let edits = object!([
        {"silence": {"layer": 1, "unit": 0}},
        {"silence": {"layer": 2, "unit": 1}},
        {"drop": {"layer": 2, "unit": 0}},
        {"share": {"layer": 1, "unit": 0, "donor_layer": 2, "donor_unit": 1,
            "parts": ["q", "k", "v"]}},
        {"store": {"tensor": "blk.1.attn_output.weight", "type": "q4_1"}},
    ]);
    let plan = plan_of(&source, folder.path(), edits.clone());
    by_plan(&source, &plan, &at("out")).success();
    by_plan(&source, &plan, &at("again")).success();
    assert_eq!(
        std::fs::read(at("out")).unwrap(),
        std::fs::read(at("again")).unwrap()
    );
    assert_eq!(verify(&at("out"), &source)["ok"], true);
    let mut expand = program();
    expand
        .arg("expand")
        .arg(at("out"))
        .arg("-o")
        .arg(at("plain"));
    expand.assert().success();
    assert!(is_silent(&at("plain"), 1, 0, 2) && !is_silent(&at("plain"), 1, 1, 2));
    // Of layer 2 only the silent unit is left.
    assert!(is_silent(&at("plain"), 2, 0, 1));
    assert_eq!(tokens(&at("out")), tokens(&at("plain")));

    let refused = |edits: Value, says: &str| {
        let plan = plan_of(&source, folder.path(), edits);
        let assert = by_plan(&source, &plan, &at("no")).code(3);
        let stderr = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
        assert!(stderr.contains(says) && !at("no").exists(), "{stderr}");
    };
    refused(
        silence(&[(1, 7)]),
        "edits[0].silence.unit: the model has no layer 1, unit 7",
    );
    refused(
        silence(&[(1, 1), (1, 1)]),
        "edits[1].silence: layer 1, unit 1 is silenced twice",
    );
    let both = object!([{"silence": {"layer": 1, "unit": 1}}, {"drop": {"layer": 1, "unit": 1}}]);
    refused(
        both,
        "edits[0].silence: layer 1, unit 1 is silenced twice, or dropped as well",
    );
}

/// Units of 16 columns in blocks of 32: blocks are encoded anew, which has digests.
#[test]
fn columns_that_are_no_whole_blocks_are_encoded_anew() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for weight_type in ["q4_0", "q4_1", "q8_0", "iq4_nl"] {
        let spec = ModelSpec {
            weight_type: type_named(weight_type).unwrap(),
            ..preset("tiny-llama")
        };
        let source = at("source");
        spec.write(&source).unwrap();
        let plan = plan_of(&source, folder.path(), silence(&[(1, 1), (2, 2), (2, 3)]));
        for out in ["out", "again"] {
            let _ = std::fs::remove_file(at(out));
            by_plan(&source, &plan, &at(out)).success();
        }
        assert_eq!(
            std::fs::read(at("out")).unwrap(),
            std::fs::read(at("again")).unwrap()
        );
        let report = verify(&at("out"), &source);
        assert_eq!(
            (&report["ok"], &report["replaced_tensors"]),
            (&true.into(), &1.into())
        );
        let [old, new] = [&source, &at("out")].map(|f| rows(f, "blk.1.attn_output.weight"));
        let (mut lost, mut left, mut all) = (0f64, 0f64, 0f64);
        for (old, new) in old.iter().zip(&new) {
            for (i, (old, new)) in old.iter().zip(new).enumerate() {
                match i {
                    16..32 => left += f64::from(*new).powi(2),
                    _ => lost += f64::from(old - new).powi(2),
                }
                all += f64::from(*old).powi(2);
            }
        }
        println!(
            "{weight_type}: of the mean square {} is lost, {} left",
            lost / all,
            left / all
        );
        assert!((lost + left) / all < 0.003, "{weight_type}");
        if ["q4_0", "q8_0"].contains(&weight_type) {
            // There is a zero on every grid of these types.
            assert_eq!((lost, left), (0.0, 0.0), "{weight_type}");
        }
        assert!(is_silent(&at("out"), 2, 1, 2));
        assert!(!tokens(&at("out")).as_array().unwrap().is_empty());
    }
}

/// What repairs, quantizes or trains leaves silent what is silent.
#[test]
fn silent_units_do_not_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let text = words(folder.path());
    let at = |name: &str| folder.path().join(name);
    let spec = ModelSpec {
        n_embd: 128,
        weight_type: type_named("f16").unwrap(),
        ..preset("tiny-qwen2")
    };
    let source = at("source");
    spec.write(&source).unwrap();
    let plan = plan_of(&source, folder.path(), silence(&[(1, 1), (2, 0)]));
    let text = text.to_str().unwrap();
    let small = ["--windows", "6", "--window", "64"];
    let convert = |out: &PathBuf, more: &[&str]| {
        let mut command = program();
        command.arg("convert").arg(&source).arg("--plan").arg(&plan);
        command
            .arg("-o")
            .arg(out)
            .args(small)
            .args(more)
            .arg("--json");
        let result = json(&mut command);
        for (layer, unit) in [(1, 1), (2, 0)] {
            assert!(is_silent(out, layer, unit, 2), "{more:?}");
            assert!(!is_silent(out, layer, 1 - unit, 2), "{more:?}");
        }
        assert_eq!(verify(out, &source)["ok"], true, "{more:?}");
        assert_eq!(
            result["plan"]["edits"].as_array().unwrap()[0]["silence"]["layer"],
            1
        );
        result
    };
    let repaired = convert(&at("repaired"), &["--repair", text]);
    let tensors = repaired["repair"]["tensors"].as_array().unwrap();
    let refitted = |name: &str| {
        tensors
            .iter()
            .any(|t| t["name"] == name && !t["lambda"].is_null())
    };
    assert!(refitted("blk.1.attn_output.weight"), "{tensors:?}");
    for to in ["q4_0", "q4_1", "q8_0"] {
        convert(&at(to), &["--quantize", to, "--calibrate", text]);
    }
    convert(&at("both"), &["--quantize", "q4_0", "--repair", text]);
}

#[test]
fn a_real_model_without_numbers_of_heads_for_each_layer() {
    needs!(GEMMA);
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.gguf");
    let mut command = program();
    command.arg("convert").arg(gemma()).arg("-o").arg(&out);
    command.args(["--ratio", "0.1", "--baseline", "magnitude", "--json"]);
    let result = json(&mut command);
    let edits = result["plan"]["edits"].as_array().unwrap();
    assert_eq!(edits.len(), 1, "{edits:?}");
    let layer = edits[0]["silence"]["layer"].as_u64().unwrap();
    assert!(is_silent(&out, layer as u32, 0, 1));
    assert!(result["saved"]["file_bytes"].as_i64().unwrap() <= 0);
    assert_eq!(result["saved"]["resident_bytes"], 0);
    let report = verify(&out, &gemma());
    assert_eq!(
        (&report["ok"], &report["replaced_tensors"]),
        (&true.into(), &Value::Null)
    );
    assert_eq!(tokens(&out).as_array().unwrap().len(), 8);
}
