//! The objective, and what both ways of computing it share.

use candle_core::{Device, Tensor};

use crate::error::TrainError;
use crate::model::Model;
use crate::parameters::Gradients;
use crate::windows::Windows;

/// Tokens whose logits are there at once.
pub const CHUNK: usize = 128;

/// What is made smaller: a weighted sum, each part a mean over predicted tokens.
#[derive(Debug, Clone, Copy, Default)]
pub struct Objective<'a> {
    /// Weight of the cross-entropy of the next token.
    pub language: f32,
    /// What another model teaches.
    pub distillation: Option<Distillation<'a>>,
}

/// What another model teaches.
#[derive(Debug, Clone, Copy)]
pub struct Distillation<'a> {
    /// The other model, with the same vocabulary.
    pub teacher: &'a Model,
    /// Weight of the Kullback-Leibler divergence from its predictions (Hinton et al. 2015, at
    /// temperature 1).
    pub divergence: f32,
    /// Weight of the relative distance from its residual stream, a mean over the layers; needs
    /// as many layers of the same width.
    pub hidden: f32,
}

/// Sums over tokens, in nats.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Losses {
    /// Of the cross-entropy.
    pub language: f64,
    /// Of the divergence; 0 without another model.
    pub distillation: f64,
    /// Of the distance from the other model's residual stream; 0 where it counts nothing.
    pub hidden: f64,
    /// Predicted tokens: all but the first of each window.
    pub tokens: usize,
}

impl Losses {
    /// The objective's value: what the gradients are of.
    pub fn total(&self, objective: &Objective<'_>) -> f64 {
        let (divergence, hidden) =
            (objective.distillation).map_or((0.0, 0.0), |of| (of.divergence, of.hidden));
        let sum = f64::from(objective.language) * self.language
            + f64::from(divergence) * self.distillation
            + f64::from(hidden) * self.hidden;
        sum / self.tokens.max(1) as f64
    }

    /// Adds those of other windows.
    pub fn add(&mut self, other: &Self) {
        self.language += other.language;
        self.distillation += other.distillation;
        self.hidden += other.hidden;
        self.tokens += other.tokens;
    }
}

/// Tokens of the windows that are predicted.
pub fn predicted(windows: &Windows) -> usize {
    windows.count() * (windows.length() - 1)
}

/// A pass from hidden states to losses, and back where `sums` are there.
pub(super) struct Part<'a> {
    pub objective: &'a Objective<'a>,
    pub weight: f32,
    pub sums: Option<&'a Gradients>,
}

/// What a model predicts with: hidden states, and the head.
pub(super) struct Predictor<'a> {
    pub model: &'a Model,
    pub hidden: Tensor,
}

impl Part<'_> {
    /// Weights of a token's cross-entropy and divergence in the gradient.
    pub fn weights(&self) -> (f32, f32) {
        let divergence = (self.objective.distillation).map_or(0.0, |of| of.divergence);
        (
            self.objective.language * self.weight,
            divergence * self.weight,
        )
    }
}

/// The token that follows each, in the same window.
pub(super) fn targets(windows: &Windows) -> Vec<Option<u32>> {
    let follow = |window: &[u32]| {
        let next = window[1..].iter().copied().map(Some);
        next.chain([None]).collect::<Vec<_>>()
    };
    let all = windows.tokens().chunks_exact(windows.length());
    all.flat_map(follow).collect()
}

/// Hidden states on the CPU.
pub(super) fn on_cpu(hidden: &Tensor) -> Result<Tensor, TrainError> {
    Ok(hidden.to_device(&Device::Cpu)?)
}
