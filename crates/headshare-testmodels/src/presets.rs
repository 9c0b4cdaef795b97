//! Ready-made shapes, real and tiny.

use anyhow::{Result, bail};
use headshare_format::GgmlType;

use crate::{FileEnd, KeyOrder, ModelSpec};

const F32: GgmlType = GgmlType::F32;

impl ModelSpec {
    /// The names that [`preset`](Self::preset) knows.
    pub const PRESETS: &[&str] = &[
        "tiny-llama",
        "tiny-gqa",
        "tiny-qwen2",
        "tiny-qwen3",
        "tiny-gemma3",
        "tiny-phi3",
        "tiny-gpt2",
        "tiny-falcon",
        "tiny-bert",
        "tiny-mamba",
        "tiny-moe",
        "tiny-refact",
        "llama-2-7b",
        "llama-2-13b",
        "llama-3.2-1b",
    ];

    /// The shape called `name`.
    ///
    /// Tiny ones have two to four layers of F32 weights and load within
    /// milliseconds. The real ones are Q4_0 and full-size; `llama-3.2-1b` has
    /// an untied output and 32,000 tokens instead of 128,256, so that its
    /// layers are most of it.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn preset(name: &str) -> Result<Self> {
        let q4_0 = crate::type_named("q4_0").expect("ggml has q4_0");
        let spec = match name {
            "tiny-llama" => Self::tiny("llama", 4, 4),
            "tiny-gqa" => Self::tiny("llama", 8, 2),
            "tiny-qwen2" => Self {
                qkv_bias: true,
                ..Self::tiny("qwen2", 4, 2)
            },
            "tiny-qwen3" => Self {
                key_length: Some(32),
                value_length: Some(32),
                ..Self::tiny("qwen3", 4, 2)
            },
            "tiny-gemma3" => Self {
                key_length: Some(32),
                value_length: Some(32),
                tied_output: true,
                ..Self::tiny("gemma3", 4, 1)
            },
            "tiny-phi3" => Self {
                fused: true,
                ..Self::tiny("phi3", 4, 2)
            },
            "tiny-gpt2" => Self {
                fused: true,
                qkv_bias: true,
                tied_output: true,
                ..Self::tiny("gpt2", 4, 4)
            },
            "tiny-falcon" => Self {
                fused: true,
                ..Self::tiny("falcon", 4, 1)
            },
            "tiny-bert" => Self {
                qkv_bias: true,
                tied_output: true,
                ..Self::tiny("bert", 4, 4)
            },
            // Trained models state both, and that they are none.
            "tiny-mamba" => Self {
                n_ff: 0,
                ..Self::tiny("mamba", 0, 0)
            },
            "tiny-moe" => Self {
                n_expert: 4,
                ..Self::tiny("llama", 4, 2)
            },
            // llama's tensors, but positions by ALiBi.
            "tiny-refact" => Self::tiny("refact", 4, 4),
            "llama-2-7b" => Self {
                n_layer: 32,
                n_embd: 4096,
                n_ff: 11008,
                n_vocab: 32000,
                n_ctx: 4096,
                weight_type: q4_0,
                ..Self::tiny("llama", 32, 32)
            },
            "llama-2-13b" => Self {
                n_layer: 40,
                n_embd: 5120,
                n_ff: 13824,
                n_vocab: 32000,
                n_ctx: 4096,
                weight_type: q4_0,
                ..Self::tiny("llama", 40, 40)
            },
            "llama-3.2-1b" => Self {
                n_layer: 16,
                n_embd: 2048,
                n_ff: 8192,
                n_vocab: 32000,
                n_ctx: 8192,
                weight_type: q4_0,
                ..Self::tiny("llama", 32, 8)
            },
            other => bail!(
                "there is no preset {other:?}; there are: {}",
                Self::PRESETS.join(", ")
            ),
        };
        Ok(spec)
    }

    fn tiny(arch: &str, n_head: u32, n_head_kv: u32) -> Self {
        Self {
            arch: arch.to_owned(),
            n_layer: 4,
            n_embd: 64,
            n_head: n_head.into(),
            n_head_kv: n_head_kv.into(),
            n_ff: 128,
            n_expert: 0,
            n_vocab: 320,
            n_ctx: 256,
            key_length: None,
            value_length: None,
            fused: false,
            qkv_bias: false,
            tied_output: false,
            weight_type: F32,
            types: Vec::new(),
            numbers: Vec::new(),
            floats: Vec::new(),
            strings: Vec::new(),
            rope_factors: false,
            version: 3,
            alignment: None,
            key_order: KeyOrder::Usual,
            random_padding: false,
            end: FileEnd::Padded,
            repeat: 1,
            seed: 1,
        }
    }
}
