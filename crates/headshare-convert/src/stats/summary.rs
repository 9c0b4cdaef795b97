//! Distributions in a few numbers, histograms and correlations.

use serde::Serialize;

use super::quantile::{mean, quantile, sort};

/// A set of numbers in a few.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Summary {
    /// How many numbers.
    pub n: usize,
    /// Their mean.
    pub mean: f64,
    /// Their standard deviation.
    pub sd: f64,
    /// The smallest.
    pub min: f64,
    /// The 1st percentile.
    pub p1: f64,
    /// The 25th percentile.
    pub p25: f64,
    /// The median.
    pub p50: f64,
    /// The 75th percentile.
    pub p75: f64,
    /// The 99th percentile.
    pub p99: f64,
    /// The largest.
    pub max: f64,
}

impl Summary {
    /// Of `values`, which are finite; `None` when there are none. Percentiles
    /// between two numbers are interpolated.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        if values.is_empty() {
            return None;
        }
        sort(&mut values);
        let n = values.len();
        let mean = mean(&values);
        let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
        let at = |share| quantile(&values, share);
        Some(Self {
            n,
            mean,
            sd: (squares / n as f64).sqrt(),
            min: values[0],
            p1: at(0.01),
            p25: at(0.25),
            p50: at(0.5),
            p75: at(0.75),
            p99: at(0.99),
            max: values[n - 1],
        })
    }
}

/// How many numbers lie in each of several equal ranges.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Histogram {
    /// Where the first range begins.
    pub low: f64,
    /// Where the last range ends (and this number still belongs to it).
    pub high: f64,
    /// Numbers in each range.
    pub counts: Vec<u64>,
}

impl Histogram {
    /// Of `values` in `bins` ranges from `low` to `high`; others are left out.
    pub fn of(values: impl IntoIterator<Item = f64>, low: f64, high: f64, bins: usize) -> Self {
        let mut counts = vec![0; bins];
        for value in values {
            if let Some(bin) = bin(value, low, high, bins) {
                counts[bin] += 1;
            }
        }
        Self { low, high, counts }
    }
}

/// The range, of `bins` from `low` to `high`, that `value` is in.
fn bin(value: f64, low: f64, high: f64, bins: usize) -> Option<usize> {
    if !(low..=high).contains(&value) {
        return None;
    }
    let at = (value - low) / (high - low) * bins as f64;
    Some((at as usize).min(bins - 1))
}

/// How two numbers of each pair go together.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Correlation {
    /// How many pairs.
    pub pairs: usize,
    /// Pearson's r; `null` when one side does not vary.
    pub pearson: Option<f64>,
    /// Spearman's rho: Pearson's r of the ranks, ties sharing their mean rank.
    pub spearman: Option<f64>,
}

impl Correlation {
    /// Of the pairs `(x, y)`, all finite.
    pub fn of(pairs: &[(f64, f64)]) -> Self {
        let (x, y): (Vec<f64>, Vec<f64>) = pairs.iter().copied().unzip();
        Self {
            pairs: pairs.len(),
            pearson: pearson(&x, &y),
            spearman: pearson(&ranks(&x), &ranks(&y)),
        }
    }
}

fn pearson(x: &[f64], y: &[f64]) -> Option<f64> {
    let (mean_x, mean_y) = (mean(x), mean(y));
    let (mut xx, mut yy, mut xy) = (0.0, 0.0, 0.0);
    for (x, y) in x.iter().zip(y) {
        let (x, y) = (x - mean_x, y - mean_y);
        xx += x * x;
        yy += y * y;
        xy += x * y;
    }
    let r = xy / (xx * yy).sqrt();
    r.is_finite().then(|| r.clamp(-1.0, 1.0))
}

