//! Lines through points: one number against another, for several series.

use super::axes::{Frame, X_AXIS, Y_AXIS, round_ticks};
use super::{Align, Colour, LABEL, Scene, TICK};

/// A point, perhaps with a text beside it.
#[derive(Debug, Clone)]
pub struct Point {
    /// Where it stands.
    pub at: (f64, f64),
    /// What it is.
    pub label: String,
}

/// What stands at the points of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Marks {
    /// Discs.
    Dots,
    /// Open circles; what belongs to a point stands below it.
    Circles,
    /// Nothing: there are too many of them.
    None,
}

/// A line through points.
#[derive(Debug, Clone)]
pub struct LineSeries {
    /// Its name in the legend.
    pub name: String,
    /// Its points, in order.
    pub points: Vec<Point>,
    /// Its colour, by number.
    pub colour: usize,
    /// What its points look like.
    pub marks: Marks,
}

/// Series over the same axes.
#[derive(Debug, Clone)]
pub struct LinePlot {
    /// What the numbers along the lower edge are.
    pub x_meaning: String,
    /// What the numbers along the left edge are.
    pub y_meaning: String,
    /// A level that all are compared with, and what it is.
    pub level: Option<(f64, String)>,
    /// The series, the first at the back.
    pub series: Vec<LineSeries>,
    /// What stands above instead of the legend.
    pub heading: Option<String>,
    /// Numbers along the lower edge count something: none between whole ones.
    pub counts: bool,
}

const PLOT: (u32, u32) = (860, 460);
/// Space for a line of the legend.
const LEGEND_LINE: u32 = 26;
/// From this range on (largest over smallest) heights are logarithmic.
const WIDE: f64 = 3.0;

impl LinePlot {
    /// Pixels that it takes.
    pub fn size(&self) -> (u32, u32) {
        (Y_AXIS + PLOT.0 + 20, self.above() + PLOT.1 + X_AXIS)
    }

    /// Pixels above the axes.
    fn above(&self) -> u32 {
        let lines = match self.heading {
            Some(_) => 1,
            None => self.series.len() as u32,
        };
        LEGEND_LINE * lines + 12
    }

    fn points(&self) -> impl Iterator<Item = &Point> {
        self.series.iter().flat_map(|series| &series.points)
    }

    /// Draws it with its upper left corner at `at`. What is not finite is left
    /// out.
    pub fn draw(&self, scene: &mut Scene, at: (u32, u32)) {
        let x = range(self.points().map(|p| p.at.0));
        let heights = self.points().map(|p| p.at.1);
        let (low, high) = range(heights.chain(self.level.as_ref().map(|l| l.0)));
        let log = low > 0.0 && high / low > WIDE;
        let scale = |y: f64| if log { y.log10() } else { y };
        let frame = Frame {
            left: (at.0 + Y_AXIS) as i32,
            top: (at.1 + self.above()) as i32,
            width: PLOT.0 as i32,
            height: PLOT.1 as i32,
            x: widened(x.0, x.1),
            y: widened(scale(low), scale(high)),
        };
        let ticks = if log {
            log_ticks(frame.y)
        } else {
            round_ticks(frame.y.0, frame.y.1, 7)
        };
        let meaning = match log {
            true => format!("{} (logarithmic)", self.y_meaning),
            false => self.y_meaning.clone(),
        };
        frame.y_axis(scene, &ticks, &meaning);
        let mut across = round_ticks(frame.x.0, frame.x.1, 8);
        if self.counts {
            across = whole(across);
        }
        frame.x_axis(scene, &across, &self.x_meaning);
        if let Some((level, name)) = &self.level {
            let y = frame.y_pixel(scale(*level));
            let mut x = frame.left;
            while x < frame.right() {
                let end = (x + 7).min(frame.right());
                scene.line([(x, y), (end, y)], Colour::FAINT_INK, 1);
                x += 13;
            }
            let at = (frame.left + 8, y + 12);
            scene.text(at, name, TICK, Colour::FAINT_INK, Align::Start);
        }
        if let Some(heading) = &self.heading {
            let at = (frame.left, at.1 as i32 + 12);
            scene.text(at, heading, LABEL, Colour::INK, Align::Start);
        }
        let mut labels = Labels::within(frame.left, frame.right());
        for (i, series) in self.series.iter().enumerate() {
            let colour = Colour::SERIES[series.colour % Colour::SERIES.len()];
            let points: Vec<((i32, i32), &str)> = series
                .points
                .iter()
                .filter(|p| p.at.0.is_finite() && scale(p.at.1).is_finite())
                .map(|p| {
                    let at = (frame.x_pixel(p.at.0), frame.y_pixel(scale(p.at.1)));
                    (at, &*p.label)
                })
                .collect();
            if points.len() > 1 {
                scene.line(points.iter().map(|p| p.0).collect::<Vec<_>>(), colour, 2);
            }
            for &(at, label) in &points {
                mark(scene, at, colour, series.marks);
                let below = series.marks == Marks::Circles;
                if let Some(place) = labels.place(at, label, below) {
                    scene.text(place, label, TICK, colour, Align::Start);
                }
            }
            if self.heading.is_some() {
                continue;
            }
            let y = at.1 as i32 + 12 + (LEGEND_LINE as usize * i) as i32;
            scene.line([(frame.left, y), (frame.left + 34, y)], colour, 2);
            mark(scene, (frame.left + 17, y), colour, series.marks);
            let name = (frame.left + 44, y);
            scene.text(name, &series.name, LABEL, Colour::INK, Align::Start);
        }
        frame.border(scene);
    }
}

/// The texts beside points that have been placed.
struct Labels {
    /// The edges of the plot.
    edges: (i32, i32),
    /// Left, top, right and bottom of each.
    taken: Vec<(i32, i32, i32, i32)>,
}

