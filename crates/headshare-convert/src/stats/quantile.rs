//! Quantiles, means and deviations of samples.

/// Sorts values for [`quantile`], ascending.
pub fn sort(values: &mut [f64]) {
    values.sort_unstable_by(f64::total_cmp);
}

/// The value below which `share` of the sorted values lie, interpolated between
/// neighbours, as llama.cpp's `llama-perplexity` does it. NaN where there are no
/// values.
pub fn quantile(sorted: &[f64], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else {
        return f64::NAN;
    };
    let place = share.clamp(0.0, 1.0) * last as f64;
    let below = place as usize;
    let part = place - below as f64;
    (1.0 - part) * sorted[below] + part * sorted[(below + 1).min(last)]
}

/// The number in the middle, or the mean of the two that are; of none, NaN.
pub fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sort(&mut sorted);
    quantile(&sorted, 0.5)
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
    use super::super::oracle::Numbers;
    use super::*;

    #[test]
    fn quantiles_lie_between_neighbours() {
        let close = |a: f64, b: f64| assert!((a - b).abs() <= 1e-12, "{a} and {b}");
        let mut values = vec![4.0, 1.0, 3.0, 2.0];
        sort(&mut values);
        close(quantile(&values, 0.5), 2.5);
        close(quantile(&values, 0.99), 3.97);
        close(quantile(&values, 0.0), 1.0);
        close(quantile(&values, 1.0), 4.0);
        close(quantile(&[7.0], 0.3), 7.0);
        assert!(quantile(&[], 0.5).is_nan());
    }

    /// Every share of every length, by the broken line through the points
    /// (i / (n - 1), value i).
    #[test]
    fn a_quantile_lies_on_the_line_through_its_neighbours() {
        for n in 1..40 {
            let mut values = Numbers::new(n as u64).take(n);
            sort(&mut values);
            assert!(values.is_sorted());
            for step in 0..=100 {
                let share = f64::from(step) / 100.0;
                let at = |i: usize| i as f64 / (n - 1).max(1) as f64;
                let next = (1..n).find(|&i| at(i) >= share).unwrap_or(0);
                let naive = match next {
                    0 => values[0],
                    i => {
                        let slope = (values[i] - values[i - 1]) / (at(i) - at(i - 1));
                        values[i - 1] + slope * (share - at(i - 1))
                    }
                };
                let found = quantile(&values, share);
                assert!(
                    (found - naive).abs() < 1e-12,
                    "{n}, {share}: {found}, {naive}"
                );
            }
        }
    }

    #[test]
    fn medians_means_and_deviations() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
        assert_eq!(mean(&[1.0, 2.0, 6.0]), 3.0);
        assert_eq!(stddev(&[2.0, 4.0, 4.0, 6.0]), (8.0f64 / 3.0).sqrt());
        assert_eq!(stddev(&[2.0]), 0.0);
    }
}
