//! The learning rate of each step: up in a line, down along a cosine.

/// Linear warm-up, then half a cosine (Loshchilov and Hutter 2017, without restarts).
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Schedule {
    /// The highest learning rate.
    pub peak: f64,
    /// The part of the peak that is left after the last step.
    pub floor: f64,
    /// Steps of the warm-up.
    pub warmup: u64,
    /// Steps in all.
    pub steps: u64,
}

impl Schedule {
    /// The learning rate of `step`, counted from 0. The first step of a warm-up of n
    /// has an nth of the peak; the step after the warm-up has the peak.
    pub fn rate(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.peak * (step + 1) as f64 / self.warmup as f64;
        }
        let length = self.steps.saturating_sub(self.warmup).max(1);
        let done = ((step - self.warmup) as f64 / length as f64).min(1.0);
        let cosine = 0.5 * (1.0 + (std::f64::consts::PI * done).cos());
        self.peak * (self.floor + (1.0 - self.floor) * cosine)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_up_in_a_line_and_down_along_a_cosine() {
        let schedule = Schedule {
            peak: 2.0,
            floor: 0.1,
            warmup: 4,
            steps: 14,
        };
        let rate = |step| schedule.rate(step);
        assert_eq!([rate(0), rate(1), rate(3), rate(4)], [0.5, 1.0, 2.0, 2.0]);
        assert!((rate(9) - 1.1).abs() < 1e-12, "half way: {}", rate(9));
        assert!((rate(14) - 0.2).abs() < 1e-12 && (rate(99) - 0.2).abs() < 1e-12);
        let flat = Schedule {
            floor: 1.0,
            warmup: 0,
            ..schedule
        };
        assert!((0..20).all(|step| flat.rate(step) == 2.0));
        let single = Schedule {
            warmup: 0,
            steps: 1,
            ..schedule
        };
        assert_eq!(single.rate(0), 2.0);
    }
}
