//! Means with their errors, and what one token's logits say, alone and against
//! another model's.
//!
//! Formulas and rounding are those of llama.cpp's `llama-perplexity`
//! (`tools/perplexity/perplexity.cpp`), so that its figures can be compared:
//! exponentials of differences in 32 bits, sums in 64. Where it reads a
//! reference's log-probabilities from a file, in 16 bits and cut off at e^-16,
//! they are exact here.

/// A mean and its standard error.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Estimate {
    /// The mean.
    pub value: f64,
    /// Its standard error.
    pub stderr: f64,
}

impl Estimate {
    /// What it becomes by a function that has `slope` at the value.
    pub fn map(self, value: f64, slope: f64) -> Self {
        Self {
            value,
            stderr: slope.abs() * self.stderr,
        }
    }
}

/// Sums of something measured many times, enough for its mean and error.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sums {
    count: u64,
    sum: f64,
    squares: f64,
}

impl Sums {
    /// Adds one value.
    pub fn add(&mut self, value: f64) {
        self.count += 1;
        self.sum += value;
        self.squares += value * value;
    }

    /// Number of values.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The mean so far; not a number before the first value.
    pub fn mean(&self) -> f64 {
        self.sum / self.count as f64
    }

    /// The mean and its standard error: the standard deviation over the square
    /// root of one value less than there are. 0 for fewer than two.
    pub fn estimate(&self) -> Estimate {
        let mean = self.mean();
        let variance = self.squares / self.count as f64 - mean * mean;
        let stderr = if self.count > 1 && variance > 0.0 {
            (variance / (self.count - 1) as f64).sqrt()
        } else {
            0.0
        };
        Estimate {
            value: mean,
            stderr,
        }
    }
}

/// Two things measured together, and the covariance of their means.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pairs {
    /// The first of each pair.
    pub first: Sums,
    /// The second of each pair.
    pub second: Sums,
    products: f64,
}

impl Pairs {
    /// Adds one pair.
    pub fn add(&mut self, first: f64, second: f64) {
        self.first.add(first);
        self.second.add(second);
        self.products += first * second;
    }

    /// The covariance of the two means; 0 for fewer than two pairs.
    pub fn covariance(&self) -> f64 {
        let count = self.first.count();
        if count < 2 {
            return 0.0;
        }
        let n = count as f64;
        (self.products / n - self.first.mean() * self.second.mean()) / (n - 1.0)
    }

    /// Their correlation; `None` where one of them does not vary.
    pub fn correlation(&self) -> Option<f64> {
        let spread = self.first.estimate().stderr * self.second.estimate().stderr;
        (spread > 0.0).then(|| self.covariance() / spread)
    }

    /// The mean difference, first minus second, with the error that is left
    /// when both go up and down together.
    pub fn difference(&self) -> Estimate {
        let (first, second) = (self.first.estimate(), self.second.estimate());
        let variance = first.stderr.powi(2) + second.stderr.powi(2) - 2.0 * self.covariance();
        Estimate {
            value: first.value - second.value,
            stderr: variance.max(0.0).sqrt(),
        }
    }
}

/// The error of a share of `count` yes-or-no answers.
pub fn share(yes: u64, count: u64) -> Estimate {
    let value = yes as f64 / count as f64;
    let stderr = if count > 1 {
        (value * (1.0 - value) / (count - 1) as f64).sqrt()
    } else {
        0.0
    };
    Estimate { value, stderr }
}

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

/// Reads one token's logits; `None` where they are not numbers, or give the
/// token `target` no probability at all.
pub fn predict(logits: &[f32], target: usize) -> Option<Prediction> {
    let (top, max) = top(logits);
    let sum: f64 = logits.iter().map(|&l| f64::from((l - max).exp())).sum();
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
    // ln of what the exponentials of all logits sum up to.
    let norm = |max: f32, sum: f64| f64::from(max) + sum.ln();
    let divergence = weighted / base_sum + norm(model_max, model_sum) - norm(base_max, base_sum);
    divergence.is_finite().then_some(())?;
    Some(Comparison {
        model: prediction(logits, target, model_top, model_max, model_sum)?,
        base: prediction(base, target, base_top, base_max, base_sum)?,
        divergence,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() <= 1e-6 * b.abs().max(1.0), "{a} and {b}");
    }

    #[test]
    fn means_and_errors_by_hand() {
        let mut sums = Sums::default();
        assert!(sums.mean().is_nan());
        for x in [1.0, 2.0, 3.0, 6.0] {
            sums.add(x);
        }
        // Variance 3.5 around 3, over 3.
        let estimate = sums.estimate();
        close(estimate.value, 3.0);
        close(estimate.stderr, (3.5f64 / 3.0).sqrt());
        close(estimate.map(9.0, -2.0).stderr, 2.0 * estimate.stderr);
        let mut one = Sums::default();
        one.add(4.0);
        assert_eq!(one.estimate().stderr, 0.0);
    }

    #[test]
    fn what_varies_together_has_a_difference_without_error() {
        let mut pairs = Pairs::default();
        for x in [0.5, 2.0, -1.0, 7.0] {
            pairs.add(x + 3.0, x);
        }
        let difference = pairs.difference();
        close(difference.value, 3.0);
        assert!(difference.stderr < 1e-6);
        close(pairs.correlation().unwrap(), 1.0);
        let mut opposite = Pairs::default();
        for x in [0.5, 2.0, -1.0, 7.0] {
            opposite.add(x, -x);
        }
        close(opposite.correlation().unwrap(), -1.0);
        close(
            opposite.difference().stderr,
            2.0 * opposite.first.estimate().stderr,
        );
        let mut still = Pairs::default();
        still.add(1.0, 2.0);
        still.add(1.0, 3.0);
        assert_eq!(still.correlation(), None);
    }

    #[test]
    fn shares_have_binomial_errors() {
        let half = share(50, 101);
        close(half.value, 50.0 / 101.0);
        close(
            half.stderr,
            (half.value * (1.0 - half.value) / 100.0).sqrt(),
        );
        assert_eq!(share(1, 1).stderr, 0.0);
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
