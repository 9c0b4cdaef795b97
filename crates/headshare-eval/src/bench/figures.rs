//! Ratios of samples.

use headshare_convert::stats::median;

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

#[cfg(test)]
mod tests {
    use super::*;

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
