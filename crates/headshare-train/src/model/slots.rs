//! Which tensors of the file each part of a layer computes with.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;

use headshare_convert::model::About;

use crate::config::{Config, Heads};
use crate::error::TrainError;
use crate::parameters::Parameters;

/// A parameter, or part of it.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    pub index: usize,
    /// Which of its numbers.
    pub numbers: Range<usize>,
    /// Rows of these; 1 for a vector.
    pub rows: usize,
}

/// A matrix and the bias that is added after it.
#[derive(Debug, Clone)]
pub(super) struct LinearSlots {
    pub weight: Slot,
    pub bias: Option<Slot>,
}

/// A norm's scale and shift.
pub(super) type NormSlots = LinearSlots;

#[derive(Debug)]
pub(super) struct AttentionSlots {
    pub heads: Heads,
    pub norm: NormSlots,
    pub q: LinearSlots,
    pub k: LinearSlots,
    pub v: LinearSlots,
    pub q_norm: Option<NormSlots>,
    pub k_norm: Option<NormSlots>,
    pub output: LinearSlots,
    pub post_norm: Option<NormSlots>,
}

#[derive(Debug)]
pub(super) struct FeedForwardSlots {
    pub norm: NormSlots,
    pub gate: Option<LinearSlots>,
    pub up: LinearSlots,
    pub down: LinearSlots,
    pub post_norm: Option<NormSlots>,
}

#[derive(Debug)]
pub(super) struct LayerSlots {
    pub attention: Option<AttentionSlots>,
    pub feed_forward: Option<FeedForwardSlots>,
}

/// All tensors of a model by their use.
#[derive(Debug)]
pub(super) struct Slots {
    pub embedding: usize,
    pub positions: Option<usize>,
    pub layers: Vec<LayerSlots>,
    pub output_norm: NormSlots,
    /// The output head: the embedding where the file has no other.
    pub head: usize,
    /// `rope_freqs.weight`: no parameter, but constants.
    pub factors: Option<usize>,
}

impl Slots {
    /// Finds every tensor that `config` asks for.
    ///
    /// # Errors
    /// Names the tensor that is missing, has another shape, or is not used: llama.cpp
    /// would compute something with it that is not built here.
    pub fn find(
        config: &Config,
        parameters: &Parameters,
        always_tied: bool,
        path: &Path,
    ) -> Result<Self, TrainError> {
        let mut finder = Finder {
            config,
            parameters,
            path,
            used: BTreeSet::new(),
        };
        let slots = finder.all(always_tied)?;
        for (i, parameter) in parameters.list().iter().enumerate() {
            if !finder.used.contains(&i) {
                let reason = "is not part of the graph that is built here";
                return Err(finder.error(&parameter.name, reason.to_owned()));
            }
        }
        Ok(slots)
    }
}

struct Finder<'a> {
    config: &'a Config,
    parameters: &'a Parameters,
    path: &'a Path,
    used: BTreeSet<usize>,
}

