//! Bars by name, two for each: what is compared, and what it is compared with. A
//! panel for each comparison, all with the same names.

use super::axes::{Frame, X_AXIS};
use super::{Align, Colour, HEADING, LABEL, Scene, TICK};

/// A share, from 0 to 1, with its standard error.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bar {
    /// The bar's length.
    pub share: f64,
    /// The standard error, where there is one.
    pub error: Option<f64>,
}

/// One comparison.
#[derive(Debug, Clone)]
pub struct BarPanel {
    /// What stands above it.
    pub heading: String,
    /// For each name, the bar of the reference and the other one.
    pub bars: Vec<[Option<Bar>; 2]>,
}

/// Comparisons by name.
#[derive(Debug, Clone)]
pub struct PairedBars {
    /// What stands above all.
    pub heading: String,
    /// What the shares are.
    pub meaning: String,
    /// What the two bars at each name are.
    pub kinds: [String; 2],
    /// The names, from top to bottom.
    pub names: Vec<String>,
    /// The comparisons.
    pub panels: Vec<BarPanel>,
}

const COLOURS: [Colour; 2] = [Colour::DATA, Colour::ACCENT];
/// Panels side by side; others go below.
const ACROSS: usize = 3;
const PANEL: u32 = 300;
/// Space between two panels, also for the numbers below their edges.
const BETWEEN: u32 = 56;
/// Space for a name with its two bars.
const ROW: u32 = 24;
/// Thickness of a bar.
const BAR: i32 = 9;
/// Space for the heading and what the colours mean.
const ABOVE: u32 = 62;
/// Space for a panel's heading.
const NAME: u32 = 30;
/// More letters of a name are cut off.
const LETTERS: usize = 44;
/// Pixels that a letter takes at most, on average.
const LETTER: u32 = TICK * 2 / 3;

impl PairedBars {
    fn names_width(&self) -> u32 {
        let letters = self.names.iter().map(|name| name.chars().count());
        letters.max().unwrap_or(0).min(LETTERS) as u32 * LETTER + 12
    }

    fn plot_height(&self) -> u32 {
        self.names.len() as u32 * ROW + 6
    }

    /// Pixels that it takes.
    pub fn size(&self) -> (u32, u32) {
        let across = self.panels.len().clamp(1, ACROSS) as u32;
        let bands = self.panels.len().div_ceil(ACROSS) as u32;
        let width = self.names_width() + across * (PANEL + BETWEEN);
        let band = NAME + self.plot_height() + X_AXIS;
        (width, ABOVE + bands * band)
    }

    /// Draws it with its upper left corner at `at`.
    pub fn draw(&self, scene: &mut Scene, at: (u32, u32)) {
        let left = at.0 as i32;
        let top = at.1 as i32;
        let heading = (left, top + 14);
        scene.text(heading, &self.heading, HEADING, Colour::INK, Align::Start);
        let mut x = left;
        for (kind, colour) in self.kinds.iter().zip(COLOURS) {
            let y = top + 42;
            scene.rect((x, y - 6), (x + 26, y + 6), colour, true);
            scene.text((x + 34, y), kind, LABEL, Colour::INK, Align::Start);
            x += 34 + kind.chars().count() as i32 * LABEL as i32 * 2 / 3 + 28;
        }
        let band = (NAME + self.plot_height() + X_AXIS) as i32;
        for (i, panels) in self.panels.chunks(ACROSS).enumerate() {
            let mut frame = Frame {
                left: left + self.names_width() as i32,
                top: top + ABOVE as i32 + i as i32 * band + NAME as i32,
                width: PANEL as i32,
                height: self.plot_height() as i32,
                x: (0.0, 1.0),
                y: (self.plot_height().into(), 0.0),
            };
            for (name, row) in self.names.iter().zip(0i32..) {
                let at = (frame.left - 9, middle(&frame, row));
                scene.text(at, &cut(name), TICK, Colour::INK, Align::End);
            }
            for panel in panels {
                self.panel(scene, &frame, panel);
                frame.left += (PANEL + BETWEEN) as i32;
            }
        }
    }

    fn panel(&self, scene: &mut Scene, frame: &Frame, panel: &BarPanel) {
        let at = (frame.left, frame.top - 14);
        scene.text(at, &panel.heading, TICK, Colour::INK, Align::Start);
        let percents = [0, 25, 50, 75, 100];
        let ticks = percents.map(|p| (f64::from(p) / 100.0, format!("{p}%")));
        frame.x_axis(scene, &ticks, &self.meaning);
        for (bars, row) in panel.bars.iter().zip(0i32..) {
            let middle = middle(frame, row);
            for ((bar, colour), top) in bars.iter().zip(COLOURS).zip([middle - BAR, middle]) {
                let Some(bar) = bar.filter(|bar| bar.share.is_finite()) else {
                    continue;
                };
                let end = frame.x_pixel(bar.share.clamp(0.0, 1.0));
                let corners = ((frame.left, top), (end, top + BAR));
                scene.rect(corners.0, corners.1, colour, true);
                if let Some(error) = bar.error.filter(|error| *error > 0.0) {
                    let ends = [bar.share - error, bar.share + error];
                    let y = top + BAR / 2;
                    let ends = ends.map(|x| (frame.x_pixel(x.clamp(0.0, 1.0)), y));
                    scene.line(ends, Colour::INK, 1);
                }
            }
        }
        frame.border(scene);
    }
}

/// The middle of a name's space.
fn middle(frame: &Frame, row: i32) -> i32 {
    frame.top + 3 + row * ROW as i32 + ROW as i32 / 2
}

/// A name that is not too long.
fn cut(name: &str) -> String {
    match name.chars().count() {
        n if n <= LETTERS => name.to_owned(),
        _ => name.chars().take(LETTERS - 1).chain(['…']).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analyze::picture::Shape;

    fn bars(panels: usize) -> PairedBars {
        let bar = |share| Some(Bar { share, error: None });
        PairedBars {
            heading: String::new(),
            meaning: String::new(),
            kinds: ["a".into(), "b".into()],
            names: vec!["x".into(), "y".repeat(99)],
            panels: vec![
                BarPanel {
                    heading: "h".into(),
                    bars: vec![[bar(0.5), bar(1.0)], [bar(0.25), None]],
                };
                panels
            ],
        }
    }

    #[test]
    fn bars_are_as_long_as_their_shares() {
        let plot = bars(1);
        let (width, height) = plot.size();
        let mut scene = Scene::new(width, height, "", "");
        plot.draw(&mut scene, (0, 0));
        let lengths: Vec<i32> = (scene.shapes.iter())
            .filter_map(|shape| match shape {
                Shape::Rect {
                    corners,
                    filled: true,
                    ..
                } => Some(corners[1].0 - corners[0].0),
                _ => None,
            })
            .collect();
        // The first two say what the colours mean.
        assert_eq!(lengths[2..], [150, 300, 75]);
    }

    #[test]
    fn all_panels_have_room() {
        let one = bars(1).size();
        assert_eq!(bars(3).size().1, one.1);
        assert_eq!(bars(3).size().0, one.0 + 2 * (PANEL + BETWEEN));
        let more = bars(4).size();
        assert_eq!(more.0, bars(3).size().0);
        assert!(more.1 > one.1);
        assert_eq!(cut(&"y".repeat(99)).chars().count(), LETTERS);
    }
}
