//! Distributions: how many numbers lie where, on a logarithmic scale, since
//! what matters is in the tail.

use super::axes::{Frame, X_AXIS, Y_AXIS, round_ticks};
use super::{Align, Colour, Scene, TICK};
use crate::analyze::Histogram;

/// One distribution.
pub struct Bars<'a> {
    /// Its name in the legend.
    pub name: String,
    /// The numbers.
    pub histogram: &'a Histogram,
    /// Its colour.
    pub colour: Colour,
}

/// Distributions over the same range, the first behind the others.
pub struct HistogramPlot<'a> {
    /// What stands above.
    pub heading: String,
    /// What the numbers are.
    pub meaning: &'static str,
    /// What is counted.
    pub counted: &'static str,
    /// The distributions.
    pub bars: Vec<Bars<'a>>,
}

/// Pixels that the panel takes from top to bottom, for a plot of `plot` pixels.
const fn height_for(plot: u32) -> u32 {
    44 + plot + X_AXIS
}

const PLOT_HEIGHT: u32 = 190;

impl HistogramPlot<'_> {
    /// Pixels that the panel takes from top to bottom.
    pub const HEIGHT: u32 = height_for(PLOT_HEIGHT);

    /// Draws it with its upper left corner at `at`; the plot itself is `width`
    /// pixels wide.
    pub fn draw(&self, scene: &mut Scene, at: (u32, u32), width: u32) {
        let all = self.bars.iter().flat_map(|bars| &bars.histogram.counts);
        let most = all.copied().max().unwrap_or(0).max(1);
        let decades = (most as f64).log10().ceil().max(1.0);
        let first = self.bars[0].histogram;
        // A single count stands above the axis.
        const FLOOR: f64 = -0.25;
        let frame = Frame {
            left: (at.0 + Y_AXIS) as i32,
            top: at.1 as i32 + 44,
            width: width as i32,
            height: PLOT_HEIGHT as i32,
            x: (first.low, first.high),
            y: (FLOOR, decades),
        };
        let step = (decades / 4.0).ceil() as usize;
        let ticks: Vec<(f64, String)> = (0..=decades as u32)
            .step_by(step.max(1))
            .map(|power| (f64::from(power), thousands(power)))
            .collect();
        frame.y_axis(scene, &ticks, self.counted);
        let wanted = (frame.width / 90).clamp(3, 9) as u32;
        let ticks = round_ticks(first.low, first.high, wanted);
        frame.x_axis(scene, &ticks, self.meaning);
        for bars in &self.bars {
            let histogram = bars.histogram;
            let step = (histogram.high - histogram.low) / histogram.counts.len() as f64;
            let edge = |i: usize| frame.x_pixel(histogram.low + i as f64 * step);
            for (i, &count) in histogram.counts.iter().enumerate().filter(|(_, n)| **n > 0) {
                let top = frame.y_pixel((count as f64).log10());
                scene.rect(
                    (edge(i), top),
                    (edge(i + 1), frame.bottom()),
                    bars.colour,
                    true,
                );
            }
        }
        frame.border(scene);
        frame.heading(scene, &self.heading);
        for (i, bars) in self.bars.iter().enumerate() {
            let y = frame.top + 16 + 20 * i as i32;
            let x = frame.right() - 14;
            scene.rect((x - 10, y - 5), (x, y + 5), bars.colour, true);
            let at = (x - 16, y);
            scene.text(at, &bars.name, TICK, Colour::INK, Align::End);
        }
    }
}

/// A power of ten: `1`, `10`, ... `1,000,000`.
fn thousands(power: u32) -> String {
    let mut text = String::from("1");
    for left in (0..power).rev() {
        text.push('0');
        if left > 0 && left.is_multiple_of(3) {
            text.push(',');
        }
    }
    if power.is_multiple_of(3) && power > 0 {
        text.insert(1, ',');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_of_ten_are_grouped() {
        let texts: Vec<String> = (0..8).map(thousands).collect();
        assert_eq!(
            texts,
            [
                "1",
                "10",
                "100",
                "1,000",
                "10,000",
                "100,000",
                "1,000,000",
                "10,000,000"
            ]
        );
    }
}
