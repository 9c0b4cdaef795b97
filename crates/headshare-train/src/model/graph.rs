//! How layers compute, from the tensors that their parts have.

use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::slots::{AttentionSlots, FeedForwardSlots, LinearSlots, NormSlots, Slot, Slots};
use crate::config::{Config, Heads};
use crate::error::TrainError;
use crate::ops::{Attention, Kernels, Linear, Norm, Rotation, Weight};
use crate::parameters::{Gradients, Parameters};
use crate::windows::Windows;

/// A model without its numbers.
#[derive(Debug)]
pub(super) struct Graph {
    pub config: Config,
    pub slots: Slots,
    pub device: Device,
    pub kernels: Kernels,
}

/// What all layers of one pass need.
#[derive(Debug)]
pub(super) struct Pass {
    pub windows: Windows,
    /// Each layer's.
    rotations: Vec<Option<Arc<Rotation>>>,
}

/// Gives operations their weights, and remembers which.
pub(super) struct Weights<'a> {
    pub graph: &'a Graph,
    pub parameters: &'a Parameters,
    /// Where gradients are added; `None` in a pass that does not go back.
    pub sums: Option<&'a Gradients>,
    /// Those of the layer that is computed.
    pub given: Vec<Weight>,
}

impl Weights<'_> {
    fn weight(&mut self, slot: &Slot) -> Result<Weight, TrainError> {
        let device = (self.graph.kernels == Kernels::Candle).then_some(&self.graph.device);
        let part = (slot.index, slot.numbers.clone(), slot.rows);
        let weight = self.parameters.weight(part, self.sums, device)?;
        self.given.push(weight.clone());
        Ok(weight)
    }

    fn linear(&mut self, x: &Tensor, slots: &LinearSlots) -> Result<Tensor, TrainError> {
        let bias = slots.bias.as_ref().map(|bias| self.weight(bias));
        let op = Linear {
            weight: self.weight(&slots.weight)?,
            bias: bias.transpose()?,
        };
        Ok(self.graph.kernels.linear(x, op)?)
    }

    pub fn norm(&mut self, x: &Tensor, slots: &NormSlots) -> Result<Tensor, TrainError> {
        let bias = slots.bias.as_ref().map(|bias| self.weight(bias));
        let op = Norm {
            kind: self.graph.config.kind.norm,
            epsilon: self.graph.config.epsilon,
            weight: self.weight(&slots.weight)?,
            bias: bias.transpose()?,
        };
        Ok(self.graph.kernels.norm(x, op)?)
    }

    fn maybe_norm(&mut self, x: Tensor, slots: &Option<NormSlots>) -> Result<Tensor, TrainError> {
        match slots {
            Some(slots) => self.norm(&x, slots),
            None => Ok(x),
        }
    }
}

impl Graph {
    /// What all layers need for `windows`.
    ///
    /// # Errors
    /// When a window is longer than there are positions.
    pub fn pass(&self, windows: &Windows, parameters: &Parameters) -> Result<Pass, TrainError> {
        let length = windows.length();
        if self.slots.positions.is_some() && length > self.config.positions {
            let positions = self.config.positions;
            return Err(TrainError::Positions { length, positions });
        }
        let factors = self.slots.factors.map(|i| parameters.list()[i].values());
        let mut made: Vec<((f32, f32), Arc<Rotation>)> = Vec::new();
        let mut rotation = |turns: (f32, f32), size: usize| {
            let pairs = self.config.kind.rope?;
            if let Some((_, there)) = made.iter().find(|(of, _)| *of == turns) {
                return Some(Arc::clone(there));
            }
            let rotated = self.config.rotated;
            let new = Rotation::new(pairs, size, rotated, length, turns, factors);
            made.push((turns, Arc::new(new)));
            made.last().map(|(_, new)| Arc::clone(new))
        };
        let layers = self.config.layers.iter();
        let rotations = layers.map(|layer| rotation(layer.rope, layer.heads?.size));
        Ok(Pass {
            rotations: rotations.collect(),
            windows: windows.clone(),
        })
    }

    /// One layer: tokens x width to the same.
    pub fn layer(
        &self,
        layer: usize,
        x: &Tensor,
        pass: &Pass,
        weights: &mut Weights<'_>,
    ) -> Result<Tensor, TrainError> {
        let slots = &self.slots.layers[layer];
        let mut x = x.clone();
        if let Some(slots) = &slots.attention {
            let branch = self.attention(layer, &x, slots, pass, weights)?;
            x = self.kernels.add(&x, &branch)?;
        }
        if let Some(slots) = &slots.feed_forward {
            let branch = self.feed_forward(&x, slots, weights)?;
            x = self.kernels.add(&x, &branch)?;
        }
        Ok(x)
    }

    fn attention(
        &self,
        layer: usize,
        x: &Tensor,
        slots: &AttentionSlots,
        pass: &Pass,
        weights: &mut Weights<'_>,
    ) -> Result<Tensor, TrainError> {
        let x = weights.norm(x, &slots.norm)?;
        let q = weights.linear(&x, &slots.q)?;
        let k = weights.linear(&x, &slots.k)?;
        let v = weights.linear(&x, &slots.v)?;
        let mut q = weights.maybe_norm(q, &slots.q_norm)?;
        let mut k = weights.maybe_norm(k, &slots.k_norm)?;
        if let Some(rotation) = &pass.rotations[layer] {
            q = self.kernels.rope(&q, rotation)?;
            k = self.kernels.rope(&k, rotation)?;
        }
        let Heads {
            heads,
            kv_heads,
            size,
            ..
        } = slots.heads;
        let op = Attention {
            window: pass.windows.length(),
            heads,
            kv_heads,
            key: size,
            value: size,
            scale: self.config.attention_scale,
            softcap: self.config.attention_softcap,
            sliding: self.config.layers[layer].sliding,
        };
        let out = self.kernels.attention(&q, &k, &v, op)?;
        let out = weights.linear(&out, &slots.output)?;
        weights.maybe_norm(out, &slots.post_norm)
    }

    fn feed_forward(
        &self,
        x: &Tensor,
        slots: &FeedForwardSlots,
        weights: &mut Weights<'_>,
    ) -> Result<Tensor, TrainError> {
        let x = weights.norm(x, &slots.norm)?;
        let function = self.config.kind.activation;
        let up = weights.linear(&x, &slots.up)?;
        let middle = match &slots.gate {
            Some(gate) => {
                let gate = weights.linear(&x, gate)?;
                self.kernels.gated(&gate, &up, function)?
            }
            None => self.kernels.activation(&up, function)?,
        };
        let out = weights.linear(&middle, &slots.down)?;
        weights.maybe_norm(out, &slots.post_norm)
    }
}
