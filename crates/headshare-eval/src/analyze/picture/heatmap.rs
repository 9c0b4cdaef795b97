//! A symmetric matrix of heads, units or layers as colours.

use super::axes::{ColourBar, Frame, Y_AXIS, number_step, round_ticks};
use super::{Align, Colour, HEADING, Image, LABEL, Scale, Scene, TICK};
use crate::analyze::SymmetricMatrix;

/// Where a layer's rows begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Band {
    /// The layer.
    pub layer: u32,
    /// Its first row.
    pub start: usize,
}

/// A matrix with its colour bar.
pub struct Heatmap<'a> {
    /// What stands above it.
    pub heading: String,
    /// What stands below it, in small print.
    pub caption: String,
    /// The numbers.
    pub matrix: &'a SymmetricMatrix,
    /// The layers of the rows.
    pub bands: Vec<Band>,
    /// The colours.
    pub scale: Scale,
    /// What the colours mean.
    pub meaning: &'static str,
    /// Rows and columns to mark.
    pub marks: Vec<(usize, usize)>,
    /// What is written at the rows.
    pub rows: &'static str,
    /// What is written at the columns.
    pub columns: &'static str,
    /// Pixels that the matrix may take, a side.
    pub side: u32,
}

/// Space above the matrix.
const ABOVE: u32 = 40;
/// Space on its left: ticks and label.
const LEFT: u32 = Y_AXIS;
/// Space on its right: the colour bar.
const RIGHT: u32 = ColourBar::SPACE;
/// Space below it: ticks, label and caption.
const BELOW: u32 = 92;

