//! Heads that share, quantized: a block that is stored once is encoded once, for all that
//! use it.

use headshare_gguf::input::ModelFile;
use headshare_testmodels::{ModelSpec, type_named};
use serde_json::Value;

use super::{SHORT, divergence, plain_of, plan_of, quantized, quantizing, tokens_both_ways};
use crate::repair::steps::{expand, rows, verify, with_numbers, words};
use crate::support::{Ran, json, preset, program, written};

/// Inputs of a shared block that are far larger than all others.
const LARGE: usize = 8;

/// A block that two layers use is encoded for what both feed it. Here the other layer's
/// first inputs are far larger than all else, so errors there are what counts.
#[test]
fn a_shared_block_is_encoded_for_all_its_users() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let source = at("source.gguf");
    let plain = written(folder.path(), "tiny-gqa");
    with_numbers(&plain, &source, "blk.3.attn_norm.weight", [30.0; LARGE]);
    let head = preset("tiny-gqa").head_rows() as usize;
    let share = serde_json::json!([{"share":
        {"layer": 3, "unit": 1, "donor_layer": 0, "donor_unit": 0, "parts": ["k"]}}]);
    let plan = plan_of(&source, &share);
    let shared = ["--plan", plan.to_str().unwrap()];
    // Of the rows of the shared block, the error in these inputs.
    let error = |name: &str, more: &[&str]| {
        let out = at(name);
        let all = [&["--pure", "--strength", "0", "--json"], more].concat();
        json(&mut quantizing(&source, "q4_0", &out, &all));
        let plain = plain_of(&out);
        let [now, before] = [&plain, &source].map(|file| rows(file, "blk.0.attn_k.weight"));
        let errors = now
            .iter()
            .zip(&before)
            .take(head)
            .flat_map(|(now, before)| {
                let both = now.iter().zip(before).take(LARGE);
                both.map(|(a, b)| f64::from(a - b).powi(2))
            });
        errors.sum::<f64>()
    };
    let (alone, both) = (error("alone", &[]), error("both", &shared));
    assert!(both < 0.7 * alone, "{both} with the user, {alone} without");
}

#[test]
fn sharing_repairing_and_quantizing_come_in_one_command() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let source = written(folder.path(), "tiny-llama");
    let out = file("out.gguf");
    let text = words(folder.path());
    let repair = ["--ratio", "0.4", "--choose", "match", "--repair"];
    let text = [text.to_str().unwrap()];
    let more: Vec<&str> = repair.into_iter().chain(text).chain(["--pure"]).collect();
    // It is no worse than one after the other.
    let (shared, after) = (file("shared.gguf"), file("after.gguf"));
    let mut command = program();
    command.arg("convert").arg(&source).arg("-o").arg(&shared);
    command.args(repair).args(text).args(SHORT);
    json(command.arg("--json"));
    let plain = file("plain.gguf");
    expand(&shared, &plain);
    for to in ["q8_0", "q4_0"] {
        let done = quantized(&source, to, &out, &more);
        assert!(!done["repair"]["tensors"].as_array().unwrap().is_empty());
        let share = |edit: &&Value| !edit["share"].is_null();
        let edits = done["plan"]["edits"].as_array().unwrap();
        assert!(edits.iter().filter(share).count() > 0);
        tokens_both_ways(&out);
        verify(&out, &source);
        quantized(&plain, to, &after, &["--pure"]);
        let [one, two] = [&out, &after].map(|file| divergence(file, &source));
        assert!(one < 1.05 * two, "{to}: {one} nats in one, {two} in two");
    }
}

#[test]
fn what_is_stored_once_gets_one_type() {
    let folder = tempfile::tempdir().unwrap();
    let spec = ModelSpec {
        weight_type: type_named("f16").unwrap(),
        ..preset("tiny-llama")
    };
    let source = folder.path().join("source.gguf");
    spec.write(&source).unwrap();
    let share = serde_json::json!(
        {"share": {"layer": 3, "unit": 1, "donor_layer": 0, "donor_unit": 2, "parts": ["q"]}});
    let plan = plan_of(&source, &serde_json::json!([share]));
    let plan = ["--plan", plan.to_str().unwrap(), "--pure"];
    let out = folder.path().join("out.gguf");
    // The one with more bits, which a tensor may have already.
    for more in ["q8_0", "f16"] {
        let pattern = format!("blk.3.attn_q={more}");
        let patterns = ["--tensor-type", &pattern];
        let args: Vec<&str> = plan.into_iter().chain(patterns).collect();
        quantized(&source, "q4_0", &out, &args);
        tokens_both_ways(&out);
        let plain = ModelFile::open(&out.with_extension("plain")).unwrap();
        for layer in [0, 3] {
            let info = plain.gguf.tensor(&format!("blk.{layer}.attn_q.weight"));
            assert_eq!(info.unwrap().ggml_type.name(), more, "layer {layer}");
        }
    }
    // The plan says the type of one of both: another one than the other has, or the same.
    for (to, code, says) in [
        ("q8_0", 3, ["plan.json", "edits[0].share: q of layer 3"]),
        (
            "f16",
            2,
            ["source.gguf", "blk.3.attn_q.weight has rows in common"],
        ),
    ] {
        let store = serde_json::json!({"store": {"tensor": "blk.0.attn_q.weight", "type": to}});
        let plan = plan_of(&source, &serde_json::json!([share, store]));
        let plan = ["--plan", plan.to_str().unwrap(), "--force"];
        let mut command = quantizing(&source, "q4_0", &out, &plan);
        Ran::of(&mut command, "convert".to_owned()).refused(code, &says);
    }
}
