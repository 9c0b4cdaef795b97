//! Axes: round numbers, and where they stand.

use super::{Align, Colour, HEADING, Image, LABEL, Scale, Scene, TICK};

/// A plot's frame: where numbers become pixels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Frame {
    pub left: i32,
    pub top: i32,
    pub width: i32,
    pub height: i32,
    /// The numbers at the left and right edge.
    pub x: (f64, f64),
    /// The numbers at the lower and upper edge.
    pub y: (f64, f64),
}

impl Frame {
    pub fn right(&self) -> i32 {
        self.left + self.width
    }

    pub fn bottom(&self) -> i32 {
        self.top + self.height
    }

    pub fn x_pixel(&self, x: f64) -> i32 {
        let share = (x - self.x.0) / (self.x.1 - self.x.0);
        self.left + (share * f64::from(self.width)).round() as i32
    }

    pub fn y_pixel(&self, y: f64) -> i32 {
        let share = (y - self.y.0) / (self.y.1 - self.y.0);
        self.bottom() - (share * f64::from(self.height)).round() as i32
    }

    pub fn heading(&self, scene: &mut Scene, text: &str) {
        let at = (self.left, self.top - 20);
        scene.text(at, text, HEADING, Colour::INK, Align::Start);
    }

    /// Ticks, grid lines and a label below.
    pub fn x_axis(&self, scene: &mut Scene, ticks: &[(f64, String)], label: &str) {
        for (value, _) in ticks {
            let x = self.x_pixel(*value);
            scene.line([(x, self.top), (x, self.bottom())], Colour::GRID, 1);
        }
        self.x_ticks(scene, ticks, label);
    }

    /// Ticks and a label below.
    pub fn x_ticks(&self, scene: &mut Scene, ticks: &[(f64, String)], label: &str) {
        let below = self.bottom();
        for (value, text) in ticks {
            let x = self.x_pixel(*value);
            scene.line([(x, below), (x, below + 5)], Colour::INK, 1);
            scene.text((x, below + 17), text, TICK, Colour::INK, Align::Middle);
        }
        let at = (self.left + self.width / 2, below + 41);
        scene.text(at, label, LABEL, Colour::INK, Align::Middle);
    }

    /// Ticks, grid lines and a label on the left.
    pub fn y_axis(&self, scene: &mut Scene, ticks: &[(f64, String)], label: &str) {
        for (value, text) in ticks {
            let y = self.y_pixel(*value);
            scene.line([(self.left, y), (self.right(), y)], Colour::GRID, 1);
            scene.line([(self.left - 5, y), (self.left, y)], Colour::INK, 1);
            let at = (self.left - 9, y);
            scene.text(at, text, TICK, Colour::INK, Align::End);
        }
        let at = (self.left - 66, self.top + self.height / 2);
        scene.text_upwards(at, label, LABEL);
    }

    /// The lines around the plot; after whatever is in it.
    pub fn border(&self, scene: &mut Scene) {
        let corners = [(self.left, self.top), (self.right(), self.bottom())];
        scene.rect(corners[0], corners[1], Colour::INK, false);
    }
}

/// What the colours of a plot mean, on its right.
pub(super) struct ColourBar<'a> {
    pub scale: &'a Scale,
    /// The numbers at its lower and upper end.
    pub range: (f64, f64),
    pub ticks: Vec<(f64, String)>,
    pub meaning: &'static str,
}

impl ColourBar<'_> {
    /// Space that it takes on the right of a frame.
    pub const SPACE: u32 = 122;
    const WIDTH: u32 = 18;

    pub fn draw(&self, scene: &mut Scene, beside: &Frame) {
        let height = beside.height.clamp(60, 480);
        let bar = Frame {
            left: beside.right() + 22,
            width: Self::WIDTH as i32,
            height,
            x: (0.0, 1.0),
            y: self.range,
            ..*beside
        };
        let (low, high) = self.range;
        scene.images.push(Image {
            at: (bar.left as u32, bar.top as u32),
            width: Self::WIDTH,
            height: height as u32,
            zoom: 1,
            pixels: (0..height)
                .flat_map(|y| {
                    let share = 1.0 - (f64::from(y) + 0.5) / f64::from(height);
                    let colour = self.scale.colour(low + share * (high - low));
                    std::iter::repeat_n(colour, Self::WIDTH as usize)
                })
                .collect(),
        });
        bar.border(scene);
        for (value, text) in &self.ticks {
            let y = bar.y_pixel(*value);
            scene.line([(bar.right(), y), (bar.right() + 5, y)], Colour::INK, 1);
            let at = (bar.right() + 9, y);
            scene.text(at, text, TICK, Colour::INK, Align::Start);
        }
        let at = (bar.right() + 72, bar.top + height / 2);
        scene.text_upwards(at, self.meaning, LABEL);
    }
}

/// Space on the left of a frame for ticks and label.
pub(super) const Y_AXIS: u32 = 82;
/// Space below a frame for ticks and label.
pub(super) const X_AXIS: u32 = 56;

/// About `wanted` round numbers from `low` to `high`, with their texts.
pub(super) fn round_ticks(low: f64, high: f64, wanted: u32) -> Vec<(f64, String)> {
    let raw = (high - low) / f64::from(wanted.max(1));
    let power = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0]
        .into_iter()
        .map(|m| m * power)
        .find(|&step| step >= raw * 0.999)
        .unwrap_or(power * 10.0);
    // As many digits as the step has.
    let mut digits = 0usize;
    while digits < 9 {
        let scaled = step * 10f64.powi(digits as i32);
        if (scaled - scaled.round()).abs() < 1e-6 * scaled {
            break;
        }
        digits += 1;
    }
    let first = (low / step - 1e-9).ceil() as i64;
    let last = (high / step + 1e-9).floor() as i64;
    (first..=last)
        .map(|i| {
            // Adding 0 turns -0 into 0.
            let value = i as f64 * step + 0.0;
            (value, format!("{value:.digits$}").replace('-', "\u{2212}"))
        })
        .collect()
}

/// The smallest of 1, 2, 5, 10, 20, ... for which numbered things of `each`
/// pixels leave `room` between their numbers.
pub(super) fn number_step(each: f64, room: f64) -> u32 {
    let mut step = 1u32;
    for factor in [2, 5, 10].iter().cycle() {
        if each * f64::from(step) >= room || step > 100_000_000 {
            break;
        }
        let decade = 10u32.pow(step.ilog10());
        step = decade * factor;
    }
    step
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(ticks: &[(f64, String)]) -> Vec<&str> {
        ticks.iter().map(|(_, text)| text.as_str()).collect()
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!(
            texts(&round_ticks(0.0, 1.0, 5)),
            ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]
        );
        assert_eq!(
            texts(&round_ticks(-0.011, 0.012, 4)),
            ["\u{2212}0.01", "0.00", "0.01"]
        );
        assert_eq!(
            texts(&round_ticks(0.0, 30.0, 6)),
            ["0", "5", "10", "15", "20", "25", "30"]
        );
    }

    #[test]
    fn numbers_leave_room() {
        assert_eq!(number_step(40.0, 30.0), 1);
        assert_eq!(number_step(20.0, 30.0), 2);
        assert_eq!(number_step(8.0, 30.0), 5);
        assert_eq!(number_step(3.1, 30.0), 10);
        assert_eq!(number_step(2.0, 30.0), 20);
        assert_eq!(number_step(0.5, 30.0), 100);
    }
}
