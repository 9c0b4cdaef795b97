//! What one row of the table of architectures says.

/// One architecture of llama.cpp, by the name in `general.architecture`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Architecture {
    /// The name.
    pub name: &'static str,
    /// Whether its heads can be shared, and which tensors hold them.
    pub attention: Attention,
    /// It yields embeddings or scores, never text.
    pub encoder_only: bool,
    /// How a layer adds attention and feed-forward to its input. Says nothing
    /// about an architecture that is not shareable.
    pub residual: Residual,
    /// The output of attention is normalised before (or, as in BERT, right
    /// after) it is added to the residual stream. Says nothing about an
    /// architecture that is not shareable.
    pub post_norms: bool,
    /// Its token embedding is its output head: llama.cpp reads no other.
    pub always_tied: bool,
    /// Which keys state the number of rows of a head.
    pub head_size: HeadSize,
    /// Layers may have no attention heads at all.
    pub headless_layers: bool,
    /// The key (after the architecture's name and a dot) that, when it is
    /// there and not 0, turns some layers into something else.
    pub refused_with: Option<&'static str>,
}

/// Whether heads can be shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attention {
    /// Every layer has softmax attention over its own q, k and v.
    Shareable(Layout),
    /// Not so, because of this (a clause that follows "architecture X: ").
    NotShareable(&'static str),
}

/// Which tensors llama.cpp reads q, k and v from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// `attn_q`, `attn_k` and `attn_v` only.
    Separate,
    /// `attn_qkv` only.
    Fused,
    /// `attn_qkv` where a layer has it, else the separate ones.
    Either,
}

/// How a layer's two branches are added to the residual stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Residual {
    /// First attention, then the feed-forward part of the sum.
    Sequential,
    /// Both branches read the same input.
    Parallel,
    /// Differs from file to file or from branch to branch.
    Varies,
}

/// Which keys state the number of rows of a head, in llama.cpp's loader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadSize {
    /// `attention.key_length` and `attention.value_length`; by default
    /// `embedding_length` over the number of heads of layer 0.
    KeyLength,
    /// `rope.dimension_count` for q, k and v; by default the key length.
    RopeDimensions,
}

// The words that the table's rows are written in.

const fn row(name: &'static str, attention: Attention) -> Architecture {
    Architecture {
        name,
        attention,
        encoder_only: false,
        residual: Residual::Sequential,
        post_norms: false,
        always_tied: false,
        head_size: HeadSize::KeyLength,
        headless_layers: false,
        refused_with: None,
    }
}

pub(super) const fn separate(name: &'static str) -> Architecture {
    row(name, Attention::Shareable(Layout::Separate))
}

pub(super) const fn fused(name: &'static str) -> Architecture {
    row(name, Attention::Shareable(Layout::Fused))
}

pub(super) const fn either(name: &'static str) -> Architecture {
    row(name, Attention::Shareable(Layout::Either))
}

pub(super) const fn none(name: &'static str, reason: &'static str) -> Architecture {
    row(name, Attention::NotShareable(reason)).varies()
}

impl Architecture {
    pub(super) const fn encoder(mut self) -> Self {
        self.encoder_only = true;
        self
    }

    pub(super) const fn parallel(mut self) -> Self {
        self.residual = Residual::Parallel;
        self
    }

    pub(super) const fn varies(mut self) -> Self {
        self.residual = Residual::Varies;
        self
    }

    pub(super) const fn post_norms(mut self) -> Self {
        self.post_norms = true;
        self
    }

    pub(super) const fn tied(mut self) -> Self {
        self.always_tied = true;
        self
    }

    pub(super) const fn rope_sized(mut self) -> Self {
        self.head_size = HeadSize::RopeDimensions;
        self
    }

    pub(super) const fn headless_layers(mut self) -> Self {
        self.headless_layers = true;
        self
    }

    pub(super) const fn refused_with(mut self, key: &'static str) -> Self {
        self.refused_with = Some(key);
        self
    }
}
