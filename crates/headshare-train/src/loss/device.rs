//! Logits, losses and their gradients in candle's operations, for other devices.

use candle_core::{D, DType, Device, Result, Tensor};

use super::part::{CHUNK, Losses, Part, Predictor};
use crate::error::TrainError;
use crate::ops;

/// As [`super::host::run`].
pub(super) fn run(
    part: &Part<'_>,
    student: &Predictor<'_>,
    teacher: Option<&Predictor<'_>>,
    targets: &[Option<u32>],
) -> std::result::Result<(Losses, Option<Tensor>), TrainError> {
    let head = student.head()?;
    let other_head = teacher.map(Predictor::head).transpose()?;
    let mut losses = Losses::default();
    let mut gradients = Vec::new();
    let mut head_gradient: Option<Tensor> = None;
    for (i, targets) in targets.chunks(CHUNK).enumerate() {
        let (first, n) = (i * CHUNK, targets.len());
        let hidden = student.hidden.narrow(0, first, n)?;
        let chunk = Chunk {
            part,
            logits: student.logits(&hidden, &head)?,
            others: match (teacher, &other_head) {
                (Some(teacher), Some(head)) => {
                    Some(teacher.logits(&teacher.hidden.narrow(0, first, n)?, head)?)
                }
                _ => None,
            },
            cap: student.model.config().final_softcap,
        };
        let (sums, changes) = chunk.run(targets)?;
        losses.add(&sums);
        if part.sums.is_some() {
            gradients.push(changes.matmul(&head)?);
            let new = changes.t()?.matmul(&hidden)?;
            head_gradient = Some(match head_gradient {
                Some(sum) => (sum + new)?,
                None => new,
            });
        }
    }
    if let (Some(sums), Some(gradient)) = (part.sums, head_gradient) {
        let gradient = gradient.to_device(&Device::Cpu)?;
        ops::with(&gradient, |gradient| {
            sums.with(student.model.head(), |sum| ops::add(sum, gradient));
            Ok(())
        })?;
    }
    let gradient = match part.sums {
        Some(_) => Some(Tensor::cat(&gradients, 0)?),
        None => None,
    };
    Ok((losses, gradient))
}

impl Predictor<'_> {
    fn head(&self) -> Result<Tensor> {
        let head = &self.model.parameters().list()[self.model.head()];
        Tensor::from_slice(
            head.values(),
            (head.rows, head.columns),
            self.model.device(),
        )
    }

    fn logits(&self, hidden: &Tensor, head: &Tensor) -> Result<Tensor> {
        let logits = hidden.matmul(&head.t()?)?;
        match self.model.config().final_softcap {
            Some(cap) => (logits / f64::from(cap))?.tanh()? * f64::from(cap),
            None => Ok(logits),
        }
    }
}

/// Capped logits of some tokens.
struct Chunk<'a> {
    part: &'a Part<'a>,
    logits: Tensor,
    others: Option<Tensor>,
    cap: Option<f32>,
}

/// Logarithms of predictions.
fn logs(logits: &Tensor) -> Result<Tensor> {
    let logits = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?)?;
    let all = logits.exp()?.sum_keepdim(D::Minus1)?.log()?;
    logits.broadcast_sub(&all)
}

impl Chunk<'_> {
    /// Sums of losses, and the gradient with regard to the logits before the cap.
    fn run(&self, targets: &[Option<u32>]) -> Result<(Losses, Tensor)> {
        let device = self.logits.device();
        let n = targets.len();
        let counts: Vec<f32> = (targets.iter())
            .map(|target| f32::from(u8::from(target.is_some())))
            .collect();
        let counts = Tensor::from_vec(counts, (n, 1), device)?;
        let ids: Vec<u32> = targets.iter().map(|target| target.unwrap_or(0)).collect();
        let ids = Tensor::from_vec(ids, (n, 1), device)?;
        let (a, b) = self.part.weights();
        let sum = |values: &Tensor| -> Result<f64> {
            let sum = values.broadcast_mul(&counts)?.sum_all()?;
            Ok(f64::from(sum.to_dtype(DType::F32)?.to_scalar::<f32>()?))
        };
        let own = logs(&self.logits)?;
        let mut losses = Losses {
            language: -sum(&own.gather(&ids, 1)?)?,
            distillation: 0.0,
            hidden: 0.0,
            tokens: targets.iter().flatten().count(),
        };
        let p = own.exp()?;
        let minus = (Tensor::ones((n, 1), DType::F32, device)? * f64::from(-a))?;
        let mut changes = (&p * f64::from(a))?.scatter_add(&ids, &minus, 1)?;
        if let Some(others) = &self.others {
            let other = logs(others)?;
            let q = other.exp()?;
            let each = (&q * (&other - &own)?)?.sum_keepdim(D::Minus1)?;
            losses.distillation = sum(&each)?;
            changes = (changes + ((p - q)? * f64::from(b))?)?;
        }
        if let Some(cap) = self.cap {
            let slope = (1.0 - (&self.logits / f64::from(cap))?.sqr()?)?;
            changes = (changes * slope)?;
        }
        Ok((losses, changes.broadcast_mul(&counts)?))
    }
}
