//! What logits say, alone and against another model's.
//!
//! Formulas and rounding of single tokens are those of llama.cpp's
//! `llama-perplexity` (`tools/perplexity/perplexity.cpp`), so that its figures can
//! be compared: exponentials of differences in 32 bits, sums in 64. Where it
//! reads a reference's log-probabilities from a file, in 16 bits and cut off at
//! e^-16, they are exact here.

use rayon::prelude::*;

/// What one token's logits say about the token that came.
#[derive(Clone, Copy, Debug)]
pub struct Prediction {
    /// Minus the logarithm of its probability.
    pub nll: f64,
    /// The most probable token; the first of them where there are several.
    pub top: usize,
}

/// What one token's logits say, against another model's.
#[derive(Clone, Copy, Debug)]
pub struct Comparison {
    /// The model's.
    pub model: Prediction,
    /// The reference's.
    pub base: Prediction,
    /// Kullback-Leibler divergence of the model's distribution from the
    /// reference's: sum of p ln(p / q), p the reference's.
    pub divergence: f64,
}

/// The largest logit and where it first stands.
fn top(logits: &[f32]) -> (usize, f32) {
    let mut top = (0, logits.first().copied().unwrap_or(f32::NAN));
    for (i, &logit) in logits.iter().enumerate() {
        if logit > top.1 {
            top = (i, logit);
        }
    }
    top
}

/// The sum of the exponentials of all logits less the largest of them, `max`.
fn exponentials(logits: &[f32], max: f32) -> f64 {
    logits.iter().map(|&l| f64::from((l - max).exp())).sum()
}

/// The logarithm of the sum of all logits' exponentials; `sum` is that of the
/// exponentials of logits less `max`.
fn log_sum(max: f32, sum: f64) -> f64 {
    f64::from(max) + sum.ln()
}

/// Reads one token's logits; `None` where they are not numbers, or give the
/// token `target` no probability at all.
pub fn predict(logits: &[f32], target: usize) -> Option<Prediction> {
    let (top, max) = top(logits);
    let sum = exponentials(logits, max);
    prediction(logits, target, top, max, sum)
}

fn prediction(logits: &[f32], target: usize, top: usize, max: f32, sum: f64) -> Option<Prediction> {
    let nll = sum.ln() - f64::from(logits.get(target)? - max);
    nll.is_finite().then_some(Prediction { nll, top })
}

/// Reads one token's logits against another model's.
pub fn compare(logits: &[f32], base: &[f32], target: usize) -> Option<Comparison> {
    let (model_top, model_max) = top(logits);
    let (base_top, base_max) = top(base);
    let (mut model_sum, mut base_sum, mut weighted) = (0.0, 0.0, 0.0);
    for (&q, &p) in logits.iter().zip(base) {
        model_sum += f64::from((q - model_max).exp());
        let weight = f64::from((p - base_max).exp());
        base_sum += weight;
        // What the reference rules out counts for nothing, whatever the model
        // says of it.
        if weight > 0.0 {
            weighted += weight * (f64::from(p) - f64::from(q));
        }
    }
    let divergence =
        weighted / base_sum + log_sum(model_max, model_sum) - log_sum(base_max, base_sum);
    divergence.is_finite().then_some(())?;
    Some(Comparison {
        model: prediction(logits, target, model_top, model_max, model_sum)?,
        base: prediction(base, target, base_top, base_max, base_sum)?,
        divergence,
    })
}

/// Many rows of a reference's logits, with what is computed of them once, for
/// divergences from it again and again. Other than [`compare`]'s, probabilities
/// are kept in 32 bits.
pub struct Reference {
    logits: Vec<f32>,
    probabilities: Vec<f32>,
    vocabulary: usize,
}

impl Reference {
    /// Of `logits`, in `rows` rows of equal length, one a token; `rows` is not zero.
    pub fn new(logits: Vec<f32>, rows: usize) -> Self {
        let vocabulary = logits.len() / rows;
        let probabilities = logits
            .par_chunks(vocabulary)
            .flat_map_iter(|row| {
                let most = top(row).1;
                let scale = (1.0 / exponentials(row, most)) as f32;
                row.iter().map(move |&v| (v - most).exp() * scale)
            })
            .collect();
        Self {
            logits,
            probabilities,
            vocabulary,
        }
    }

