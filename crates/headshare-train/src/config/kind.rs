//! The architectures whose graphs are built, and what tells them apart.

use crate::ops::{Activation, NormKind, RopePairs};

/// How the layers of an architecture compute.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GraphKind {
    /// `general.architecture`.
    pub name: &'static str,
    /// Its norms.
    pub norm: NormKind,
    /// Pairs of rotary positions; `None` for learned positions.
    pub rope: Option<RopePairs>,
    /// The feed-forward layer's function.
    pub activation: Activation,
    /// The feed-forward layer has a gate.
    pub gated: bool,
    /// Queries and keys are normalised.
    pub qk_norms: bool,
    /// Both branches are normalised before they are added.
    pub post_norms: bool,
    /// Embeddings are multiplied by the root of their width.
    pub scaled_embedding: bool,
    /// `rope_freqs.weight` divides the angles where it is there.
    pub rope_factors: bool,
    /// All of a head is rotated; llama.cpp refuses anything else.
    pub whole_heads: bool,
}

const LLAMA: GraphKind = GraphKind {
    name: "llama",
    norm: NormKind::Rms,
    rope: Some(RopePairs::Adjacent),
    activation: Activation::Silu,
    gated: true,
    qk_norms: false,
    post_norms: false,
    scaled_embedding: false,
    rope_factors: false,
    whole_heads: true,
};

const GEMMA: GraphKind = GraphKind {
    name: "gemma",
    rope: Some(RopePairs::Halves),
    activation: Activation::Gelu,
    scaled_embedding: true,
    whole_heads: false,
    ..LLAMA
};

/// The architectures that can be trained.
pub static GRAPHS: &[GraphKind] = &[
    GraphKind {
        rope_factors: true,
        ..LLAMA
    },
    GraphKind {
        name: "deci",
        rope_factors: true,
        ..LLAMA
    },
    // Of 7B; the larger ones have other positions.
    GraphKind {
        name: "baichuan",
        ..LLAMA
    },
    GraphKind {
        name: "internlm2",
        ..LLAMA
    },
    GraphKind {
        name: "xverse",
        ..LLAMA
    },
    GraphKind {
        name: "qwen2",
        rope: Some(RopePairs::Halves),
        ..LLAMA
    },
    GraphKind {
        name: "qwen3",
        rope: Some(RopePairs::Halves),
        qk_norms: true,
        ..LLAMA
    },
    GEMMA,
    GraphKind {
        name: "gemma2",
        post_norms: true,
        ..GEMMA
    },
    GraphKind {
        name: "gemma3",
        post_norms: true,
        qk_norms: true,
        ..GEMMA
    },
    GraphKind {
        name: "gpt2",
        norm: NormKind::Layer,
        rope: None,
        activation: Activation::Gelu,
        gated: false,
        whole_heads: false,
        ..LLAMA
    },
];
