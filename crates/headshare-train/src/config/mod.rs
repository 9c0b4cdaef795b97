//! What a model computes: the hyperparameters and the shape of its graph.
//!
//! Heads come from the same map as everything else's
//! ([`headshare_convert::model::AttentionMap`]); how an architecture computes with
//! them is a row of [`GRAPHS`]. Source: the loaders and graphs of the bundled
//! llama.cpp (`src/models`), whose defaults these are.

mod keys;
mod kind;

use std::path::Path;

use headshare_convert::model::{About, AttentionMap};
use headshare_format::Gguf;
use headshare_format::gguf::Value;

use crate::error::TrainError;
use crate::ops::NormKind;
use keys::Keys;
pub use kind::{GRAPHS, GraphKind};

/// Heads of one layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Heads {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Numbers of a head: of query, key and value alike.
    pub size: usize,
    /// q, k and v are rows of one tensor, in this order.
    pub fused: bool,
}

/// One layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerConfig {
    /// Its attention; `None` in layers without.
    pub heads: Option<Heads>,
    /// Channels of its feed-forward part; 0 in layers without.
    pub feed_forward: usize,
    /// Tokens that a query sees, itself among them; `None` for all before it.
    pub sliding: Option<usize>,
    /// Base of the rotary angles, and what angles are multiplied by.
    pub rope: (f32, f32),
}

/// A model's hyperparameters and the shape of its graph.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// How layers compute.
    pub kind: GraphKind,
    /// Width of the residual stream.
    pub width: usize,
    /// Tokens that there can be: learned positions, or those it was trained with.
    pub positions: usize,
    /// What norms add to the mean square.
    pub epsilon: f32,
    /// What embeddings are multiplied by.
    pub embedding_scale: Option<f32>,
    /// Numbers of a head that are rotated.
    pub rotated: usize,
    /// What scores of attention are multiplied by.
    pub attention_scale: f32,
    /// `c tanh(s / c)` in the place of a score s.
    pub attention_softcap: Option<f32>,
    /// The same for logits.
    pub final_softcap: Option<f32>,
    /// The layers.
    pub layers: Vec<LayerConfig>,
}

impl Config {
    /// Reads what `gguf`, the header of the file at `path`, says.
    ///
    /// # Errors
    /// [`TrainError::Heads`], [`TrainError::Format`], or [`TrainError::Unsupported`]
    /// with what is not built here.
    pub fn of(gguf: &Gguf, path: &Path) -> Result<Self, TrainError> {
        let map = AttentionMap::of(gguf).map_err(|error| TrainError::Heads {
            path: path.to_owned(),
            error,
        })?;
        let name = map.architecture.name;
        let keys = Keys { gguf, path, name };
        let Some(kind) = GRAPHS.iter().find(|kind| kind.name == name) else {
            let names: Vec<&str> = GRAPHS.iter().map(|kind| kind.name).collect();
            return Err(keys.unsupported(
                About::Architecture,
                format!("its graph is not built; built are {}", names.join(", ")),
            ));
        };
        keys.refuse_what_is_not_built(&map)?;
        Self::read(&keys, *kind, &map)
    }

    fn read(keys: &Keys<'_>, kind: GraphKind, map: &AttentionMap) -> Result<Self, TrainError> {
        let width = keys.needed("embedding_length")?;
        let layers = keys.needed("block_count")?;
        // llama.cpp tells the two by their number of layers.
        if kind.name == "baichuan" && layers != 32 {
            let place = About::Key(keys.key("block_count"));
            let reason = "is not the 32 of Baichuan 7B, and positions by ALiBi are not built";
            return Err(keys.unsupported(place, reason.to_owned()));
        }
        let first = map.layers.first().ok_or_else(|| {
            keys.unsupported(About::Architecture, "no layer has attention".to_owned())
        })?;
        let size = first.key_length as usize;
        let rotated = keys.number("rope.dimension_count")?.unwrap_or(size);
        if kind.rope.is_some() && (!rotated.is_multiple_of(2) || rotated > size) {
            let problem = format!("{rotated} of a head's {size} numbers cannot be rotated");
            return Err(keys.key_error("rope.dimension_count", problem));
        }
        if kind.whole_heads && rotated != size {
            let problem = format!("is {rotated}, but heads have {size} numbers");
            return Err(keys.key_error("rope.dimension_count", problem));
        }
        let epsilon = match kind.norm {
            NormKind::Rms => "attention.layer_norm_rms_epsilon",
            NormKind::Layer => "attention.layer_norm_epsilon",
        };
        let epsilon = keys
            .float(epsilon)?
            .ok_or_else(|| keys.key_error(epsilon, "is missing".to_owned()))?;
        // The largest model of each generation is scaled by its width, and told
        // from the others by its number of layers, as llama.cpp does it.
        let largest = matches!((kind.name, layers), ("gemma2", 46) | ("gemma3", 62));
        let scaled_by = match largest {
            true => width / first.n_head as usize,
            false => size,
        };
        let gemma2 = kind.name == "gemma2";
        let cap = |suffix: &str, default: Option<f32>| -> Result<Option<f32>, TrainError> {
            Ok(keys.float(suffix)?.or(default).filter(|&cap| cap != 0.0))
        };
        Ok(Self {
            width,
            positions: keys.needed("context_length")?,
            epsilon,
            embedding_scale: kind.scaled_embedding.then(|| (width as f32).sqrt()),
            rotated,
            attention_scale: 1.0 / (scaled_by as f32).sqrt(),
            attention_softcap: match gemma2 {
                true => cap("attn_logit_softcapping", Some(50.0))?,
                false => None,
            },
            final_softcap: match kind.name {
                "gemma2" => cap("final_logit_softcapping", Some(30.0))?,
                "gemma3" => cap("final_logit_softcapping", None)?,
                _ => None,
            },
            layers: keys.layers(kind, map, layers)?,
            kind,
        })
    }
}

