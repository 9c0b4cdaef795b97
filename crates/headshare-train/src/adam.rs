//! AdamW (Loshchilov and Hutter 2019), with moments that can be read and set: candle's
//! own hides them, and training could not go on where it stopped.

use rayon::prelude::*;

/// What AdamW does beside following the gradient.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct AdamOptions {
    /// How much of the last step's mean of gradients is kept.
    pub beta1: f64,
    /// How much of the last step's mean of squares is kept.
    pub beta2: f64,
    /// What is added to the root of the mean square.
    pub epsilon: f64,
    /// The part of a matrix, times the learning rate, that is taken off each step;
    /// vectors (norms, biases) keep theirs.
    pub weight_decay: f64,
}

impl Default for AdamOptions {
    /// The paper's betas; no decay.
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.95,
            epsilon: 1e-8,
            weight_decay: 0.0,
        }
    }
}

/// Means of one tensor's gradients.
#[derive(Debug, Clone, PartialEq)]
pub struct Moments {
    /// Of the gradients.
    pub first: Vec<f32>,
    /// Of their squares.
    pub second: Vec<f32>,
}

impl Moments {
    /// Those of a tensor that has not been trained yet.
    pub fn zeros(len: usize) -> Self {
        Self {
            first: vec![0.0; len],
            second: vec![0.0; len],
        }
    }
}

/// One step of one tensor.
#[derive(Debug, Clone, Copy)]
pub struct AdamStep {
    /// The options.
    pub options: AdamOptions,
    /// The learning rate.
    pub rate: f64,
    /// Which step, counted from 1.
    pub step: u64,
    /// What gradients are multiplied by first: for clipping.
    pub scale: f32,
    /// Whether weights decay.
    pub decays: bool,
}

impl AdamStep {
    /// m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2, and with both divided by
    /// 1 - b^step: w = w - rate (m / (sqrt(v) + epsilon) + decay w).
    pub fn apply(&self, values: &mut [f32], gradient: &[f32], moments: &mut Moments) {
        let o = self.options;
        let power = i32::try_from(self.step).unwrap_or(i32::MAX);
        let correct1 = 1.0 - o.beta1.powi(power);
        let correct2 = 1.0 - o.beta2.powi(power);
        let (b1, b2) = (o.beta1 as f32, o.beta2 as f32);
        let (c1, c2) = ((1.0 - o.beta1) as f32, (1.0 - o.beta2) as f32);
        let rate = (self.rate / correct1) as f32;
        let root = (1.0 / correct2.sqrt()) as f32;
        let epsilon = o.epsilon as f32;
        let kept = match self.decays {
            true => (1.0 - self.rate * o.weight_decay) as f32,
            false => 1.0,
        };
        const CHUNK: usize = 1 << 14;
        let moments =
            (moments.first.par_chunks_mut(CHUNK)).zip(moments.second.par_chunks_mut(CHUNK));
        let all = (values.par_chunks_mut(CHUNK).zip(gradient.par_chunks(CHUNK))).zip(moments);
        all.for_each(|((values, gradient), (first, second))| {
            let moments = first.iter_mut().zip(second);
            for ((w, g), (m, v)) in values.iter_mut().zip(gradient).zip(moments) {
                let g = g * self.scale;
                *m = b1 * *m + c1 * g;
                *v = b2 * *v + c2 * g * g;
                *w = *w * kept - rate * *m / (v.sqrt() * root + epsilon);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_steps_by_hand() {
        let options = AdamOptions {
            beta1: 0.9,
            beta2: 0.99,
            epsilon: 0.1,
            weight_decay: 0.5,
        };
        let mut values = [2.0];
        let mut moments = Moments::zeros(1);
        let mut step = |step, g: f32| {
            let step = AdamStep {
                options,
                rate: 0.1,
                step,
                scale: 0.5,
                decays: true,
            };
            step.apply(&mut values, &[g], &mut moments);
            (values[0], moments.clone())
        };
        // The gradient is 2 after scaling: m = 0.2, v = 0.04; corrected 2 and 4.
        let (w, moments) = step(1, 4.0);
        assert!(
            (w - (2.0 - 0.1 * (2.0 / 2.1 + 0.5 * 2.0))).abs() < 1e-6,
            "{w}"
        );
        assert!((moments.first[0] - 0.2).abs() < 1e-7);
        assert!((moments.second[0] - 0.04).abs() < 1e-7);
        // Then -1: m = 0.18 - 0.1 = 0.08, v = 0.0396 + 0.01 = 0.0496.
        let (before, (w, moments)) = (w, step(2, -2.0));
        let m = 0.08 / (1.0 - 0.81);
        let v: f32 = 0.0496 / (1.0 - 0.9801);
        let expected = before - 0.1 * (m / (v.sqrt() + 0.1) + 0.5 * before);
        assert!((w - expected).abs() < 1e-6, "{w} {expected}");
        assert!((moments.first[0] - 0.08).abs() < 1e-7);
        assert!((moments.second[0] - 0.0496).abs() < 1e-7);
    }
}
