//! What a synthetic model is to look like.

use anyhow::{Result, bail, ensure};
use headshare_format::GgmlType;

/// A number that is the same in every layer, or stated for each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PerLayer {
    /// The same everywhere; written as one number.
    All(u32),
    /// One for each layer; written as an array.
    Each(Vec<u32>),
}

impl PerLayer {
    /// The number of layer `layer`.
    pub fn at(&self, layer: u32) -> u32 {
        match self {
            Self::All(n) => *n,
            Self::Each(list) => list[layer as usize],
        }
    }
}

impl From<u32> for PerLayer {
    fn from(n: u32) -> Self {
        Self::All(n)
    }
}

/// Where the keys stand that readers care about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyOrder {
    /// The architecture first, then the alignment, then the rest.
    Usual,
    /// The rest, then the alignment, the architecture last.
    Reversed,
}

/// How the file ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileEnd {
    /// With padding after the last tensor, as llama.cpp writes it.
    Padded,
    /// With the last tensor's last byte.
    Unpadded,
    /// With padding and then this many bytes that belong to nothing.
    Trailing(u32),
}

/// A synthetic model: its architecture, its shape, and the habits of the file
/// it is written to.
///
/// Start from a [preset](Self::preset) and change what the test is about.
#[derive(Debug, Clone)]
pub struct ModelSpec {
    /// `general.architecture`. Those that this crate knows the tensors of:
    /// see [`ModelSpec::architectures`]; all others get llama's tensors.
    pub arch: String,
    /// Layers, before [`repeat`](Self::repeat).
    pub n_layer: u32,
    /// Width of the residual stream.
    pub n_embd: u32,
    /// Query heads.
    pub n_head: PerLayer,
    /// Key and value heads.
    pub n_head_kv: PerLayer,
    /// Width of the feed-forward layer.
    pub n_ff: u32,
    /// Experts of each feed-forward layer, of which two are used; 0 for one
    /// feed-forward network without a choice.
    pub n_expert: u32,
    /// Tokens in the vocabulary.
    pub n_vocab: u32,
    /// Context length.
    pub n_ctx: u32,
    /// Rows of a query or key head, where not `n_embd / n_head`.
    pub key_length: Option<u32>,
    /// Rows of a value head, where not `n_embd / n_head`.
    pub value_length: Option<u32>,
    /// One `attn_qkv` instead of `attn_q`, `attn_k` and `attn_v`.
    pub fused: bool,
    /// Biases on query, key and value.
    pub qkv_bias: bool,
    /// No `output.weight`: the embedding is used for it.
    pub tied_output: bool,
    /// Type of all matrices but those below.
    pub weight_type: GgmlType,
    /// Types of matrices whose name ends in this, before `weight_type`.
    pub types: Vec<(String, GgmlType)>,
    /// More keys of the architecture, by what follows its name and a dot.
    pub numbers: Vec<(&'static str, u32)>,
    /// The same with floats.
    pub floats: Vec<(&'static str, f32)>,
    /// The same with strings.
    pub strings: Vec<(&'static str, &'static str)>,
    /// `rope_freqs.weight`: a factor for each pair of rotary positions.
    pub rope_factors: bool,
    /// GGUF version, 2 or 3.
    pub version: u32,
    /// `general.alignment`; absent when `None`.
    pub alignment: Option<u32>,
    /// Order of the keys.
    pub key_order: KeyOrder,
    /// Padding bytes are random instead of zero.
    pub random_padding: bool,
    /// The end of the file.
    pub end: FileEnd,
    /// How many times the stack of layers is written: 2 gives the shape of a
    /// self-merge, layer `n_layer + i` equal to layer `i`.
    pub repeat: u32,
    /// Decides the weights.
    pub seed: u64,
}

impl ModelSpec {
    /// Layers in the file.
    pub fn total_layers(&self) -> u32 {
        self.n_layer * self.repeat
    }

    /// Rows of a query or key head.
    pub fn head_rows(&self) -> u32 {
        self.key_length
            .unwrap_or_else(|| self.n_embd / self.n_head.at(0).max(1))
    }

    /// Rows of a value head.
    pub fn value_rows(&self) -> u32 {
        self.value_length
            .unwrap_or_else(|| self.n_embd / self.n_head.at(0).max(1))
    }

    /// The type of the matrix `name`.
    pub fn type_of(&self, name: &str) -> GgmlType {
        self.types
            .iter()
            .find(|(suffix, _)| name.ends_with(suffix.as_str()))
            .map_or(self.weight_type, |(_, t)| *t)
    }

    /// Checks that the numbers fit together.
    pub(crate) fn check(&self) -> Result<()> {
        for (what, list) in [("n_head", &self.n_head), ("n_head_kv", &self.n_head_kv)] {
            if let PerLayer::Each(list) = list {
                ensure!(
                    list.len() == self.n_layer as usize,
                    "{what} states {} layers of {}",
                    list.len(),
                    self.n_layer
                );
            }
        }
        ensure!(self.repeat >= 1, "repeat must be at least 1");
        if let Some(alignment) = self.alignment {
            ensure!(
                alignment.is_power_of_two(),
                "alignment {alignment} is no power of two"
            );
        }
        if !matches!(self.version, 2 | 3) {
            bail!("GGUF version {} is not written; 2 and 3 are", self.version);
        }
        Ok(())
    }
}
