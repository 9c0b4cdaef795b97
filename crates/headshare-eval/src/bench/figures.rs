//! Figures of samples.

/// Ratios of samples that were taken in the same round.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ratio {
    /// The median.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Ratio {
    /// Of each of `samples` to the one of `reference` at the same place.
    pub fn of(samples: &[f64], reference: &[f64]) -> Self {
        let ratios: Vec<f64> = samples.iter().zip(reference).map(|(a, b)| a / b).collect();
        Self {
            median: median(&ratios),
            min: ratios.iter().copied().fold(f64::INFINITY, f64::min),
            max: ratios.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        }
    }
}

/// The number in the middle, or the mean of the two that are; of none, NaN.
pub fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        n if n.is_multiple_of(2) => (sorted[middle - 1] + sorted[middle]) / 2.0,
        _ => sorted[middle],
    }
}

/// The mean; of none, NaN.
pub fn mean(samples: &[f64]) -> f64 {
    samples.iter().sum::<f64>() / samples.len() as f64
}

/// Standard deviation of the sample, as llama-bench has it; 0 for one.
pub fn stddev(samples: &[f64]) -> f64 {
    if samples.len() < 2 {
        return 0.0;
    }
    let mean = mean(samples);
    let squares: f64 = samples.iter().map(|x| (x - mean).powi(2)).sum();
    (squares / (samples.len() - 1) as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_means_and_deviations() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
        assert_eq!(mean(&[1.0, 2.0, 6.0]), 3.0);
        assert_eq!(stddev(&[2.0, 4.0, 4.0, 6.0]), (8.0f64 / 3.0).sqrt());
        assert_eq!(stddev(&[2.0]), 0.0);
    }

    #[test]
    fn ratios_are_of_pairs_of_one_round() {
        // The machine is half as fast in the second round; the ratio is not.
        let ratio = Ratio::of(&[9.0, 5.0, 8.0], &[10.0, 5.0, 10.0]);
        let expected = Ratio {
            median: 0.9,
            min: 0.8,
            max: 1.0,
        };
        assert_eq!(ratio, expected);
    }
}
