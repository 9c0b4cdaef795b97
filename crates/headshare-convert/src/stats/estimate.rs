//! Means with their standard errors, alone and in pairs, computed as llama.cpp's
//! `llama-perplexity` does it (`tools/perplexity/perplexity.cpp`), so that its
//! figures can be compared.

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

#[cfg(test)]
mod tests {
    use super::super::oracle::{Numbers, covariance};
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
    fn sums_in_one_pass_are_those_of_the_definition() {
        for n in 2..30 {
            let mut numbers = Numbers::new(n as u64);
            let (x, noise) = (numbers.take(n), numbers.take(n));
            let y: Vec<f64> = x
                .iter()
                .zip(&noise)
                .map(|(x, noise)| 0.5 * x + noise)
                .collect();
            let mut pairs = Pairs::default();
            for (x, y) in x.iter().zip(&y) {
                pairs.add(*x, *y);
            }
            let of_means = |a: &[f64], b: &[f64]| covariance(a, b) / (n - 1) as f64;
            let mean = |v: &[f64]| v.iter().sum::<f64>() / n as f64;
            close(pairs.first.estimate().value, mean(&x));
            close(pairs.first.estimate().stderr, of_means(&x, &x).sqrt());
            close(pairs.covariance(), of_means(&x, &y));
            let spread = (covariance(&x, &x) * covariance(&y, &y)).sqrt();
            close(pairs.correlation().unwrap(), covariance(&x, &y) / spread);
            let apart: Vec<f64> = x.iter().zip(&y).map(|(x, y)| x - y).collect();
            close(pairs.difference().value, mean(&apart));
            close(pairs.difference().stderr, of_means(&apart, &apart).sqrt());
        }
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
}
