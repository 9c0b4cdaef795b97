//! What training makes smaller: cross-entropy of the next token, the divergence from
//! another model's predictions, and the distance of heads ([`pairs`]).
//!
//! Logits are made for [`CHUNK`] tokens at a time: a matrix of all tokens x the
//! vocabulary is never there.

mod device;
mod host;
pub mod pairs;

use candle_core::{Device, Tensor};

use crate::error::TrainError;
use crate::model::Model;
use crate::ops::Kernels;
use crate::parameters::Gradients;
use crate::windows::Windows;

/// Tokens whose logits are there at once.
pub const CHUNK: usize = 128;

/// What is made smaller: a weighted sum, each part a mean over predicted tokens.
#[derive(Debug, Clone, Copy, Default)]
pub struct Objective<'a> {
    /// Weight of the cross-entropy of the next token.
    pub language: f32,
    /// Another model with the same vocabulary, and the weight of the Kullback-Leibler
    /// divergence from its predictions (Hinton et al. 2015, at temperature 1).
    pub distillation: Option<(&'a Model, f32)>,
}

/// Sums over tokens, in nats.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Losses {
    /// Of the cross-entropy.
    pub language: f64,
    /// Of the divergence; 0 without another model.
    pub distillation: f64,
    /// Predicted tokens: all but the first of each window.
    pub tokens: usize,
}

impl Losses {
    /// The objective's value: what the gradients are of.
    pub fn total(&self, objective: &Objective<'_>) -> f64 {
        let distillation = objective.distillation.map_or(0.0, |(_, weight)| weight);
        let sum = f64::from(objective.language) * self.language
            + f64::from(distillation) * self.distillation;
        sum / self.tokens.max(1) as f64
    }

    /// Adds those of other windows.
    pub fn add(&mut self, other: &Self) {
        self.language += other.language;
        self.distillation += other.distillation;
        self.tokens += other.tokens;
    }
}

/// The losses over `windows`, and the gradients of [`Losses::total`] with regard to
/// every parameter.
///
/// # Errors
/// When the windows or the other model do not fit the model.
pub fn loss_and_gradients(
    model: &Model,
    windows: &Windows,
    objective: &Objective<'_>,
) -> Result<(Losses, Gradients), TrainError> {
    let sums = Gradients::zeros(model.parameters(), |i| !model.is_constant(i));
    let weight = 1.0 / predicted(windows) as f32;
    let losses = add_gradients(model, windows, objective, weight, &sums)?;
    sums.fold_ties(model.parameters());
    Ok((losses, sums))
}

/// Tokens of the windows that are predicted.
pub fn predicted(windows: &Windows) -> usize {
    windows.count() * (windows.length() - 1)
}

/// Adds `weight` times the gradients of the sums over tokens to `sums`, of ties not
/// [folded](Gradients::fold_ties) yet.
///
/// # Errors
/// As [`loss_and_gradients`].
pub fn add_gradients(
    model: &Model,
    windows: &Windows,
    objective: &Objective<'_>,
    weight: f32,
    sums: &Gradients,
) -> Result<Losses, TrainError> {
    let forward = model.forward(windows)?;
    let part = Part {
        objective,
        weight,
        sums: Some(sums),
    };
    let (losses, gradient) = part.of(model, &forward.hidden, windows)?;
    if let Some(gradient) = gradient {
        model.backward(forward, &gradient, sums)?;
    }
    Ok(losses)
}

/// The losses over `windows` alone.
///
/// # Errors
/// As [`loss_and_gradients`].
pub fn losses(
    model: &Model,
    windows: &Windows,
    objective: &Objective<'_>,
) -> Result<Losses, TrainError> {
    let part = Part {
        objective,
        weight: 0.0,
        sums: None,
    };
    Ok(part.of(model, &model.hidden(windows)?, windows)?.0)
}

/// A pass from hidden states to losses, and back where `sums` are there.
struct Part<'a> {
    objective: &'a Objective<'a>,
    weight: f32,
    sums: Option<&'a Gradients>,
}

/// What a model predicts with: hidden states, and the head.
struct Predictor<'a> {
    model: &'a Model,
    hidden: Tensor,
}

impl Part<'_> {
    /// The losses, and the gradient with regard to `hidden`.
    fn of(
        &self,
        model: &Model,
        hidden: &Tensor,
        windows: &Windows,
    ) -> Result<(Losses, Option<Tensor>), TrainError> {
        let teacher = match self.objective.distillation {
            Some((teacher, _)) if teacher.vocabulary() != model.vocabulary() => {
                let (a, b) = (teacher.vocabulary(), model.vocabulary());
                let problem = format!("the other model's vocabulary is {a}, not {b} tokens");
                return Err(TrainError::option("distillation", problem));
            }
            Some((teacher, _)) => Some(Predictor {
                model: teacher,
                hidden: teacher.hidden(windows)?,
            }),
            None => None,
        };
        let student = Predictor {
            model,
            hidden: hidden.clone(),
        };
        let targets = targets(windows);
        let own = matches!(model.kernels(), Kernels::Own)
            && teacher
                .as_ref()
                .is_none_or(|t| t.model.kernels() == Kernels::Own);
        let (losses, gradient) = match own {
            true => host::run(self, &student, teacher.as_ref(), &targets)?,
            false => device::run(self, &student, teacher.as_ref(), &targets)?,
        };
        Ok((losses, gradient))
    }

    /// Weights of a token's cross-entropy and divergence in the gradient.
    fn weights(&self) -> (f32, f32) {
        let distillation = self
            .objective
            .distillation
            .map_or(0.0, |(_, weight)| weight);
        (
            self.objective.language * self.weight,
            distillation * self.weight,
        )
    }
}

/// The token that follows each, in the same window.
fn targets(windows: &Windows) -> Vec<Option<u32>> {
    let follow = |window: &[u32]| {
        let next = window[1..].iter().copied().map(Some);
        next.chain([None]).collect::<Vec<_>>()
    };
    let all = windows.tokens().chunks_exact(windows.length());
    all.flat_map(follow).collect()
}

/// Hidden states on the CPU.
fn on_cpu(hidden: &Tensor) -> Result<Tensor, TrainError> {
    Ok(hidden.to_device(&Device::Cpu)?)
}