impl Keys<'_> {
    fn layers(
        &self,
        kind: GraphKind,
        map: &AttentionMap,
        count: usize,
    ) -> Result<Vec<LayerConfig>, TrainError> {
        let window = match kind.name {
            "gemma2" => Some(self.number("attention.sliding_window")?.unwrap_or(4096)),
            "gemma3" => self.number("attention.sliding_window")?.filter(|&n| n > 0),
            _ => None,
        };
        if window == Some(0) {
            let problem = "is 0: a token would not even see itself".to_owned();
            return Err(self.key_error("attention.sliding_window", problem));
        }
        let slides = self.sliding_layers(if kind.name == "gemma2" { 2 } else { 6 }, count)?;
        let base = self.float("rope.freq_base")?.unwrap_or(10_000.0);
        let scale = self.rope_scale()?;
        let sliding_rope = match kind.name {
            "gemma2" => (self.float("rope.freq_base_swa")?.unwrap_or(base), scale),
            _ => (self.float("rope.freq_base_swa")?.unwrap_or(10_000.0), 1.0),
        };
        let mut layers = Vec::with_capacity(count);
        for (i, slides) in (0..).zip(slides) {
            let sliding = window.filter(|_| slides);
            let layer = LayerConfig {
                heads: self.heads(map, i)?,
                feed_forward: self.feed_forward(i, count)?,
                sliding,
                rope: if sliding.is_some() {
                    sliding_rope
                } else {
                    (base, scale)
                },
            };
            self.check_layer(i, &layer)?;
            layers.push(layer);
        }
        Ok(layers)
    }

    /// What angles are multiplied by: one over the stated factor.
    fn rope_scale(&self) -> Result<f32, TrainError> {
        let kind = self.gguf.str_value(&self.key("rope.scaling.type"));
        if kind.is_ok_and(|kind| kind == Some("none")) {
            return Ok(1.0);
        }
        let factor = match self.float("rope.scaling.factor")? {
            None => self.float("rope.scale_linear")?,
            stated => stated,
        };
        Ok(match factor {
            None | Some(0.0) => 1.0,
            Some(factor) => 1.0 / factor,
        })
    }

    /// Which layers slide, where any do: all but every `pattern`th, or as stated.
    fn sliding_layers(&self, pattern: usize, count: usize) -> Result<Vec<bool>, TrainError> {
        const KEY: &str = "attention.sliding_window_pattern";
        let pattern = match self.gguf.value(&self.key(KEY)) {
            Some(Value::Array(array)) => {
                let slides = |value: Value<'_>| match value {
                    Value::Bool(slides) => Some(slides),
                    other => other.as_u64().map(|n| n != 0),
                };
                let stated: Option<Vec<bool>> = array.values().map(slides).collect();
                return stated.filter(|list| list.len() == count).ok_or_else(|| {
                    self.key_error(KEY, format!("is no list of {count} yes and no"))
                });
            }
            _ => self.number(KEY)?.unwrap_or(pattern),
        };
        Ok((0..count)
            .map(|i| pattern == 0 || i % pattern < pattern - 1)
            .collect())
    }

    fn heads(&self, map: &AttentionMap, layer: u32) -> Result<Option<Heads>, TrainError> {
        let Some(of) = map.layer(layer) else {
            return Ok(None);
        };
        if of.key_length != of.value_length {
            let (key, value) = (of.key_length, of.value_length);
            let reason = format!("keys of {key} and values of {value} numbers are not built");
            return Err(self.unsupported(About::Layer(layer), reason));
        }
        Ok(Some(Heads {
            heads: of.n_head as usize,
            kv_heads: of.n_head_kv as usize,
            size: of.key_length as usize,
            fused: of.is_fused(),
        }))
    }

    fn feed_forward(&self, layer: u32, count: usize) -> Result<usize, TrainError> {
        const KEY: &str = "feed_forward_length";
        let Some(Value::Array(array)) = self.gguf.value(&self.key(KEY)) else {
            return self.needed(KEY);
        };
        let list: Option<Vec<u64>> = array.values().map(|v| v.as_u64()).collect();
        let list = list.filter(|list| list.len() == count);
        let stated = list.and_then(|list| usize::try_from(list[layer as usize]).ok());
        stated.ok_or_else(|| self.key_error(KEY, format!("is no list of {count} sizes")))
    }

    fn check_layer(&self, i: u32, layer: &LayerConfig) -> Result<(), TrainError> {
        let name = format!("blk.{i}.attn_output.weight");
        if layer.heads.is_none() && self.gguf.tensor(&name).is_some() {
            let reason = "a layer with attn_output and no heads is not built".to_owned();
            return Err(self.unsupported(About::Tensor(name), reason));
        }
        if layer.heads.is_some() && layer.feed_forward == 0 {
            let reason = "llama.cpp passes over attention without a feed-forward part".to_owned();
            return Err(self.unsupported(About::Layer(i), reason));
        }
        Ok(())
    }
}
