//! One number a layer, for several files: a panel each, one above the other,
//! since lines would cover each other.

use super::axes::{Frame, X_AXIS, Y_AXIS, number_step};
use super::{Align, Colour, LABEL, Scene, TICK};

/// One panel.
pub struct Series {
    /// What stands above it.
    pub name: String,
    /// Layers and percentages, ascending by layer.
    pub points: Vec<(u32, f64)>,
    /// Its colour, by number.
    pub colour: usize,
}

/// Percentages by layer.
pub struct ColumnPlot {
    /// What the percentages are.
    pub meaning: &'static str,
    /// The panels.
    pub series: Vec<Series>,
}

/// Pixels of a panel from top to bottom.
const PANEL: u32 = 120;
/// Space above it for its name.
const NAME: u32 = 36;

impl ColumnPlot {
    fn layers(&self) -> u32 {
        let points = self.series.iter().flat_map(|series| &series.points);
        points.map(|point| point.0).max().unwrap_or(0)
    }

    fn plot_width(&self) -> u32 {
        (self.layers().saturating_add(1)).clamp(32, 64) * 26
    }

    /// Pixels that it takes.
    pub fn size(&self) -> (u32, u32) {
        let panels = self.series.len() as u32;
        (Y_AXIS + self.plot_width(), panels * (NAME + PANEL) + X_AXIS)
    }

    /// Draws it with its upper left corner at `at`.
    pub fn draw(&self, scene: &mut Scene, at: (u32, u32)) {
        let last = self.layers();
        let mut frame = Frame {
            left: (at.0 + Y_AXIS) as i32,
            top: (at.1 + NAME) as i32,
            width: self.plot_width() as i32,
            height: PANEL as i32,
            x: (-0.5, f64::from(last) + 0.5),
            y: (0.0, 104.0),
        };
        let each = f64::from(frame.width) / (f64::from(last) + 1.0);
        let step = number_step(each, 26.0);
        let layers: Vec<(f64, String)> = (0..=last)
            .step_by(step as usize)
            .map(|layer| (f64::from(layer), layer.to_string()))
            .collect();
        let percents: Vec<(f64, String)> = [0, 50, 100]
            .map(|percent| (f64::from(percent), format!("{percent}%")))
            .into();
        // Bars leave room between them where there is some.
        let half = (each * 0.38).max(0.5);
        for (i, series) in self.series.iter().enumerate() {
            let name = (frame.left, frame.top - 15);
            scene.text(name, &series.name, LABEL, Colour::INK, Align::Start);
            frame.y_axis(scene, &percents, "");
            let colour = Colour::SERIES[series.colour % Colour::SERIES.len()];
            let bars = series.points.iter().filter(|point| point.1 > 0.0);
            for &(layer, percent) in bars {
                let middle = frame.x_pixel(f64::from(layer));
                let left = (f64::from(middle) - half).round() as i32;
                let right = (f64::from(middle) + half).round() as i32;
                let top = frame.y_pixel(percent);
                scene.rect((left, top), (right, frame.bottom()), colour, true);
            }
            // Layers that the model does not have.
            let end = series.points.last().map_or(0, |point| point.0);
            if end < last {
                let from = frame.x_pixel(f64::from(end) + 0.5);
                let to = (frame.right(), frame.bottom());
                scene.rect((from, frame.top), to, Colour::GRID, true);
                let middle = ((from + frame.right()) / 2, frame.top + frame.height / 2);
                if frame.right() - from > 80 {
                    let none = "no layers";
                    scene.text(middle, none, TICK, Colour::FAINT_INK, Align::Middle);
                }
            }
            frame.border(scene);
            if i + 1 == self.series.len() {
                frame.x_ticks(scene, &layers, "layer");
            }
            frame.top += (NAME + PANEL) as i32;
        }
        let all = self.series.len() as i32 * (NAME + PANEL) as i32;
        let middle = at.1 as i32 + NAME as i32 / 2 + all / 2;
        scene.text_upwards((frame.left - 66, middle), self.meaning, LABEL);
    }
}
