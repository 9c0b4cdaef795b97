//! What training makes smaller: cross-entropy of the next token, the divergence from
//! another model's predictions, and the distance of heads ([`pairs`]).
//!
//! Logits are made for [`CHUNK`] tokens at a time: a matrix of all tokens x the
//! vocabulary is never there.

mod device;
mod host;
pub mod pairs;
mod part;

use candle_core::Tensor;

use crate::error::TrainError;
use crate::model::Model;
use crate::ops::Kernels;
use crate::parameters::Gradients;
use crate::windows::Windows;
pub use part::{CHUNK, Losses, Objective, predicted};
use part::{Part, Predictor, targets};

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
    let forward = model.forward(windows, sums)?;
    let part = Part {
        objective,
        weight,
        sums: Some(sums),
    };
    let (losses, gradient) = of(&part, model, &forward.hidden, windows)?;
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
    Ok(of(&part, model, &model.hidden(windows)?, windows)?.0)
}

/// The losses, and the gradient with regard to `hidden`.
fn of(
    part: &Part<'_>,
    model: &Model,
    hidden: &Tensor,
    windows: &Windows,
) -> Result<(Losses, Option<Tensor>), TrainError> {
    let teacher = match part.objective.distillation {
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
        true => host::run(part, &student, teacher.as_ref(), &targets)?,
        false => device::run(part, &student, teacher.as_ref(), &targets)?,
    };
    Ok((losses, gradient))
}
