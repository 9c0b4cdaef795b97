//! The keys that say how many heads a layer has and how large they are.
//!
//! Source: llama.cpp's `llama_model::load_hparams`, whose defaults these are.

use headshare_format::{FormatError, Gguf, gguf::Value};

use super::{About, Architecture, HeadSize, HeadsError};

/// Reads the keys of one file's architecture.
pub(super) struct Hyper<'a> {
    gguf: &'a Gguf,
    architecture: &'static Architecture,
}

/// Rows of the heads of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HeadRows {
    /// Of a q and of a k head.
    pub key: u32,
    /// Of a v head.
    pub value: u32,
}

/// A number for each layer.
#[derive(Debug, Clone)]
pub(super) enum PerLayer {
    All(u32),
    Each(Vec<u32>),
}

impl PerLayer {
    /// The number of `layer`, which is below the block count.
    pub fn at(&self, layer: u32) -> u32 {
        match self {
            Self::All(n) => *n,
            Self::Each(list) => list[layer as usize],
        }
    }
}

impl<'a> Hyper<'a> {
    pub fn new(gguf: &'a Gguf, architecture: &'static Architecture) -> Self {
        Self { gguf, architecture }
    }

    fn key(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.architecture.name)
    }

    /// A number that fits 32 bits, as all of llama.cpp's do.
    pub fn u32(&self, suffix: &str) -> Result<Option<u32>, HeadsError> {
        let key = self.key(suffix);
        let value = self.gguf.u64_value(&key)?;
        value.map(|n| to_u32(&key, n)).transpose()
    }

    fn required(&self, suffix: &str) -> Result<u32, HeadsError> {
        self.u32(suffix)?
            .ok_or_else(|| FormatError::key(&self.key(suffix), "is missing").into())
    }

    /// The layers that take part in generation: all but those at the end that
    /// only draft tokens. With them, how many there are of those.
    ///
    /// At most as many as the file has tensors.
    pub fn layers(&self) -> Result<(u32, u32), HeadsError> {
        let blocks = self.required("block_count")?;
        let tensors = self.gguf.tensors().len();
        if blocks == 0 || blocks as usize > tensors {
            return Err(FormatError::key(
                &self.key("block_count"),
                format!("states {blocks} layers, but the file has {tensors} tensors"),
            )
            .into());
        }
        let draft = self.u32("nextn_predict_layers")?.unwrap_or(0);
        match blocks.checked_sub(draft) {
            Some(layers @ 1..) => Ok((layers, draft)),
            _ => Err(FormatError::key(
                &self.key("nextn_predict_layers"),
                format!("{draft} of {blocks} layers leave no layer for the model itself"),
            )
            .into()),
        }
    }

    /// Heads of each layer: query heads, and key and value heads.
    pub fn heads(&self, blocks: u32) -> Result<(PerLayer, PerLayer), HeadsError> {
        const HEADS: &str = "attention.head_count";
        let query = self
            .per_layer(HEADS, blocks)?
            .ok_or_else(|| FormatError::key(&self.key(HEADS), "is missing"))?;
        let kv = self.per_layer("attention.head_count_kv", blocks)?;
        Ok((query.clone(), kv.unwrap_or(query)))
    }

    fn per_layer(&self, suffix: &str, blocks: u32) -> Result<Option<PerLayer>, HeadsError> {
        let key = self.key(suffix);
        let Some(Value::Array(array)) = self.gguf.value(&key) else {
            return Ok(self.u32(suffix)?.map(PerLayer::All));
        };
        if array.len != u64::from(blocks) {
            return Err(FormatError::key(
                &key,
                format!("has {} entries for {blocks} layers", array.len),
            )
            .into());
        }
        let list = array
            .values()
            .map(|value| {
                let n = value.as_u64().ok_or_else(|| {
                    FormatError::key(
                        &key,
                        format!("expected non-negative integers, found {}", value.describe()),
                    )
                })?;
                to_u32(&key, n)
            })
            .collect::<Result<_, HeadsError>>()?;
        Ok(Some(PerLayer::Each(list)))
    }

    /// Elements of the residual stream: the length of a row of q, k and v.
    pub fn embedding_length(&self) -> Result<u32, HeadsError> {
        self.required("embedding_length")
    }

    /// The sizes that heads may have: that of ordinary layers and, when it
    /// differs, that of layers with sliding-window attention. Which layers
    /// these are is for the tensors to say.
    pub fn head_rows(&self, query_heads: &PerLayer) -> Result<Vec<HeadRows>, HeadsError> {
        let embedding = self.embedding_length()?;
        let first = query_heads.at(0);
        let Some(default) = embedding.checked_div(first) else {
            return Err(HeadsError::NotShareable {
                architecture: self.architecture.name,
                place: About::Layer(0),
                reason: "it has no heads, and llama.cpp takes the size of all heads from it".into(),
            });
        };
        let of = |suffix, default| Ok::<_, HeadsError>(self.u32(suffix)?.unwrap_or(default));
        let key = of("attention.key_length", default)?;
        let value = of("attention.value_length", default)?;
        let (full, window) = match self.architecture.head_size {
            HeadSize::KeyLength => (
                HeadRows { key, value },
                HeadRows {
                    key: of("attention.key_length_swa", key)?,
                    value: of("attention.value_length_swa", value)?,
                },
            ),
            HeadSize::RopeDimensions => {
                let full = of("rope.dimension_count", key)?;
                let window = of("rope.dimension_count_swa", full)?;
                let both = |rows| HeadRows {
                    key: rows,
                    value: rows,
                };
                (both(full), both(window))
            }
        };
        let mut sizes = vec![full];
        if window != full {
            sizes.push(window);
        }
        if sizes.iter().any(|s| s.key == 0 || s.value == 0) {
            return Err(HeadsError::NotShareable {
                architecture: self.architecture.name,
                place: About::Architecture,
                reason: "the file's keys give its heads a size of 0".into(),
            });
        }
        Ok(sizes)
    }
}

fn to_u32(key: &str, n: u64) -> Result<u32, HeadsError> {
    n.try_into()
        .map_err(|_| FormatError::key(key, format!("{n} does not fit 32 bits")).into())
}
