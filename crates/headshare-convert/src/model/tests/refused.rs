//! Files whose heads are not shared, and the sentence that says why.

use super::*;

#[test]
fn architectures_that_are_not_shareable() {
    for (name, reason) in [
        ("deepseek2", "multi-head latent attention"),
        ("mamba", "recurrent"),
        ("rwkv7", "recurrent"),
        ("jamba", "Mamba layers instead of attention"),
        ("qwen3next", "gated delta nets"),
        ("qwen35", "gated delta nets"),
        (
            "gemma3n",
            "layers from 20 on read the k and v of earlier layers",
        ),
        ("gptj", "cannot load it"),
        ("clip", "vision encoder"),
    ] {
        let model = Model::new(name, 1, 32).heads(4, 2).qkv(0, 32, [32, 16, 16]);
        let error = model.map().expect_err(name);
        let text = error.to_string();
        assert!(
            text.starts_with(&format!("architecture {name:?}: ")),
            "{text}"
        );
        assert!(text.contains(reason), "{text}");
        assert!(
            matches!(error, HeadsError::NotShareable { .. }),
            "{error:?}"
        );
    }
}

#[test]
fn unknown_architecture() {
    for name in ["llama9", "", "(unknown)", "LLAMA"] {
        let error = Model::new(name, 1, 32).map().expect_err(name);
        let text = error.to_string();
        assert!(
            text.contains(&format!("architecture {name:?} is not one")),
            "{text}"
        );
        assert_eq!(error, HeadsError::UnknownArchitecture(name.to_owned()));
    }
}

#[test]
fn files_that_are_no_models() {
    let file = |kind| {
        Model::empty("llama")
            .text("general.type", kind)
            .text("general.architecture", "llama")
            .matrix("blk.0.attn_q.weight.lora_a", 32, 4)
            .refusal()
    };
    assert!(file("adapter").contains("is a LoRA adapter, not a model"));
    assert!(file("imatrix").contains("is an importance matrix"));
    assert!(file("mmproj").contains("is a multimodal projector"));
    assert!(
        Model::new("llama", 32, 32)
            .refusal()
            .contains("no tensors: a vocabulary"),
    );
}

#[test]
fn no_architecture() {
    let text = Model::empty("llama").matrix("x", 32, 32).refusal();
    assert!(text.contains("general.architecture"), "{text}");
    let mut model = Model::empty("llama");
    model.header.u32("general.architecture", 1);
    assert!(model.refusal().contains("expected a string"));
}

#[test]
fn converted_files_want_expanding_first() {
    let error = Model::new("headshare", 1, 32).map().unwrap_err();
    assert_eq!(error, HeadsError::Converted);
}

#[test]
fn missing_tensor() {
    for part in ["q", "k", "v"] {
        let name = format!("blk.1.attn_{part}.weight");
        let mut model = grouped();
        model.tensors.retain(|t| t.name != name);
        assert_eq!(
            model.refusal(),
            format!("architecture \"llama\", tensor {name:?}: is not in the file")
        );
    }
    let text = Model::new("gpt2", 1, 32)
        .heads(4, 4)
        .qkv(0, 32, [32; 3])
        .refusal();
    assert!(
        text.contains("tensor \"blk.0.attn_qkv.weight\": is not in the file"),
        "{text}"
    );
}

#[test]
fn unexpected_tensor() {
    let text = grouped().fused(1, 32, 64).refusal();
    assert!(
        text.contains("tensor \"blk.1.attn_q.weight\": is in the file beside"),
        "{text}"
    );
    let text = Model::new("bitnet", 1, 32)
        .heads(4, 2)
        .fused(0, 32, 64)
        .refusal();
    assert!(
        text.contains("llama.cpp wants attn_q, attn_k and attn_v"),
        "{text}"
    );
}