impl Heatmap<'_> {
    /// How many of the matrix's rows become one row of pixels.
    fn merged(&self) -> usize {
        self.matrix.len().div_ceil(self.side as usize).max(1)
    }

    /// Rows of the image, and pixels that each of them takes.
    fn grid(&self) -> (u32, u32) {
        let cells = self.matrix.len().div_ceil(self.merged()).max(1) as u32;
        (cells, (self.side / cells).max(1))
    }

    /// Pixels that the matrix takes, a side: as many of
    /// [`side`](Self::side) as its rows divide evenly.
    pub fn plot_side(&self) -> u32 {
        let (cells, zoom) = self.grid();
        cells * zoom
    }

    /// Pixels that the whole panel takes.
    pub fn size(&self) -> (u32, u32) {
        let (cells, zoom) = self.grid();
        (LEFT + cells * zoom + RIGHT, ABOVE + cells * zoom + BELOW)
    }

    /// Draws it with its upper left corner at `at`.
    pub fn draw(&self, scene: &mut Scene, at: (u32, u32)) {
        let (cells, zoom) = self.grid();
        let origin = (at.0 + LEFT, at.1 + ABOVE);
        scene.images.push(Image {
            at: origin,
            width: cells,
            height: cells,
            zoom,
            pixels: self.pixels(cells as usize),
        });
        let n = self.matrix.len() as f64;
        let side = (cells * zoom) as i32;
        let frame = Frame {
            left: origin.0 as i32,
            top: origin.1 as i32,
            width: side,
            height: side,
            x: (0.0, self.merged() as f64 * f64::from(cells)),
            // Rows are counted downwards.
            y: (self.merged() as f64 * f64::from(cells), 0.0),
        };
        self.ticks(scene, &frame, n);
        self.draw_marks(scene, &frame);
        frame.border(scene);
        let heading = (frame.left, frame.top - 20);
        scene.text(heading, &self.heading, HEADING, Colour::INK, Align::Start);
        let middle = frame.left + side / 2;
        let below = frame.bottom();
        scene.text(
            (middle, below + 41),
            self.columns,
            LABEL,
            Colour::INK,
            Align::Middle,
        );
        scene.text_upwards((frame.left - 62, frame.top + side / 2), self.rows, LABEL);
        let caption = (frame.left, below + 68);
        scene.text(
            caption,
            &self.caption,
            TICK,
            Colour::FAINT_INK,
            Align::Start,
        );
        let (low, high) = (self.scale.low, self.scale.high);
        let bar = ColourBar {
            scale: &self.scale,
            range: (low, high),
            ticks: round_ticks(low, high, (frame.height / 60).clamp(2, 6) as u32),
            meaning: self.meaning,
        };
        bar.draw(scene, &frame);
    }

    /// The matrix's numbers as colours; where several share a pixel, their
    /// mean, of those that there are.
    fn pixels(&self, cells: usize) -> Vec<Colour> {
        let (n, merged) = (self.matrix.len(), self.merged());
        let of = |cell: usize| cell * merged..((cell + 1) * merged).min(n);
        let mut pixels = Vec::with_capacity(cells * cells);
        for row in 0..cells {
            for column in 0..cells {
                let (mut sum, mut count) = (0.0, 0u32);
                for a in of(row) {
                    for b in of(column) {
                        let value = self.matrix.get(a, b);
                        if !value.is_nan() {
                            sum += value;
                            count += 1;
                        }
                    }
                }
                // 0/0 is no number, and drawn as such.
                pixels.push(self.scale.colour(sum / f64::from(count)));
            }
        }
        pixels
    }

    /// The numbers of the layers, and where each begins.
    fn ticks(&self, scene: &mut Scene, frame: &Frame, n: f64) {
        let ends = self.bands.iter().skip(1).map(|band| band.start as f64);
        let ends: Vec<f64> = ends.chain([n]).collect();
        let narrowest = self
            .bands
            .iter()
            .zip(&ends)
            .map(|(band, end)| end - band.start as f64)
            .fold(f64::INFINITY, f64::min);
        let pixels = narrowest * f64::from(frame.width) / frame.x.1;
        let step = number_step(pixels, 30.0);
        for (i, (band, end)) in self.bands.iter().zip(&ends).enumerate() {
            let (first, middle) = (band.start as f64, (band.start as f64 + end) / 2.0);
            let (x, y) = (frame.x_pixel(first), frame.y_pixel(first));
            // Layers are told apart where they have more than one row.
            if i > 0 && pixels >= 12.0 && (self.bands.len() as f64) < n {
                let faint = Colour::INK.alpha(0.16);
                scene.line([(x, frame.top), (x, frame.bottom())], faint, 1);
                scene.line([(frame.left, y), (frame.right(), y)], faint, 1);
            }
            if !band.layer.is_multiple_of(step) {
                continue;
            }
            let (x, y) = (frame.x_pixel(middle), frame.y_pixel(middle));
            let (below, left) = (frame.bottom(), frame.left);
            scene.line([(x, below), (x, below + 5)], Colour::INK, 1);
            scene.line([(left - 5, y), (left, y)], Colour::INK, 1);
            let text = band.layer.to_string();
            scene.text((x, below + 17), &text, TICK, Colour::INK, Align::Middle);
            scene.text((left - 9, y), &text, TICK, Colour::INK, Align::End);
        }
    }

    fn draw_marks(&self, scene: &mut Scene, frame: &Frame) {
        let cell = f64::from(frame.width) / frame.x.1;
        for &(row, column) in &self.marks {
            let (x, y) = (column as f64, row as f64);
            if cell >= 7.0 {
                let from = (frame.x_pixel(x), frame.y_pixel(y));
                let to = (frame.x_pixel(x + 1.0), frame.y_pixel(y + 1.0));
                for inset in 0..2 {
                    scene.rect(
                        (from.0 + inset, from.1 + inset),
                        (to.0 - 1 - inset, to.1 - 1 - inset),
                        Colour::INK,
                        false,
                    );
                }
            } else {
                let centre = (frame.x_pixel(x + 0.5), frame.y_pixel(y + 0.5));
                scene.circle(centre, 4, Colour::INK, false);
            }
        }
    }
}
