//! The same as plainly as it can be written, for tests.

/// Reproducible numbers from -1 to 1.
pub struct Numbers(u64);

impl Numbers {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn take(&mut self, n: usize) -> Vec<f64> {
        let mut next = || {
            self.0 = (self.0.wrapping_mul(6_364_136_223_846_793_005))
                .wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 11) as f64 / (1u64 << 52) as f64 - 1.0
        };
        (0..n).map(|_| next()).collect()
    }
}

/// The mean product of what each is off its mean.
pub fn covariance(x: &[f64], y: &[f64]) -> f64 {
    let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len() as f64;
    let (mean_x, mean_y) = (mean(x), mean(y));
    let off = x.iter().zip(y).map(|(x, y)| (x - mean_x) * (y - mean_y));
    off.sum::<f64>() / x.len() as f64
}

/// The logarithms of the probabilities.
pub fn ln_softmax(logits: &[f32]) -> Vec<f64> {
    let wide = || logits.iter().map(|&l| f64::from(l));
    let most = wide().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = wide().map(|l| (l - most).exp()).sum();
    wide().map(|l| l - most - sum.ln()).collect()
}

/// Sum of p ln(p / q).
pub fn divergence(ln_p: &[f64], ln_q: &[f64]) -> f64 {
    ln_p.iter().zip(ln_q).map(|(p, q)| p.exp() * (p - q)).sum()
}

/// The first of the largest.
pub fn top(logits: &[f32]) -> usize {
    let larger = |a: usize, b: usize| if logits[b] > logits[a] { b } else { a };
    (0..logits.len()).fold(0, larger)
}