/// The rank of each value, from 1; equal values share the mean of their ranks.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut first = 0;
    for tied in order.chunk_by(|&a, &b| values[a] == values[b]) {
        let rank = first as f64 + (tied.len() as f64 + 1.0) / 2.0;
        for &i in tied {
            ranks[i] = rank;
        }
        first += tied.len();
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::super::oracle::{Numbers, covariance};
    use super::*;

    #[test]
    fn a_summary_interpolates_between_numbers() {
        let s = Summary::of([4.0, 1.0, 3.0, 2.0, 5.0]).unwrap();
        assert_eq!((s.n, s.mean, s.min, s.max), (5, 3.0, 1.0, 5.0));
        assert_eq!((s.p25, s.p50, s.p75), (2.0, 3.0, 4.0));
        assert!((s.sd - 2f64.sqrt()).abs() < 1e-12);
        assert!((s.p1 - 1.04).abs() < 1e-12);
        let one = Summary::of([7.0]).unwrap();
        assert_eq!((one.p1, one.p99, one.sd), (7.0, 7.0, 0.0));
        assert_eq!(Summary::of([]), None);
    }

    #[test]
    fn a_histogram_counts_both_ends() {
        let h = Histogram::of([0.0, 0.49, 0.5, 1.0, 1.1, -0.1], 0.0, 1.0, 2);
        assert_eq!(h.counts, [2, 2]);
    }

    /// Ranks by counting how many are smaller, r by its definition.
    #[test]
    fn correlations_are_those_of_the_definition() {
        for n in 2..30 {
            let mut numbers = Numbers::new(n as u64);
            let noise = numbers.take(n);
            // Rounded, so that some are equal.
            let x: Vec<f64> = (numbers.take(n).iter())
                .map(|x| (x * 4.0).round())
                .collect();
            let y: Vec<f64> = x.iter().zip(&noise).map(|(x, noise)| x - noise).collect();
            let pairs: Vec<(f64, f64)> = x.iter().copied().zip(y.iter().copied()).collect();
            let found = Correlation::of(&pairs);
            let ranks = |v: &[f64]| -> Vec<f64> {
                let below = |x: &f64| v.iter().filter(|y| *y < x).count() as f64;
                let equal = |x: &f64| v.iter().filter(|y| *y == x).count() as f64;
                v.iter()
                    .map(|x| below(x) + (equal(x) + 1.0) / 2.0)
                    .collect()
            };
            let r = |x: &[f64], y: &[f64]| {
                let spread = (covariance(x, x) * covariance(y, y)).sqrt();
                (spread > 0.0).then(|| covariance(x, y) / spread)
            };
            for (found, naive) in [
                (found.pearson, r(&x, &y)),
                (found.spearman, r(&ranks(&x), &ranks(&y))),
            ] {
                assert_eq!(found.is_some(), naive.is_some(), "{n}");
                if let (Some(found), Some(naive)) = (found, naive) {
                    assert!((found - naive).abs() < 1e-12, "{n}: {found}, {naive}");
                }
            }
        }
    }

    #[test]
    fn correlations_are_those_of_the_textbook() {
        // By hand: x = 1..5, y = x^2 is monotonous, so the ranks agree.
        let pairs: Vec<(f64, f64)> = (1..=5).map(|x| (f64::from(x), f64::from(x * x))).collect();
        let c = Correlation::of(&pairs);
        assert_eq!(c.pairs, 5);
        assert_eq!(c.spearman, Some(1.0));
        // 60 / sqrt(10 * 374).
        assert!((c.pearson.unwrap() - 60.0 / 3740f64.sqrt()).abs() < 1e-12);
        let falling: Vec<(f64, f64)> = pairs.iter().map(|&(x, y)| (x, -y)).collect();
        assert_eq!(Correlation::of(&falling).spearman, Some(-1.0));
        let flat: Vec<(f64, f64)> = pairs.iter().map(|&(x, _)| (x, 2.0)).collect();
        let c = Correlation::of(&flat);
        assert_eq!((c.pearson, c.spearman), (None, None));
        assert_eq!(Correlation::of(&[]).pearson, None);
    }

    #[test]
    fn equal_values_share_their_mean_rank() {
        assert_eq!(ranks(&[3.0, 1.0, 3.0, 2.0]), [3.5, 1.0, 3.5, 2.0]);
    }
}