impl Labels {
    /// None yet, in a plot with these edges on its left and right.
    fn within(left: i32, right: i32) -> Self {
        Self {
            edges: (left, right),
            taken: Vec::new(),
        }
    }

    /// Where `label` can stand beside the point `at`, preferably `below` it,
    /// without covering another: none if there is no room.
    fn place(&mut self, at: (i32, i32), label: &str, below: bool) -> Option<(i32, i32)> {
        if label.is_empty() {
            return None;
        }
        let width = label.chars().count() as i32 * TICK as i32 * 2 / 3;
        let (above, under) = (at.1 - 13, at.1 + 15);
        let rows = if below {
            [under, above]
        } else {
            [above, under]
        };
        let right = rows.map(|y| (at.0 + 9, y));
        let left = rows.map(|y| (at.0 - 9 - width, y));
        right.into_iter().chain(left).find(|&(x, y)| {
            let half = TICK as i32 / 2;
            let area = (x, y - half, x + width, y + half);
            let is_within = self.edges.0 <= area.0 && area.2 <= self.edges.1;
            let free = is_within
                && self.taken.iter().all(|other| {
                    area.2 <= other.0 || other.2 <= area.0 || area.3 <= other.1 || other.3 <= area.1
                });
            if free {
                self.taken.push(area);
            }
            free
        })
    }
}

fn mark(scene: &mut Scene, at: (i32, i32), colour: Colour, marks: Marks) {
    if marks == Marks::Circles {
        scene.circle(at, 5, Colour::WHITE, true);
    }
    if marks != Marks::None {
        scene.circle(at, 5, colour, marks == Marks::Dots);
    }
}

/// Those of the ticks that stand at whole numbers that can be counted to.
fn whole(ticks: Vec<(f64, String)>) -> Vec<(f64, String)> {
    let counted = |value: &f64| *value >= 0.0 && (value - value.round()).abs() < 1e-9;
    let kept = ticks.into_iter().filter(|(value, _)| counted(value));
    kept.map(|(value, _)| (value, format!("{value:.0}")))
        .collect()
}

/// The smallest and the largest of some numbers.
fn range(numbers: impl Iterator<Item = f64>) -> (f64, f64) {
    let finite: Vec<f64> = numbers.filter(|n| n.is_finite()).collect();
    let low = finite.iter().copied().fold(f64::INFINITY, f64::min);
    let high = finite.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if low <= high { (low, high) } else { (0.0, 1.0) }
}

/// A range with room around it.
fn widened(low: f64, high: f64) -> (f64, f64) {
    let room = match (high - low) * 0.08 {
        0.0 => (low.abs() * 0.05).max(0.5),
        room => room,
    };
    (low - room, high + room)
}

/// 1, 2 and 5 times powers of ten between two logarithms; if these are few,
/// round numbers between them, too.
fn log_ticks((low, high): (f64, f64)) -> Vec<(f64, String)> {
    let mut ticks = Vec::new();
    for power in low.floor() as i32..=high.ceil() as i32 {
        for digit in [1.0, 1.5, 2.0, 3.0, 5.0, 7.0] {
            let many = high - low > 1.5;
            if many && [1.5, 3.0, 7.0].contains(&digit) {
                continue;
            }
            let value = digit * 10f64.powi(power);
            let at = value.log10();
            if (low..=high).contains(&at) {
                ticks.push((at, number(value)));
            }
        }
    }
    ticks
}

/// A number without more digits than it needs.
fn number(value: f64) -> String {
    let text = format!("{value:.6}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    match value {
        v if v < 1e6 => text.to_owned(),
        v => format!("{v:e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logarithmic_ticks_are_round() {
        let texts: Vec<String> = log_ticks((1.3, 2.2)).into_iter().map(|t| t.1).collect();
        assert_eq!(texts, ["20", "30", "50", "70", "100", "150"]);
        let texts: Vec<String> = log_ticks((-1.0, 1.0)).into_iter().map(|t| t.1).collect();
        assert_eq!(texts, ["0.1", "0.2", "0.5", "1", "2", "5", "10"]);
    }

    #[test]
    fn labels_do_not_cover_each_other() {
        let mut labels = Labels::within(0, 900);
        let places: Vec<_> = (0..5)
            .map(|i| labels.place((100 + i, 100), "30%", i % 2 == 1))
            .collect();
        let distinct: std::collections::HashSet<_> = places[..4].iter().collect();
        assert!(places[..4].iter().all(Option::is_some), "{places:?}");
        assert_eq!(distinct.len(), 4);
        assert_eq!(places[4], None);
        assert!(labels.place((300, 100), "30%", false).is_some());
        // What says nothing takes no room.
        assert_eq!(labels.place((500, 100), "", false), None);
        assert_eq!(labels.place((495, 100), "30%", false), Some((504, 87)));
        // At the edges they go to the other side.
        let (right, left) = (
            labels.place((890, 50), "30%", true),
            labels.place((5, 50), "30%", true),
        );
        assert!(right.unwrap().0 < 890 && left.unwrap().0 > 5);
    }

    #[test]
    fn ranges_have_room_even_around_one_number() {
        assert_eq!(range([2.0, f64::NAN, 1.0].into_iter()), (1.0, 2.0));
        let (low, high) = widened(20.0, 20.0);
        assert!(low < 20.0 && high > 20.0);
        assert_eq!(range([].into_iter()), (0.0, 1.0));
    }

    #[test]
    fn what_is_counted_has_no_halves() {
        let texts: Vec<String> = (whole(round_ticks(-0.5, 2.2, 8)).into_iter())
            .map(|tick| tick.1)
            .collect();
        assert_eq!(texts, ["0", "1", "2"]);
    }
}