    /// The mean KL divergence of `logits` from the reference, in nats. `logits` are
    /// rows as in [`new`](Self::new). Not finite when `logits` are not.
    pub fn divergence(&self, logits: &[f32]) -> f64 {
        let rows = self.logits.len() / self.vocabulary;
        let n = self.vocabulary;
        let sum: f64 = (self.logits.par_chunks(n), self.probabilities.par_chunks(n))
            .into_par_iter()
            .zip(logits.par_chunks(n))
            .map(|((original, probabilities), row)| {
                let log_z = |row: &[f32]| {
                    let most = top(row).1;
                    log_sum(most, exponentials(row, most))
                };
                let shift = log_z(row) - log_z(original);
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

#[cfg(test)]
mod tests {
    use super::super::oracle::{self, Numbers};
    use super::*;

    /// One table for all: rows of a model and of a reference.
    fn table() -> Vec<(Vec<f32>, Vec<f32>)> {
        let mut rows = Vec::new();
        for (seed, n, spread) in [(1, 2, 1.0), (2, 7, 3.0), (3, 100, 10.0), (4, 3000, 4.0)] {
            let mut numbers = Numbers::new(seed);
            let mut row = || -> Vec<f32> {
                let wide = |v: f64| (spread * v) as f32;
                numbers.take(n).into_iter().map(wide).collect()
            };
            let (model, base) = (row(), row());
            // Close to each other, far from zero, and the same.
            let near = base.iter().zip(&model).map(|(b, m)| b + 0.01 * m).collect();
            let far = model.iter().map(|m| m + 300.0).collect();
            rows.push((near, base.clone()));
            rows.push((far, base.clone()));
            rows.push((base.clone(), base.clone()));
            rows.push((model, base));
        }
        rows
    }

    #[test]
    fn single_tokens_are_those_of_the_definition() {
        for (model, base) in table() {
            let (ln_q, ln_p) = (oracle::ln_softmax(&model), oracle::ln_softmax(&base));
            for target in [0, model.len() / 2, model.len() - 1] {
                let found = compare(&model, &base, target).unwrap();
                close(found.model.nll, -ln_q[target]);
                close(found.base.nll, -ln_p[target]);
                close(found.divergence, oracle::divergence(&ln_p, &ln_q));
                assert_eq!(found.model.top, oracle::top(&model));
                assert_eq!(found.base.top, oracle::top(&base));
                let alone = predict(&model, target).unwrap();
                assert_eq!(alone.nll.to_bits(), found.model.nll.to_bits());
            }
        }
    }

    #[test]
    fn a_reference_in_rows_gives_the_mean_of_the_definition() {
        for (model, base) in table() {
            let (ln_q, ln_p) = (oracle::ln_softmax(&model), oracle::ln_softmax(&base));
            let naive = oracle::divergence(&ln_p, &ln_q);
            // Probabilities in 32 bits do not quite add up to 1, which counts as
            // often as logits are apart.
            let apart = base.iter().zip(&model).map(|(b, m)| f64::from(b - m).abs());
            let most = 1e-6 * (1.0 + apart.fold(0.0, f64::max));
            let reference = Reference::new(base.clone(), 1);
            let found = reference.divergence(&model);
            assert!((found - naive).abs() < most, "{found}, {naive}");
            // Two rows: this one, and one in which nothing differs.
            let rows = Reference::new([&base[..], &model].concat(), 2);
            let found = rows.divergence(&[&model[..], &model].concat());
            assert!((found - naive / 2.0).abs() < most, "{found}, {naive}");
        }
        let reference = Reference::new(vec![1.0, 2.0, -1.0, 0.5, 0.0, 0.25], 2);
        let broken = [f32::NAN, 2.0, -1.0, 0.5, 0.0, 0.25];
        assert!(!reference.divergence(&broken).is_finite());
    }

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() <= 1e-6 * b.abs().max(1.0), "{a} and {b}");
    }

    #[test]
    fn a_divergence_by_hand() {
        let p = [0.5f32, 0.25, 0.125, 0.125];
        let q = [0.25f32, 0.25, 0.25, 0.25];
        // Logits may have any constant added.
        let (base, model) = (p.map(|p| p.ln() + 7.0), q.map(|q| q.ln() - 90.0));
        let both = compare(&model, &base, 2).unwrap();
        close(both.base.nll, 8f64.ln());
        close(both.model.nll, 4f64.ln());
        assert_eq!((both.base.top, both.model.top), (0, 0));
        close(both.divergence, 0.25 * 2f64.ln());
        let alone = predict(&model, 2).unwrap();
        assert_eq!(alone.nll, both.model.nll);
        let same = compare(&base, &base, 1).unwrap();
        assert_eq!(same.divergence, 0.0);
    }

    #[test]
    fn tokens_that_are_ruled_out_do_no_harm() {
        let none = f32::NEG_INFINITY;
        let both = compare(&[1.0, none, 1.0], &[1.0, none, 1.0], 0).unwrap();
        assert_eq!(both.divergence, 0.0);
        let allowed = compare(&[1.0, 5.0, 1.0], &[1.0, none, 1.0], 0).unwrap();
        assert!(allowed.divergence > 0.0);
    }

    #[test]
    fn what_is_no_number_is_noticed() {
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        for bad in [[nan, 0.0], [0.0, nan], [inf, 0.0], [-inf, -inf]] {
            assert!(predict(&bad, 1).is_none(), "{bad:?}");
            assert!(compare(&bad, &[0.0, 0.0], 1).is_none(), "{bad:?}");
            assert!(compare(&[0.0, 0.0], &bad, 1).is_none(), "{bad:?}");
        }
        assert!(predict(&[0.0, -inf], 1).is_none());
        assert!(predict(&[0.0, 1.0], 2).is_none());
        assert!(predict(&[], 0).is_none());
    }
}