#[test]
fn wrong_number_of_rows() {
    let with = |rows| {
        Model::new("llama", 1, 32)
            .heads(4, 2)
            .qkv(0, 32, rows)
            .refusal()
    };
    assert_eq!(
        with([24, 16, 16]),
        "architecture \"llama\", tensor \"blk.0.attn_q.weight\": has 24 rows; 4 heads of 8 rows make 32"
    );
    assert!(with([32, 32, 16]).contains("attn_k.weight\": has 32 rows; 2 heads of 8"));
    assert!(with([32, 16, 8]).contains("attn_v.weight\": has 8 rows; 2 heads of 8"));
    let text = Model::new("phi3", 1, 32)
        .heads(4, 2)
        .fused(0, 32, 63)
        .refusal();
    assert!(
        text.contains("attn_qkv.weight\": has 63 rows; 4 query and 2 key heads of 8"),
        "{text}"
    );
    assert!(text.ends_with("make 64"), "{text}");
}

#[test]
fn wrong_row_length_or_rank() {
    let text = Model::new("llama", 1, 32)
        .heads(4, 2)
        .matrix("blk.0.attn_q.weight", 32, 32)
        .matrix("blk.0.attn_k.weight", 64, 16)
        .matrix("blk.0.attn_v.weight", 32, 16)
        .refusal();
    assert!(
        text.contains("attn_k.weight\": has rows of 64 elements; the embedding length is 32"),
        "{text}"
    );
    let text = Model::new("phi3", 1, 32)
        .heads(4, 2)
        .tensor("blk.0.attn_qkv.weight", F32, &[32, 32, 2])
        .refusal();
    assert!(text.contains("which is no matrix"), "{text}");
    let text = Model::new("phi3", 1, 32)
        .heads(4, 2)
        .tensor("blk.0.attn_qkv.weight", F32, &[32])
        .refusal();
    assert!(text.contains("has 1 rows"), "{text}");
}

#[test]
fn heads_that_do_not_divide() {
    let text = Model::new("llama", 1, 32)
        .heads(4, 3)
        .qkv(0, 32, [32, 24, 24])
        .refusal();
    assert_eq!(
        text,
        "architecture \"llama\", layer 0: 4 query heads do not divide evenly among 3 key and value heads"
    );
    let text = Model::new("llama", 1, 32)
        .heads(2, 4)
        .qkv(0, 32, [32, 64, 64])
        .refusal();
    assert!(
        text.contains("layer 0: 2 query heads do not divide"),
        "{text}"
    );
}

#[test]
fn no_heads() {
    let text = Model::new("llama", 1, 32)
        .heads(4, 0)
        .qkv(0, 32, [32, 16, 16])
        .refusal();
    assert!(
        text.contains("layer 0: 4 query heads and 0 key and value heads"),
        "{text}"
    );
    let text = Model::new("llama", 1, 32)
        .heads(0, 0)
        .qkv(0, 32, [32, 16, 16])
        .refusal();
    assert!(text.contains("layer 0: it has no heads"), "{text}");
    // In deci layers without heads are legitimate, with q, k, v they are not.
    let text = Model::new("deci", 2, 32)
        .list("attention.head_count", &[4, 4])
        .list("attention.head_count_kv", &[2, 0])
        .qkv(0, 32, [32, 16, 16])
        .qkv(1, 32, [32, 16, 16])
        .refusal();
    assert!(
        text.contains("blk.1.attn_q.weight\": is in the file although"),
        "{text}"
    );
}

#[test]
fn scale_tensors() {
    for stem in ["attn_q", "attn_k", "attn_v", "attn_qkv"] {
        let name = format!("blk.1.{stem}.scale");
        let text = grouped().tensor(&name, F32, &[1]).refusal();
        assert!(
            text.contains(&format!("tensor {name:?}: scales the rows")),
            "{text}"
        );
    }
    // Scales of other tensors do not matter.
    grouped()
        .tensor("blk.1.attn_output.scale", F32, &[1])
        .map()
        .unwrap();
}

