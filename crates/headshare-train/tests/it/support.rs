//! Models for tests, and llama.cpp's logits of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::Device;
use headshare_convert::convert::variant::{Types, Variant};
use headshare_convert::input::ModelFile;
use headshare_format::GgmlType;
use headshare_runtime::{Batch, CacheType, Context, ContextParams, FlashAttention, ModelParams};
use headshare_testmodels::{ModelSpec, PerLayer};
use headshare_train::{Model, Windows};

/// The file of a synthetic model, which goes with the folder.
pub fn written(spec: &ModelSpec) -> (tempfile::TempDir, ModelFile) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    spec.write(&path).unwrap();
    let file = ModelFile::open(&path).unwrap();
    (folder, file)
}

pub fn preset(name: &str) -> ModelSpec {
    ModelSpec::preset(name).unwrap()
}

/// A tiny model of each architecture that can be trained.
pub fn every_architecture() -> Vec<ModelSpec> {
    let called = |arch: &str, spec: ModelSpec| ModelSpec {
        arch: arch.to_owned(),
        ..spec
    };
    let gemma = |arch: &str| ModelSpec {
        key_length: Some(32),
        value_length: Some(32),
        tied_output: true,
        ..called(arch, preset("tiny-gqa"))
    };
    vec![
        preset("tiny-llama"),
        ModelSpec {
            qkv_bias: true,
            fused: true,
            tied_output: true,
            rope_factors: true,
            floats: vec![("rope.scaling.factor", 4.0)],
            ..preset("tiny-gqa")
        },
        ModelSpec {
            n_layer: 32,
            ..called("baichuan", preset("tiny-llama"))
        },
        called("internlm2", preset("tiny-gqa")),
        called("xverse", preset("tiny-llama")),
        ModelSpec {
            n_head: PerLayer::Each(vec![4, 8, 2, 4]),
            n_head_kv: PerLayer::Each(vec![2, 4, 1, 4]),
            key_length: Some(16),
            value_length: Some(16),
            ..called("deci", preset("tiny-gqa"))
        },
        preset("tiny-qwen2"),
        preset("tiny-qwen3"),
        gemma("gemma"),
        // Sliding windows shorter than the test's, and caps that are felt.
        ModelSpec {
            numbers: vec![("attention.sliding_window", 8)],
            floats: vec![
                ("attn_logit_softcapping", 2.0),
                ("final_logit_softcapping", 5.0),
            ],
            ..gemma("gemma2")
        },
        ModelSpec {
            numbers: vec![
                ("attention.sliding_window", 8),
                ("attention.sliding_window_pattern", 2),
            ],
            floats: vec![("rope.freq_base_swa", 500.0)],
            ..preset("tiny-gemma3")
        },
        preset("tiny-gemma3"),
        preset("tiny-gpt2"),
    ]
}

/// The model of a file as it is.
pub fn loaded(file: &ModelFile) -> Model {
    Model::load(&Variant::unchanged(file), &[], &Device::Cpu).unwrap()
}

/// `count` windows of tokens that the vocabulary has.
pub fn windows(vocabulary: usize, count: usize, length: usize) -> Windows {
    let token = |i: usize| ((i * 7919 + i * i * 31) % vocabulary) as u32;
    Windows::new((0..count * length).map(token).collect(), length).unwrap()
}

/// Every tensor of the file as F32.
pub fn as_f32(file: &ModelFile) -> Variant<'_> {
    let all = file.gguf.tensors().iter().enumerate();
    let tensors: BTreeMap<usize, GgmlType> = all.map(|(i, _)| (i, GgmlType::F32)).collect();
    let types = Types {
        tensors,
        untied_head: None,
    };
    Variant::with_types(file, &types).unwrap()
}

/// llama.cpp's logits of all tokens, each window a sequence of its own, without
/// flash attention and with a KV cache in F32.
pub fn llama_cpp(variant: &Variant<'_>, windows: &Windows) -> Vec<f32> {
    let params = ModelParams {
        n_gpu_layers: 0,
        ..ModelParams::default()
    };
    let path = variant.source.path();
    let model = headshare_runtime::Model::load_virtual(variant, variant.gguf(), path, &params);
    let model = Arc::new(model.unwrap());
    let n = windows.tokens().len() as u32;
    let params = ContextParams {
        n_ctx: Some(n.max(256)),
        n_batch: n,
        n_ubatch: n,
        n_seq_max: windows.count() as u32,
        kv_unified: true,
        n_threads: Some(2),
        flash_attention: FlashAttention::Off,
        cache_type: CacheType::F32,
        ..ContextParams::default()
    };
    let mut context = Context::new(&model, &params).unwrap();
    let mut batch = Batch::new();
    for (i, &token) in windows.tokens().iter().enumerate() {
        let (window, position) = (i / windows.length(), i % windows.length());
        batch.add(token as i32, position as u32, &[window as u32], true);
    }
    context.decode_batch(&batch).unwrap();
    let rows = (0..windows.tokens().len()).map(|i| context.logits_at(i).unwrap());
    rows.flatten().copied().collect()
}
