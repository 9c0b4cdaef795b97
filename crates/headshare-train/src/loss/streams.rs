//! How far the residual stream is from another model's.
//!
//! After each layer and for each token t, it is |x_t - x⁰_t|² / |x⁰_t|², with x⁰ of the other
//! model; the mean over the layers. Relative, since a few tokens have activations that are
//! larger by orders of magnitude.

use candle_core::{D, DType, Tensor};

use super::part::predicted;
use crate::config::Config;
use crate::error::TrainError;
use crate::model::Model;
use crate::windows::Windows;

/// The residual stream of another model after each layer: tokens x width.
pub(super) struct Streams {
    others: Vec<Tensor>,
    /// What a token counts, so that all together count as much as those that are predicted.
    token: f64,
}

/// Refuses a model to learn hidden states from that has others than the `learning` one.
///
/// # Errors
/// When they have not as many layers, or not of the same width.
pub fn check_alike(teacher: &Config, learning: &Config) -> Result<(), TrainError> {
    let shape = |of: &Config| (of.layers.len(), of.width);
    let (theirs, ours) = (shape(teacher), shape(learning));
    if theirs == ours {
        return Ok(());
    }
    let problem = format!(
        "the other model has {} layers of width {}, not {} of {}: its hidden states cannot be compared",
        theirs.0, theirs.1, ours.0, ours.1
    );
    Err(TrainError::option("hidden", problem))
}

impl Streams {
    /// Those of `teacher`, which must be of the same shape as `model`, over `windows`; and
    /// its hidden states.
    pub fn of(
        teacher: &Model,
        model: &Model,
        windows: &Windows,
    ) -> Result<(Self, Tensor), TrainError> {
        check_alike(teacher.config(), model.config())?;
        let mut others = Vec::new();
        let hidden = teacher.hidden_with(windows, |stream| others.push(stream))?;
        let others = others.iter().map(|of| of.to_dtype(DType::F32));
        let this = Self {
            others: others.collect::<Result<_, _>>()?,
            token: predicted(windows) as f64 / windows.tokens().len() as f64,
        };
        Ok((this, hidden))
    }

    /// The distance of the stream after this layer, summed over the tokens; of all layers
    /// together, the mean.
    pub fn distance(&self, layer: usize, stream: &Tensor) -> Result<f64, TrainError> {
        let (stream, other) = (stream.to_dtype(DType::F32)?, &self.others[layer]);
        let off = (stream - other)?.sqr()?.sum(D::Minus1)?;
        let sum = (off / squares(other)?)?.sum_all()?.to_scalar::<f32>()?;
        Ok(f64::from(sum) * self.token / self.others.len() as f64)
    }

    /// The distance of the stream after all layers, which come one after the other.
    pub fn distances<'a>(
        &self,
        streams: impl Iterator<Item = &'a Tensor>,
    ) -> Result<f64, TrainError> {
        let each = streams.enumerate();
        each.map(|(layer, stream)| self.distance(layer, stream))
            .sum()
    }

    /// `weight` times the gradient of [`distance`](Self::distance) with regard to the
    /// stream after this layer.
    pub fn gradient(
        &self,
        layer: usize,
        stream: &Tensor,
        weight: f32,
    ) -> Result<Tensor, TrainError> {
        let other = &self.others[layer];
        let scale = 2.0 * f64::from(weight) * self.token / self.others.len() as f64;
        let of_token = (squares(other)?.recip()? * scale)?.unsqueeze(D::Minus1)?;
        let off = (stream.to_dtype(DType::F32)? - other)?;
        Ok(off.broadcast_mul(&of_token)?.to_dtype(stream.dtype())?)
    }
}

/// The squares of each token's stream; a stream of zeros counts as a small one.
fn squares(stream: &Tensor) -> Result<Tensor, TrainError> {
    Ok(stream
        .sqr()?
        .sum(D::Minus1)?
        .maximum(f64::from(f32::MIN_POSITIVE))?)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn distances_are_relative_and_gradients_their_slopes() {
        let others = [
            [[3.0f32, 4.0], [0.1, 0.2], [1.0, 0.0]],
            [[5.0, 0.0], [1.0, 1.0], [0.5, 2.0]],
        ];
        let stream = [[3.5f32, 3.0], [0.1, 0.4], [0.0, 0.0]];
        let tensor = |rows: &[[f32; 2]; 3]| Tensor::new(rows, &Device::Cpu).unwrap();
        let streams = Streams {
            others: others.iter().map(tensor).collect(),
            token: 0.75,
        };
        let plain = |stream: &[[f32; 2]; 3], other: &[[f32; 2]; 3]| -> f64 {
            let tokens = stream.iter().zip(other).map(|(x, other)| {
                let square = |of: f32| f64::from(of).powi(2);
                let off = square(x[0] - other[0]) + square(x[1] - other[1]);
                off / (square(other[0]) + square(other[1]))
            });
            0.75 * tokens.sum::<f64>() / 2.0
        };
        for (layer, other) in others.iter().enumerate() {
            let found = streams.distance(layer, &tensor(&stream)).unwrap();
            let expected = plain(&stream, other);
            assert!(
                (found - expected).abs() < 1e-5 * expected,
                "{found} {expected}"
            );
            let gradient = streams.gradient(layer, &tensor(&stream), 0.3).unwrap();
            let gradient = gradient.to_vec2::<f32>().unwrap();
            for token in 0..3 {
                for i in 0..2 {
                    let moved = |by: f32| {
                        let mut stream = stream;
                        stream[token][i] += by;
                        plain(&stream, other)
                    };
                    let slope = 0.3 * (moved(0.5) - moved(-0.5));
                    let found = f64::from(gradient[token][i]);
                    assert!((found - slope).abs() < 1e-4, "{found} {slope}");
                }
            }
        }
    }
}
