//! Pictures: a list of shapes, drawn as SVG or PNG through plotters.
//!
//! The font is part of the program, so that pictures come out the same on
//! machines without any. In SVG texts stay texts, in the reader's own
//! sans-serif font. Large matrices are one embedded image, not a million
//! rectangles.

mod axes;
mod colour;
mod columns;
mod density;
mod heatmap;
mod histogram;
mod lines;
mod pairs;
mod render;

use std::path::Path;

pub use colour::{Colour, Scale};
pub use columns::{ColumnPlot, Series};
pub use density::Density;
pub use heatmap::{Band, Heatmap};
pub use histogram::{Bars, HistogramPlot};
pub use lines::{LinePlot, LineSeries, Marks, Point};
pub use pairs::{Bar, BarPanel, PairedBars};

/// What a picture is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Scalable vector graphics.
    Svg,
    /// Portable network graphics.
    Png,
}

impl Format {
    /// The format that the path's extension stands for.
    ///
    /// # Errors
    /// With a sentence that names the extensions that there are.
    pub fn of(path: &Path) -> Result<Self, String> {
        let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase());
        match extension.as_deref() {
            Some("svg") => Ok(Self::Svg),
            Some("png") => Ok(Self::Png),
            Some(other) => Err(format!("unknown extension .{other}: use .svg or .png")),
            None => Err("no extension: use .svg or .png".to_owned()),
        }
    }
}

/// Where a text stands relative to its point, along the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// It begins there.
    Start,
    /// Its middle is there.
    Middle,
    /// It ends there.
    End,
}

/// Something to draw, in pixels from the upper left corner.
#[derive(Debug, Clone, PartialEq)]
enum Shape {
    Rect {
        corners: [(i32, i32); 2],
        colour: Colour,
        filled: bool,
    },
    Line {
        points: Vec<(i32, i32)>,
        colour: Colour,
        width: u32,
    },
    Circle {
        centre: (i32, i32),
        radius: u32,
        colour: Colour,
        filled: bool,
    },
    /// Centred vertically.
    Text {
        at: (i32, i32),
        text: String,
        size: u32,
        colour: Colour,
        align: Align,
        /// Read from bottom to top.
        upwards: bool,
    },
}

/// A block of pixels, below all shapes.
#[derive(Debug, Clone, PartialEq)]
struct Image {
    at: (u32, u32),
    width: u32,
    height: u32,
    /// How many pixels of the picture each side of one of these takes.
    zoom: u32,
    pixels: Vec<Colour>,
}

/// A picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Scene {
    width: u32,
    height: u32,
    images: Vec<Image>,
    shapes: Vec<Shape>,
}

/// Sizes of the letters, in pixels from the ascenders to the descenders.
const TITLE: u32 = 24;
const HEADING: u32 = 19;
const LABEL: u32 = 17;
const TICK: u32 = 15;

/// Space around a picture and between its panels.
pub const MARGIN: u32 = 24;
/// Space for the title of a picture.
pub const TITLE_SPACE: u32 = 64;

impl Scene {
    /// A white picture with a title and a line of small print below it.
    pub fn new(width: u32, height: u32, title: &str, small_print: &str) -> Self {
        let mut scene = Self {
            width,
            height,
            images: Vec::new(),
            shapes: Vec::new(),
        };
        let x = MARGIN as i32;
        scene.text((x, 24), title, TITLE, Colour::INK, Align::Start);
        scene.text((x, 50), small_print, LABEL, Colour::FAINT_INK, Align::Start);
        scene
    }

    /// The picture's size.
    pub fn size(&self) -> (u32, u32) {
        (self.width, self.height)
    }

    fn rect(&mut self, from: (i32, i32), to: (i32, i32), colour: Colour, filled: bool) {
        self.shapes.push(Shape::Rect {
            corners: [from, to],
            colour,
            filled,
        });
    }

    fn line(&mut self, points: impl Into<Vec<(i32, i32)>>, colour: Colour, width: u32) {
        self.shapes.push(Shape::Line {
            points: points.into(),
            colour,
            width,
        });
    }

    fn circle(&mut self, centre: (i32, i32), radius: u32, colour: Colour, filled: bool) {
        self.shapes.push(Shape::Circle {
            centre,
            radius,
            colour,
            filled,
        });
    }

    fn text(&mut self, at: (i32, i32), text: &str, size: u32, colour: Colour, align: Align) {
        self.push_text(at, text, size, colour, align, false);
    }

    fn text_upwards(&mut self, at: (i32, i32), text: &str, size: u32) {
        self.push_text(at, text, size, Colour::INK, Align::Middle, true);
    }

    fn push_text(
        &mut self,
        at: (i32, i32),
        text: &str,
        size: u32,
        colour: Colour,
        align: Align,
        upwards: bool,
    ) {
        if text.is_empty() {
            return;
        }
        self.shapes.push(Shape::Text {
            at,
            text: text.to_owned(),
            size,
            colour,
            align,
            upwards,
        });
    }
}
