//! What a model of so many bytes costs at least: the sizes that moves lead to, and the
//! divergence that is predicted for each.

use super::picture::{LinePlot, LineSeries, MARGIN, Marks, Point, Scene, TITLE_SPACE};

/// Divergences below this one, in nats, are nothing that anyone would see: they would only
/// stretch the logarithm.
const LEAST: f64 = 1e-4;

/// Predicted divergences over sizes in bytes, and which of them was chosen. None without a
/// point that costs anything.
pub fn picture(title: &str, frontier: &[(u64, f64)], chosen: (u64, f64)) -> Option<Scene> {
    let point = |&(bytes, cost): &(u64, f64)| Point {
        at: (bytes as f64 / 1e6, cost),
        label: String::new(),
    };
    let costs = |p: &&(u64, f64)| p.1 > LEAST;
    let points: Vec<Point> = frontier.iter().filter(costs).map(point).collect();
    if points.is_empty() {
        return None;
    }
    let count = points.len();
    let mut series = vec![LineSeries {
        name: "least divergence for so many bytes, predicted".to_owned(),
        points,
        colour: 0,
        marks: Marks::None,
    }];
    if chosen.1 > LEAST {
        let (bytes, cost) = chosen;
        series.push(LineSeries {
            name: format!("chosen: {:.1} MB, {cost:.4} nats", bytes as f64 / 1e6),
            points: vec![point(&chosen)],
            colour: 1,
            marks: Marks::Dots,
        });
    }
    let plot = LinePlot {
        x_meaning: "size of the file, MB of 10^6 bytes".to_owned(),
        y_meaning: "divergence from the source, nats a token".to_owned(),
        level: None,
        series,
        heading: None,
        counts: false,
    };
    let (width, height) = plot.size();
    let small_print = format!(
        "{count} plans that cost more than {LEAST} nats, each with more moves than the one before"
    );
    let size = (width + 2 * MARGIN, TITLE_SPACE + 8 + height + MARGIN);
    let mut scene = Scene::new(size.0, size.1, title, &small_print);
    plot.draw(&mut scene, (MARGIN, TITLE_SPACE + 8));
    Some(scene)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analyze::picture::Format;

    #[test]
    fn what_costs_next_to_nothing_is_no_point_of_a_logarithm() {
        let frontier = [
            (90_000_000, 0.0),
            (89_000_000, 1e-6),
            (80_000_000, 0.01),
            (60_000_000, 0.8),
        ];
        let scene = picture("t", &frontier, (70_000_000, 0.1)).unwrap();
        let svg = String::from_utf8(scene.encode(Format::Svg)).unwrap();
        assert!(svg.contains("2 plans") && svg.contains("70.0 MB, 0.1000 nats"));
        assert!(svg.contains("logarithmic"));
        assert!(picture("t", &frontier[..1], (90_000_000, 0.0)).is_none());
    }
}
