//! What training makes smaller: cross-entropy of the next token, the divergence from
//! another model's predictions, the distance from its residual stream, and the distance of
//! heads ([`pairs`]).
//!
//! Logits are made for [`CHUNK`] tokens at a time: a matrix of all tokens x the
//! vocabulary is never there.

mod device;
mod host;
pub mod pairs;
mod part;
mod streams;

use candle_core::Tensor;

use crate::error::TrainError;
use crate::model::Model;
use crate::ops::Kernels;
use crate::parameters::Gradients;
use crate::windows::Windows;
pub use part::{CHUNK, Distillation, Losses, Objective, predicted};
use part::{Part, Predictor, targets};
use streams::Streams;
pub use streams::check_alike;

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
    let teacher = Teacher::of(&part, model, windows)?;
    let (mut losses, gradient) = of(&part, model, &forward.hidden, teacher.as_ref(), windows)?;
    let streams = teacher
        .as_ref()
        .and_then(|teacher| teacher.streams.as_ref());
    if let Some((streams, _)) = streams {
        losses.hidden = streams.distances(forward.streams())?;
    }
    if let Some(gradient) = gradient {
        model.backward(forward, &gradient, sums, |layer, stream| {
            let pull = streams.map(|(of, hidden)| of.gradient(layer, stream, hidden * weight));
            pull.transpose()
        })?;
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
    let teacher = Teacher::of(&part, model, windows)?;
    let others = teacher
        .as_ref()
        .and_then(|teacher| teacher.streams.as_ref());
    let mut streams = Vec::new();
    let hidden = match others {
        Some(_) => model.hidden_with(windows, |stream| streams.push(stream))?,
        None => model.hidden(windows)?,
    };
    let (mut losses, _) = of(&part, model, &hidden, teacher.as_ref(), windows)?;
    if let Some((others, _)) = others {
        losses.hidden = others.distances(streams.iter())?;
    }
    Ok(losses)
}

/// What another model makes of the windows.
struct Teacher<'a> {
    predictor: Predictor<'a>,
    /// Its residual stream, and the weight of the distance from it.
    streams: Option<(Streams, f32)>,
}

impl<'a> Teacher<'a> {
    fn of(part: &Part<'a>, model: &Model, windows: &Windows) -> Result<Option<Self>, TrainError> {
        let Some(Distillation {
            teacher, hidden, ..
        }) = part.objective.distillation
        else {
            return Ok(None);
        };
        if teacher.vocabulary() != model.vocabulary() {
            let (a, b) = (teacher.vocabulary(), model.vocabulary());
            let problem = format!("the other model's vocabulary is {a}, not {b} tokens");
            return Err(TrainError::option("distillation", problem));
        }
        let (states, streams) = match hidden > 0.0 {
            true => {
                let (streams, states) = Streams::of(teacher, model, windows)?;
                (states, Some((streams, hidden)))
            }
            false => (teacher.hidden(windows)?, None),
        };
        Ok(Some(Self {
            predictor: Predictor {
                model: teacher,
                hidden: states,
            },
            streams,
        }))
    }
}

/// The losses, and the gradient with regard to `hidden`.
fn of(
    part: &Part<'_>,
    model: &Model,
    hidden: &Tensor,
    teacher: Option<&Teacher<'_>>,
    windows: &Windows,
) -> Result<(Losses, Option<Tensor>), TrainError> {
    let teacher = teacher.map(|teacher| &teacher.predictor);
    let student = Predictor {
        model,
        hidden: hidden.clone(),
    };
    let targets = targets(windows);
    let own = matches!(model.kernels(), Kernels::Own)
        && teacher.is_none_or(|t| t.model.kernels() == Kernels::Own);
    let (losses, gradient) = match own {
        true => host::run(part, &student, teacher, &targets)?,
        false => device::run(part, &student, teacher, &targets)?,
    };
    Ok((losses, gradient))
}