impl Finder<'_> {
    fn error(&self, name: &str, reason: String) -> TrainError {
        TrainError::Unsupported {
            path: self.path.to_owned(),
            architecture: self.config.kind.name.to_owned(),
            place: About::Tensor(name.to_owned()),
            reason,
        }
    }

    fn all(&mut self, always_tied: bool) -> Result<Slots, TrainError> {
        let (width, kind) = (self.config.width, self.config.kind);
        let embedding = self.matrix("token_embd.weight", None, width)?;
        let vocabulary = embedding.rows;
        let positions = match kind.rope {
            None => {
                Some(self.matrix("position_embd.weight", Some(self.config.positions), width)?)
            }
            Some(_) => None,
        };
        let head = match self.parameters.index("output.weight") {
            Some(_) if !always_tied => self.matrix("output.weight", Some(vocabulary), width)?,
            _ => embedding.clone(),
        };
        let factors = match self.parameters.index("rope_freqs.weight") {
            Some(_) if kind.rope_factors => Some(
                self.vector("rope_freqs.weight", self.config.rotated / 2)?
                    .index,
            ),
            _ => None,
        };
        let layers = (0..self.config.layers.len()).map(|i| self.layer(i));
        let layers = layers.collect::<Result<_, _>>()?;
        Ok(Slots {
            embedding: embedding.index,
            positions: positions.map(|slot| slot.index),
            layers,
            output_norm: self.norm("output_norm", width)?,
            head: head.index,
            factors,
        })
    }

    fn layer(&mut self, i: usize) -> Result<LayerSlots, TrainError> {
        let (config, layer) = (self.config, self.config.layers[i]);
        let (width, kind) = (config.width, config.kind);
        let name = |part: &str| format!("blk.{i}.{part}");
        let attention = match layer.heads {
            None => None,
            Some(heads) => {
                let [q, k, v] = self.heads(i, heads)?;
                let [q_norm, k_norm] = match kind.qk_norms {
                    true => [
                        Some(self.norm(&name("attn_q_norm"), heads.size)?),
                        Some(self.norm(&name("attn_k_norm"), heads.size)?),
                    ],
                    false => [None, None],
                };
                Some(AttentionSlots {
                    heads,
                    norm: self.norm(&name("attn_norm"), width)?,
                    q,
                    k,
                    v,
                    q_norm,
                    k_norm,
                    output: self.linear(&name("attn_output"), width, heads.heads * heads.size)?,
                    post_norm: self.post_norm(&name("post_attention_norm"))?,
                })
            }
        };
        let feed_forward = match layer.feed_forward {
            0 => None,
            channels => Some(FeedForwardSlots {
                norm: self.norm(&name("ffn_norm"), width)?,
                gate: match kind.gated {
                    true => Some(self.linear(&name("ffn_gate"), channels, width)?),
                    false => None,
                },
                up: self.linear(&name("ffn_up"), channels, width)?,
                down: self.linear(&name("ffn_down"), width, channels)?,
                post_norm: self.post_norm(&name("post_ffw_norm"))?,
            }),
        };
        Ok(LayerSlots {
            attention,
            feed_forward,
        })
    }

    fn post_norm(&mut self, name: &str) -> Result<Option<NormSlots>, TrainError> {
        match self.config.kind.post_norms {
            true => self.norm(name, self.config.width).map(Some),
            false => Ok(None),
        }
    }

    /// q, k and v, each with its bias: tensors, or rows of one.
    fn heads(&mut self, i: usize, heads: Heads) -> Result<[LinearSlots; 3], TrainError> {
        let name = |part: &str| format!("blk.{i}.{part}");
        let rows = [heads.heads, heads.kv_heads, heads.kv_heads].map(|n| n * heads.size);
        let stems = ["attn_q", "attn_k", "attn_v"].map(name);
        let width = self.config.width;
        if !heads.fused {
            let [q, k, v] = &stems;
            return Ok([
                self.linear(q, rows[0], width)?,
                self.linear(k, rows[1], width)?,
                self.linear(v, rows[2], width)?,
            ]);
        }
        let total = rows.iter().sum();
        let all = self.linear(&name("attn_qkv"), total, width)?;
        let mut first = 0;
        let mut parts = Vec::with_capacity(3);
        for (rows, stem) in rows.into_iter().zip(&stems) {
            let part = first..first + rows;
            let bias = match &all.bias {
                Some(bias) => Some(Slot {
                    numbers: part.clone(),
                    ..bias.clone()
                }),
                None => self.bias(stem, rows)?,
            };
            parts.push(LinearSlots {
                weight: Slot {
                    index: all.weight.index,
                    numbers: part.start * width..part.end * width,
                    rows,
                },
                bias,
            });
            first = part.end;
        }
        let parts: Result<[LinearSlots; 3], _> = parts.try_into();
        parts.map_err(|_| self.error(&name("attn_qkv"), "has no three parts".to_owned()))
    }

    fn linear(
        &mut self,
        stem: &str,
        rows: usize,
        columns: usize,
    ) -> Result<LinearSlots, TrainError> {
        Ok(LinearSlots {
            weight: self.matrix(&format!("{stem}.weight"), Some(rows), columns)?,
            bias: self.bias(stem, rows)?,
        })
    }

    fn bias(&mut self, stem: &str, rows: usize) -> Result<Option<Slot>, TrainError> {
        let name = format!("{stem}.bias");
        match self.parameters.index(&name) {
            Some(_) => self.vector(&name, rows).map(Some),
            None => Ok(None),
        }
    }

    fn norm(&mut self, stem: &str, width: usize) -> Result<NormSlots, TrainError> {
        let weight = self.vector(&format!("{stem}.weight"), width)?;
        let bias = self.bias(stem, width)?;
        Ok(NormSlots { weight, bias })
    }

    fn vector(&mut self, name: &str, len: usize) -> Result<Slot, TrainError> {
        self.matrix(name, Some(1), len)
    }

    fn matrix(
        &mut self,
        name: &str,
        rows: Option<usize>,
        columns: usize,
    ) -> Result<Slot, TrainError> {
        let index = self.parameters.index(name);
        let index = index.ok_or_else(|| self.error(name, "is not in the file".to_owned()))?;
        let parameter = &self.parameters.list()[index];
        if rows.is_some_and(|rows| rows != parameter.rows) || columns != parameter.columns {
            let (found, other) = (parameter.rows, parameter.columns);
            let wanted = rows.map_or("any number".to_owned(), |rows| rows.to_string());
            let reason = format!("has {found} rows of {other}; {wanted} of {columns} are needed");
            return Err(self.error(name, reason));
        }
        self.used.insert(index);
        Ok(Slot {
            index,
            numbers: 0..parameter.rows * columns,
            rows: parameter.rows,
        })
    }
}
