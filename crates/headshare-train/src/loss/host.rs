//! Logits, losses and their gradients on the CPU: gradients take the place of logits.

use candle_core::Tensor;
use rayon::prelude::*;

use super::part::{CHUNK, Losses, Part, Predictor, on_cpu};
use crate::error::TrainError;
use crate::ops::{self, Numbers, exp, largest, matrix, matrix_mut, product, sum, tanh};

/// Losses over all tokens, and the gradient with regard to the student's hidden
/// states where it is wanted.
pub(super) fn run(
    part: &Part<'_>,
    student: &Predictor<'_>,
    teacher: Option<&Predictor<'_>>,
    targets: &[Option<u32>],
) -> Result<(Losses, Option<Tensor>), TrainError> {
    let width = student.model.config().width;
    let vocabulary = student.model.vocabulary();
    let mut losses = Losses::default();
    let mut gradient = Vec::with_capacity(part.sums.map_or(0, |_| targets.len() * width));
    let hidden = on_cpu(&student.hidden)?;
    let other_hidden = match teacher {
        Some(teacher) => Some(on_cpu(&teacher.hidden)?),
        None => None,
    };
    let rows = Rows {
        cap: student.model.config().final_softcap,
        weights: part.weights(),
        distil: teacher.is_some(),
        backward: part.sums.is_some(),
    };
    for (i, targets) in targets.chunks(CHUNK).enumerate() {
        let first = i * CHUNK;
        let mut logits = student.logits_of(&hidden, first, targets.len())?;
        let others = match (teacher, &other_hidden) {
            (Some(teacher), Some(hidden)) => {
                let mut others = teacher.logits_of(hidden, first, targets.len())?;
                if let Some(cap) = teacher.model.config().final_softcap {
                    others
                        .par_iter_mut()
                        .for_each(|l| *l = cap * tanh(*l / cap));
                }
                others
            }
            _ => Vec::new(),
        };
        losses.add(&rows.losses(&mut logits, &others, targets, vocabulary));
        if let Some(sums) = part.sums {
            let n = targets.len();
            let changes = Numbers::new(logits);
            let head = student.model.parameters().list()[student.model.head()].numbers();
            let head = head.factor(0, vocabulary, width);
            let part = changes.factor(0, n, vocabulary).times(&head)?;
            gradient.extend(part);
            let changes = matrix(changes.as_slice(), n, vocabulary);
            ops::with(&hidden, |hidden| {
                let hidden = matrix(&hidden[first * width..(first + n) * width], n, width);
                sums.with(student.model.head(), |sum| {
                    let sum = matrix_mut(sum, vocabulary, width);
                    product(sum, true, changes.transpose(), hidden, 1.0);
                });
                Ok(())
            })?;
        }
    }
    let gradient = match part.sums {
        Some(_) => {
            let shape = (targets.len(), width);
            Some(Tensor::from_vec(gradient, shape, student.model.device())?)
        }
        None => None,
    };
    Ok((losses, gradient))
}

impl Predictor<'_> {
    /// Logits, not capped yet, of `n` tokens from `first` on.
    fn logits_of(&self, hidden: &Tensor, first: usize, n: usize) -> Result<Vec<f32>, TrainError> {
        let (width, vocabulary) = (self.model.config().width, self.model.vocabulary());
        let head = self.model.parameters().list()[self.model.head()].numbers();
        let head = head.factor(0, vocabulary, width).transposed()?;
        let hidden = hidden.narrow(0, first, n)?;
        Ok(ops::with_factor(&hidden, (n, width), |hidden| {
            hidden.times(&head)
        })?)
    }
}

/// What is done with each token's logits.
struct Rows {
    cap: Option<f32>,
    weights: (f32, f32),
    distil: bool,
    backward: bool,
}

impl Rows {
    /// Sums of losses; puts gradients in the place of logits.
    fn losses(
        &self,
        logits: &mut [f32],
        others: &[f32],
        targets: &[Option<u32>],
        vocabulary: usize,
    ) -> Losses {
        let none: &[f32] = &[];
        let rows = logits
            .par_chunks_exact_mut(vocabulary)
            .zip(targets)
            .enumerate();
        let each: Vec<(f64, f64)> = rows
            .map(|(i, (row, target))| match target {
                Some(target) => {
                    let others = match self.distil {
                        true => &others[i * vocabulary..(i + 1) * vocabulary],
                        false => none,
                    };
                    self.row(row, others, *target as usize)
                }
                None => {
                    row.fill(0.0);
                    (0.0, 0.0)
                }
            })
            .collect();
        let mut losses = Losses {
            tokens: targets.iter().flatten().count(),
            ..Losses::default()
        };
        for (language, distillation) in each {
            losses.language += language;
            losses.distillation += distillation;
        }
        losses
    }

    /// Cross-entropy and divergence of one token. With p the predictions and p' the
    /// other model's, the gradient is a (p - target) + b (p - p'), times the slope of
    /// the cap.
    fn row(&self, row: &mut [f32], others: &[f32], target: usize) -> (f64, f64) {
        if let Some(cap) = self.cap {
            row.iter_mut().for_each(|l| *l = cap * tanh(*l / cap));
        }
        let top = largest(row);
        let total = sum(row, |l| exp(l - top));
        let log = f64::from(top) + f64::from(total).ln();
        let language = log - f64::from(row[target]);
        let (a, b) = self.weights;
        let mut distillation = 0.0;
        let slope = |l: f32| self.cap.map_or(1.0, |cap| 1.0 - (l / cap) * (l / cap));
        let at_target = slope(row[target]);
        if self.distil {
            let other_top = largest(others);
            let other_total = sum(others, |l| exp(l - other_top));
            let other_log = f64::from(other_top) + f64::from(other_total).ln();
            let scale = 1.0 / other_total;
            let mut sums = [0.0f32; 16];
            for (row, others) in row.chunks(16).zip(others.chunks(16)) {
                for ((sum, l), o) in sums.iter_mut().zip(row).zip(others) {
                    *sum += exp(o - other_top) * scale * (o - l);
                }
            }
            let mean: f64 = sums.iter().map(|&v| f64::from(v)).sum();
            distillation = mean - other_log + log;
            if self.backward {
                let own = (a + b) / total;
                for (l, o) in row.iter_mut().zip(others) {
                    let g = own * exp(*l - top) - b * scale * exp(o - other_top);
                    *l = g * slope(*l);
                }
            }
        } else if self.backward {
            let own = a / total;
            match self.cap {
                None => row.iter_mut().for_each(|l| *l = own * exp(*l - top)),
                Some(_) => row
                    .iter_mut()
                    .for_each(|l| *l = own * exp(*l - top) * slope(*l)),
            }
        }
        if self.backward {
            row[target] -= a * at_target;
        }
        (language, distillation)
    }
}
