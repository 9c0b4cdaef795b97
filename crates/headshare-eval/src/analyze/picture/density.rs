//! Many points: how dense they lie, the trend through them, and some to be
//! noticed.

use super::axes::{ColourBar, Frame, X_AXIS, Y_AXIS, round_ticks};
use super::{Align, Colour, Image, Scale, Scene, TICK};

/// Points, counted in small squares.
pub struct Density<'a> {
    /// What stands above.
    pub heading: String,
    /// What stands below, in small print.
    pub caption: String,
    /// The points.
    pub points: &'a [(f64, f64)],
    /// Points that are drawn as circles.
    pub marked: Vec<(f64, f64)>,
    /// What the marked ones are.
    pub marked_name: String,
    /// What the first numbers are.
    pub x: &'static str,
    /// What the second numbers are.
    pub y: &'static str,
    /// Pixels of the plot, a side.
    pub side: u32,
}

/// Pixels of a square, a side.
const ZOOM: u32 = 6;
const ABOVE: u32 = 40;
const BELOW: u32 = X_AXIS + 36;
const RIGHT: u32 = ColourBar::SPACE;
/// Squares that the trend takes the mean over.
const TREND: usize = 5;
/// Fewer points than this are drawn one by one.
const MANY: usize = 400;
/// Fewer points than this have no mean worth drawing.
const ENOUGH: usize = 8;

impl Density<'_> {
    fn squares(&self) -> u32 {
        (self.side / ZOOM).max(2)
    }

    /// Pixels that the whole panel takes.
    pub fn size(&self) -> (u32, u32) {
        let plot = self.squares() * ZOOM;
        (Y_AXIS + plot + RIGHT, ABOVE + plot + BELOW)
    }

    /// Draws it with its upper left corner at `at`.
    pub fn draw(&self, scene: &mut Scene, at: (u32, u32)) {
        let squares = self.squares() as usize;
        let side = squares as u32 * ZOOM;
        let frame = Frame {
            left: (at.0 + Y_AXIS) as i32,
            top: (at.1 + ABOVE) as i32,
            width: side as i32,
            height: side as i32,
            x: range(self.points.iter().map(|p| p.0)),
            y: range(self.points.iter().map(|p| p.1)),
        };
        let place = |&(x, y): &(f64, f64)| {
            let of = |value: f64, (low, high): (f64, f64)| {
                let share = (value - low) / (high - low);
                ((share * squares as f64) as usize).min(squares - 1)
            };
            (of(x, frame.x), of(y, frame.y))
        };
        let mut counts = vec![0u32; squares * squares];
        let mut columns: Vec<(f64, usize)> = vec![(0.0, 0); squares];
        for point in self.points {
            let (x, y) = place(point);
            counts[(squares - 1 - y) * squares + x] += 1;
            columns[x].0 += point.1;
            columns[x].1 += 1;
        }
        let most = counts.iter().copied().max().unwrap_or(0).max(10);
        // A single point is visible on white.
        let scale = Scale::sequential(-0.6, f64::from(most).log10());
        let colour = |&count: &u32| match count {
            0 => Colour::WHITE,
            n => scale.colour(f64::from(n).log10()),
        };
        let many = self.points.len() >= MANY;
        if many {
            scene.images.push(Image {
                at: (frame.left as u32, frame.top as u32),
                width: squares as u32,
                height: squares as u32,
                zoom: ZOOM,
                pixels: counts.iter().map(colour).collect(),
            });
        }
        frame.x_axis(scene, &round_ticks(frame.x.0, frame.x.1, 6), self.x);
        frame.y_axis(scene, &round_ticks(frame.y.0, frame.y.1, 6), self.y);
        let pixel = |&(x, y): &(f64, f64)| (frame.x_pixel(x), frame.y_pixel(y));
        if !many {
            for point in self.points {
                scene.circle(pixel(point), 3, Colour::DATA, true);
            }
        }
        for point in &self.marked {
            scene.circle(pixel(point), 5, Colour::ACCENT, false);
        }
        if many {
            let trend = trend(&columns, &frame);
            scene.line(trend.clone(), Colour::WHITE, 5);
            scene.line(trend, Colour::INK, 2);
        }
        frame.border(scene);
        frame.heading(scene, &self.heading);
        self.legend(scene, &frame);
        if many {
            colour_bar(scene, &frame, &scale, most);
        }
    }

    fn legend(&self, scene: &mut Scene, frame: &Frame) {
        let y = frame.bottom() + 68;
        let mut x = frame.left;
        if self.points.len() >= MANY {
            scene.line([(x, y), (x + 18, y)], Colour::INK, 2);
            let mean = "mean of the pairs there";
            scene.text((x + 24, y), mean, TICK, Colour::FAINT_INK, Align::Start);
            x += 214;
        }
        if !self.marked.is_empty() {
            scene.circle((x + 5, y), 5, Colour::ACCENT, false);
            let at = (x + 18, y);
            scene.text(at, &self.marked_name, TICK, Colour::FAINT_INK, Align::Start);
        }
        let at = (frame.left, y + 22);
        scene.text(at, &self.caption, TICK, Colour::FAINT_INK, Align::Start);
    }
}

/// How many points the colours stand for.
fn colour_bar(scene: &mut Scene, beside: &Frame, scale: &Scale, most: u32) {
    let bar = ColourBar {
        scale,
        range: (0.0, f64::from(most).log10()),
        ticks: (0..=most.ilog10())
            .map(|power| (f64::from(power), 10u64.pow(power).to_string()))
            .collect(),
        meaning: "pairs",
    };
    bar.draw(scene, beside);
}

/// The mean of the points in every few columns, where there are enough.
fn trend(columns: &[(f64, usize)], frame: &Frame) -> Vec<(i32, i32)> {
    let column = f64::from(frame.width) / columns.len() as f64;
    columns
        .chunks(TREND)
        .enumerate()
        .filter_map(|(i, part)| {
            let n: usize = part.iter().map(|c| c.1).sum();
            let sum: f64 = part.iter().map(|c| c.0).sum();
            let middle = (i * TREND) as f64 + part.len() as f64 / 2.0;
            let x = frame.left + (middle * column).round() as i32;
            (n >= ENOUGH).then(|| (x, frame.y_pixel(sum / n as f64)))
        })
        .collect()
}

/// From the smallest to the largest, with a little room; never empty.
fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| {
        (low.min(v), high.max(v))
    });
    if low > high {
        return (0.0, 1.0);
    }
    let room = ((high - low) * 0.03).max(1e-4);
    (low - room, high + room)
}
