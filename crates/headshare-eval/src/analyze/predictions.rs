//! How well the divergence of a plan is predicted: random plans of one size that were made
//! and measured.

use headshare_convert::stats::Correlation;
use serde::Serialize;

use super::picture::{LinePlot, LineSeries, MARGIN, Marks, Point, Scene, TITLE_SPACE};

/// Plans that were made and measured.
#[derive(Debug, Clone, Serialize)]
pub struct Predictions {
    /// The model's path.
    pub source: String,
    /// Bytes that the files have at most.
    pub wanted: u64,
    /// What the plans are drawn with.
    pub seed: u64,
    /// The plans.
    pub plans: Vec<Prediction>,
    /// How predicted and measured divergences go together.
    pub correlation: Correlation,
}

/// A plan, and what it costs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Prediction {
    /// Bytes of the file.
    pub bytes: u64,
    /// The divergence from the source that was predicted, in nats a token.
    pub predicted: f64,
    /// The one that was measured.
    pub measured: f64,
}

impl Predictions {
    /// Of these plans.
    pub fn new(source: String, wanted: u64, seed: u64, plans: Vec<Prediction>) -> Self {
        let pairs: Vec<(f64, f64)> = plans.iter().map(|p| (p.predicted, p.measured)).collect();
        Self {
            source,
            wanted,
            seed,
            correlation: Correlation::of(&pairs),
            plans,
        }
    }

    /// Measured over predicted divergences.
    pub fn picture(&self) -> Scene {
        let mut plans: Vec<&Prediction> = self.plans.iter().collect();
        plans.sort_by(|a, b| a.predicted.total_cmp(&b.predicted));
        let points = plans.iter().map(|plan| Point {
            at: (plan.predicted, plan.measured),
            label: String::new(),
        });
        let plot = LinePlot {
            x_meaning: "predicted divergence, nats a token".to_owned(),
            y_meaning: "measured divergence, nats a token".to_owned(),
            level: None,
            series: vec![LineSeries {
                name: format!("{} plans", plans.len()),
                points: points.collect(),
                colour: 0,
                marks: Marks::Dots,
            }],
            heading: None,
            counts: false,
        };
        let (width, height) = plot.size();
        let size = (width + 2 * MARGIN, TITLE_SPACE + 8 + height + MARGIN);
        let name = super::file_name(self.source.as_ref());
        let title = format!("{name}: plans of {:.1} MB", self.wanted as f64 / 1e6);
        let ranks = (self.correlation.spearman).map_or("none".to_owned(), |r| format!("{r:.3}"));
        let small_print = format!("rank correlation: {ranks}; MB of 10^6 bytes");
        let mut scene = Scene::new(size.0, size.1, &title, &small_print);
        plot.draw(&mut scene, (MARGIN, TITLE_SPACE + 8));
        scene
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analyze::picture::Format;

    #[test]
    fn ranks_are_compared_and_drawn() {
        let plan = |predicted, measured| Prediction {
            bytes: 9,
            predicted,
            measured,
        };
        let plans = vec![
            plan(0.1, 0.2),
            plan(0.3, 0.5),
            plan(0.2, 0.3),
            plan(0.4, 0.4),
        ];
        let found = Predictions::new("m.gguf".to_owned(), 10_000_000, 1, plans);
        assert!((found.correlation.spearman.unwrap() - 0.8).abs() < 1e-12);
        let svg = String::from_utf8(found.picture().encode(Format::Svg)).unwrap();
        assert!(svg.contains("0.800") && svg.contains("10.0 MB") && svg.contains("4 plans"));
    }
}
