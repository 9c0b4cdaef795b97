//! How far logits are from the original model's.

use rayon::prelude::*;

/// Probabilities of the original.
pub(super) struct Reference {
    logits: Vec<f32>,
    probabilities: Vec<f32>,
    vocabulary: usize,
}

impl Reference {
    pub fn new(logits: &[f32], rows: usize) -> Self {
        let vocabulary = logits.len() / rows;
        let probabilities = logits
            .par_chunks(vocabulary)
            .flat_map_iter(|row| {
                let (most, sum) = partition(row);
                let scale = (1.0 / sum) as f32;
                row.iter().map(move |&v| (v - most).exp() * scale)
            })
            .collect();
        Self {
            logits: logits.to_vec(),
            probabilities,
            vocabulary,
        }
    }

    /// Mean KL divergence from the original, in nats; not finite when `logits`
    /// are not.
    pub fn divergence(&self, logits: &[f32]) -> f64 {
        let rows = self.logits.len() / self.vocabulary;
        let n = self.vocabulary;
        let sum: f64 = (self.logits.par_chunks(n), self.probabilities.par_chunks(n))
            .into_par_iter()
            .zip(logits.par_chunks(n))
            .map(|((original, probabilities), row)| {
                let log_z = |(most, sum): (f32, f64)| f64::from(most) + sum.ln();
                let shift = log_z(partition(row)) - log_z(partition(original));
                let moved: f64 = original
                    .iter()
                    .zip(probabilities)
                    .zip(row)
                    .map(|((o, p), r)| f64::from(*p) * f64::from(o - r))
                    .sum();
                let divergence = moved + shift;
                if divergence < 0.0 { 0.0 } else { divergence }
            })
            .collect::<Vec<f64>>()
            .iter()
            .sum();
        sum / rows as f64
    }
}

/// The largest logit, and the sum of the exponentials of all less it.
fn partition(row: &[f32]) -> (f32, f64) {
    let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    (most, row.iter().map(|v| f64::from((v - most).exp())).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_is_that_of_the_definition() {
        let original = [1f32, 2.0, -1.0, 0.5, 0.0, 0.25];
        let changed = [0.5f32, 2.5, -2.0, 0.5, 0.1, 0.2];
        let reference = Reference::new(&original, 2);
        let naive: f64 = original
            .chunks(3)
            .zip(changed.chunks(3))
            .map(|(o, c)| {
                let softmax = |row: &[f32]| {
                    let sum: f64 = row.iter().map(|v| f64::from(*v).exp()).sum();
                    row.iter()
                        .map(|v| f64::from(*v).exp() / sum)
                        .collect::<Vec<_>>()
                };
                let (p, q) = (softmax(o), softmax(c));
                p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum::<f64>()
            })
            .sum();
        assert!((reference.divergence(&changed) - naive / 2.0).abs() < 1e-6);
        assert!(reference.divergence(&original) < 1e-9);
        let broken = [f32::NAN, 2.0, -1.0, 0.5, 0.0, 0.25];
        assert!(!reference.divergence(&broken).is_finite());
    }
}
