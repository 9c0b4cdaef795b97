//! Models whose heads cannot be shared: `--ratio` says why, `--lossless` works.

use std::path::Path;

use headshare_testmodels::{ModelSpec, type_named};

use super::raw::{self, Raw, tensor};
use crate::support::{Folder, assert_same, preset, small};

/// `--ratio` fails with a reason, `--lossless` works.
#[track_caller]
fn check(path: &Path, code: i32, says: &str) {
    let folder = Folder::new();
    let (out, expanded) = (folder.file("out"), folder.file("expanded"));
    let name = path.file_name().unwrap().to_str().unwrap();
    for ran in [
        run!["plan", path, "--json"],
        run!["convert", path, "--ratio", "0.3", "-o", out, "--json"],
        run!["convert", path, "--ratio", "0", "-o", out, "--dry-run"],
    ] {
        let ran = ran.refused(code, &[name, says]);
        if code == 1 {
            assert!(ran.hint().contains("--lossless"), "{ran:#?}");
        }
    }
    assert_eq!(folder.names(), [""; 0]);
    run!["convert", path, "--lossless", "-o", out].ok();
    run!["verify", out, "--source", path].ok();
    run!["inspect", out, "--json"].ok().json();
    run!["expand", out, "-o", expanded].ok();
    assert_same(path, &expanded);
}

#[test]
fn architectures_without_heads_of_the_right_kind_are_lossless_only() {
    let folder = Folder::new();
    let mamba = folder.file("mamba.gguf");
    small("tiny-mamba").write(&mamba).unwrap();
    check(
        &mamba,
        1,
        "architecture \"mamba\": recurrent, without attention",
    );
    for (arch, says) in [
        (
            "deepseek2",
            "architecture \"deepseek2\": multi-head latent attention",
        ),
        ("qwen3next", "gated delta nets"),
        ("t5", "encoder and decoder"),
        (
            "frobnicator",
            "architecture \"frobnicator\" is not one that this version knows",
        ),
        ("", "architecture \"\" is not one"),
    ] {
        let path = folder.file("model.gguf");
        let spec = ModelSpec {
            arch: arch.to_owned(),
            repeat: 2,
            ..small("tiny-llama")
        };
        spec.write(&path).unwrap();
        check(&path, 1, says);
    }
}

#[test]
fn files_that_are_no_models_are_lossless_only() {
    let folder = Folder::new();
    let arch = || raw::string("general.architecture", "llama");
    let kind = |kind: &str| vec![arch(), raw::string("general.type", kind)];
    let lora = || vec![tensor("blk.0.attn_q.weight.lora_a", 24, &[64], vec![1; 64])];
    for (raw, says) in [
        (Raw::new(kind("adapter"), lora()), "a LoRA adapter"),
        (Raw::new(kind("mmproj"), lora()), "a multimodal projector"),
        (Raw::new(vec![arch()], vec![]), "no tensors"),
        (Raw::new(vec![], lora()), "does not state its architecture"),
    ] {
        check(&folder.write("model.gguf", raw.bytes()), 1, says);
    }
}

#[test]
fn a_layer_or_tensor_that_does_not_fit_is_named() {
    let folder = Folder::new();
    let good = Raw::parse(&preset("tiny-llama").to_bytes().unwrap());
    let mut without = good.clone();
    without.tensors.retain(|t| t.name != b"blk.2.attn_k.weight");
    let mut renamed = good.clone();
    renamed.tensor("blk.1.attn_v.weight").name = b"blk.1.attn_x.weight".to_vec();
    let mut shape = good.clone();
    shape.tensor("blk.3.attn_q.weight").dims = vec![128, 32];
    let mut heads = good.clone();
    heads.set(
        "llama.attention.head_count_kv",
        raw::u32("llama.attention.head_count_kv", 3),
    );
    for (raw, says) in [
        (without, "blk.2.attn_k.weight"),
        (renamed, "blk.1.attn_v.weight"),
        (shape, "blk.3.attn_q.weight"),
        (heads, "3 key and value heads"),
    ] {
        check(&folder.write("model.gguf", raw.bytes()), 1, says);
    }
}

#[test]
fn keys_that_do_not_say_where_the_heads_are_make_a_bad_file() {
    let folder = Folder::new();
    let good = Raw::parse(&preset("tiny-llama").to_bytes().unwrap());
    for key in [
        "llama.block_count",
        "llama.attention.head_count",
        "llama.embedding_length",
    ] {
        let mut raw = good.clone();
        raw.remove(key);
        check(&folder.write("model.gguf", raw.bytes()), 3, key);
        let mut raw = good.clone();
        raw.set(key, raw::string(key, "many"));
        check(&folder.write("model.gguf", raw.bytes()), 3, key);
    }
    let mut raw = good.clone();
    raw.set("llama.block_count", raw::u32("llama.block_count", u32::MAX));
    check(
        &folder.write("model.gguf", raw.bytes()),
        3,
        "llama.block_count",
    );
}

#[test]
fn weights_that_cannot_be_compared_are_named() {
    let folder = Folder::new();
    // A type that ggml cannot turn into floats.
    let spec = ModelSpec {
        weight_type: type_named("i8").unwrap(),
        ..preset("tiny-llama")
    };
    let path = folder.file("model.gguf");
    spec.write(&path).unwrap();
    for ran in [
        run!["plan", path],
        run!["convert", path, "--ratio", "0.3", "-o", folder.file("out")],
    ] {
        let ran = ran.refused(1, &["model.gguf", "i8"]);
        assert!(ran.hint().contains("--lossless"), "{ran:#?}");
    }
    // A weight that is not a number.
    let mut raw = Raw::parse(&preset("tiny-llama").to_bytes().unwrap());
    raw.tensor("blk.1.attn_k.weight").data[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    let path = folder.write("model.gguf", raw.bytes());
    for ran in [
        run!["plan", path],
        run!["convert", path, "--ratio", "0.3", "-o", folder.file("out")],
    ] {
        let ran = ran.refused(
            1,
            &["model.gguf", "k block of layer 1, unit 0", "not finite"],
        );
        assert!(ran.hint().contains("--lossless"), "{ran:#?}");
    }
    assert_eq!(folder.names(), ["model.gguf"]);
}
