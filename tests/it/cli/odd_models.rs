//! Models that are valid, and unlike what is common.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::raw::{self, Raw, array, tensor};
use crate::support::{Folder, Ran, read, small};

/// The model `tiny-gqa`, changed.
fn changed(folder: &Folder, change: impl FnOnce(&mut Raw)) -> PathBuf {
    let mut raw = Raw::parse(&small("tiny-gqa").to_bytes().unwrap());
    change(&mut raw);
    folder.write("model.gguf", raw.bytes())
}

fn by_plan(folder: &Folder, model: &PathBuf, mark: &str, edits: &Value) -> Ran {
    let source = format!("blake3:{}", blake3::hash(&read(model)).to_hex());
    let plan = json!({"version": 2, "source": source, "edits": edits});
    let plan = folder.write("plan.json", format!("{mark}{plan}"));
    let out = folder.file("out.gguf");
    run!["convert", model, "--plan", plan, "-o", out, "--force"]
}

fn narrowed(layers: std::ops::Range<u32>) -> Value {
    let narrow = |layer| json!({"narrow": {"layer": layer, "channels": [[0, 64]]}});
    layers.map(narrow).collect()
}

#[test]
fn a_number_without_dimensions_goes_along() {
    let folder = Folder::new();
    let number = tensor("a.number", 0, &[], 1.5f32.to_le_bytes().to_vec());
    let model = changed(&folder, |raw| raw.tensors.push(number));
    let store = json!([{"store": {"tensor": "blk.1.ffn_up.weight", "type": "q8_0"}}]);
    by_plan(&folder, &model, "", &store).ok();
    let out = Raw::parse(&read(&folder.file("out.gguf")));
    let kept = out.tensors.iter().find(|t| t.name == b"a.number").unwrap();
    assert_eq!(
        (kept.dims.len(), &kept.data[..]),
        (0, &1.5f32.to_le_bytes()[..])
    );
}

#[test]
fn a_plan_may_begin_with_a_mark() {
    let folder = Folder::new();
    let model = changed(&folder, |_| ());
    let store = json!([{"store": {"tensor": "blk.1.ffn_up.weight", "type": "q8_0"}}]);
    by_plan(&folder, &model, "\u{feff}", &store).ok();
}

#[test]
fn more_layers_than_tensors_are_refused() {
    let folder = Folder::new();
    let key = "llama.block_count";
    let model = changed(&folder, |raw| raw.set(key, raw::u64(key, 1 << 62)));
    let ran = by_plan(&folder, &model, "", &narrowed(0..1));
    ran.refused(3, &[key, "more than there are tensors"]);
}

#[test]
fn channels_that_others_are_as_wide_as_do_not_go() {
    let folder = Folder::new();
    let n_ff = small("tiny-gqa").n_ff;
    let norm = tensor(
        "blk.1.ffn_sub_norm.weight",
        0,
        &[n_ff.into()],
        vec![0; 4 * n_ff as usize],
    );
    let model = changed(&folder, |raw| raw.tensors.push(norm));
    by_plan(&folder, &model, "", &narrowed(0..1)).ok();
    let ran = by_plan(&folder, &model, "", &narrowed(1..2));
    ran.refused(3, &["edits[0].narrow.layer", "blk.1.ffn_sub_norm.weight"]);
    // The model says that it has other channels.
    let key = "llama.feed_forward_length";
    let other = changed(&folder, |raw| raw.set(key, raw::u32(key, 2 * n_ff)));
    let ran = by_plan(&folder, &other, "", &narrowed(1..2));
    ran.refused(3, &["layer 1 has", "feed-forward channels"]);
}

/// llama.cpp's mixtures depend on how many heads there are; a list of a number for each layer says
/// the same, whatever the type of its numbers.
#[test]
fn numbers_for_each_layer_count_as_one_for_all() {
    let folder = Folder::new();
    let spec = small("tiny-gqa");
    let n = spec.n_layer as usize;
    let of_each = |of: u32, number: u32| -> Vec<u8> {
        let bytes = match of {
            raw::U64 | raw::I64 => u64::from(number).to_le_bytes().to_vec(),
            _ => number.to_le_bytes().to_vec(),
        };
        bytes.repeat(n)
    };
    let types = |model: &PathBuf| {
        let ran = run![
            "convert",
            model,
            "--quantize",
            "q2_K",
            "--dry-run",
            "--json"
        ]
        .ok();
        ran.json()["plan"]["edits"].clone()
    };
    let expected = types(&changed(&folder, |_| ()));
    for of in [raw::U32, raw::I32, raw::U64, raw::I64] {
        let model = changed(&folder, |raw| {
            for (key, number) in [
                ("llama.attention.head_count", 8),
                ("llama.attention.head_count_kv", 2),
                ("llama.feed_forward_length", spec.n_ff),
            ] {
                raw.set(key, array(key, of, n as u64, &of_each(of, number)));
            }
        });
        assert_eq!(types(&model), expected, "{of}");
    }
}