#[test]
fn block_counts_out_of_all_proportion() {
    for count in [7, 1_000_000, u32::MAX] {
        let text = Model::new("llama", count, 32)
            .heads(4, 2)
            .qkv(0, 32, [32, 16, 16])
            .qkv(1, 32, [32, 16, 16])
            .refusal();
        assert_eq!(
            text,
            format!("key \"llama.block_count\": states {count} layers, but the file has 6 tensors")
        );
    }
    assert!(
        Model::new("llama", 0, 32)
            .matrix("x", 1, 1)
            .refusal()
            .contains("states 0 layers")
    );
    // More layers than the file has, but not than it has tensors.
    let text = Model::new("llama", 2, 32)
        .heads(4, 2)
        .qkv(0, 32, [32, 16, 16])
        .refusal();
    assert!(
        text.contains("blk.1.attn_q.weight\": is not in the file"),
        "{text}"
    );
    let mut model = Model::empty("llama").text("general.architecture", "llama");
    model.header.u64("llama.block_count", u64::MAX);
    assert!(
        model
            .matrix("x", 1, 1)
            .refusal()
            .contains("does not fit 32 bits")
    );
}

#[test]
fn draft_layers_only() {
    for draft in [1, 2, u32::MAX] {
        let text = Model::new("glm4moe", 1, 32)
            .heads(4, 2)
            .key("nextn_predict_layers", draft)
            .qkv(0, 32, [32, 16, 16])
            .refusal();
        assert!(text.contains("nextn_predict_layers\": "), "{text}");
        assert!(text.contains("leave no layer"), "{text}");
    }
}

#[test]
fn missing_or_mistyped_keys() {
    let bare = || {
        Model::empty("llama")
            .text("general.architecture", "llama")
            .matrix("x", 1, 1)
    };
    assert!(
        bare()
            .refusal()
            .contains("key \"llama.block_count\": is missing")
    );
    let text = Model::new("llama", 1, 32).qkv(0, 32, [32; 3]).refusal();
    assert!(
        text.contains("key \"llama.attention.head_count\": is missing"),
        "{text}"
    );
    let text = bare().key("block_count", 1).heads(4, 2).refusal();
    assert!(
        text.contains("key \"llama.embedding_length\": is missing"),
        "{text}"
    );
    let text = Model::new("llama", 1, 32)
        .text("llama.attention.head_count", "4")
        .qkv(0, 32, [32; 3])
        .refusal();
    assert!(
        text.contains("attention.head_count\": expected a non-negative integer"),
        "{text}"
    );
    // One entry a layer, the draft layers among them.
    let text = grouped_with_list(&[2, 2, 2]).refusal();
    assert!(
        text.contains("head_count_kv\": has 3 entries for 2 layers"),
        "{text}"
    );
    grouped_with_list(&[2, 2]).map().unwrap();
}

fn grouped_with_list(kv: &[u32]) -> Model {
    Model::new("llama", 2, 32)
        .key("attention.head_count", 4)
        .list("attention.head_count_kv", kv)
        .qkv(0, 32, [32, 16, 16])
        .qkv(1, 32, [32, 16, 16])
}

#[test]
fn numbers_at_their_limits_do_not_overflow() {
    const MAX: u32 = u32::MAX;
    for (query, kv) in [(MAX, MAX), (MAX, 1), (1, MAX)] {
        for length in [1, MAX] {
            for name in ["llama", "phi3", "gpt-oss"] {
                let model = Model::new(name, 1, 32)
                    .heads(query, kv)
                    .key("attention.key_length", length)
                    .key("attention.value_length", length)
                    .key("rope.dimension_count", length);
                model.clone().fused(0, 32, 3).refusal();
                model.qkv(0, 32, [1, 1, 1]).refusal();
            }
        }
    }
    // More heads than elements: a head size of 0.
    let text = Model::new("llama", 1, 32)
        .heads(64, 64)
        .qkv(0, 32, [64; 3])
        .refusal();
    assert!(text.contains("a size of 0"), "{text}");
}

#[test]
fn decision_heads_of_modern_bert() {
    let model = Model::new("modern-bert", 1, 32)
        .key("attention.head_count", 4)
        .fused(0, 32, 96);
    model.clone().map().unwrap();
    model.clone().key("decision.block_count", 0).map().unwrap();
    let text = model.key("decision.block_count", 1).refusal();
    assert!(
        text.contains("key \"modern-bert.decision.block_count\": "),
        "{text}"
    );
}
