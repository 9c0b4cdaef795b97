//! The paper's Figure 1: layers, heads, and attention against weights.

use super::{Attention, Comparison};
use crate::analyze::picture::{Density, Heatmap, MARGIN, Scale, Scene, TITLE_SPACE};
use crate::analyze::{Correlation, bands};
use headshare_convert::model::Part;

/// Pixels of each panel's plot, a side, unless there are more heads.
const SIDE: u32 = 640;

impl Attention {
    /// The picture: similarity of layers and of heads, and below it both of the
    /// units against their weights, with and without the first token.
    pub fn picture(&self) -> Scene {
        let (layers, heads) = self.heatmaps();
        let side = heads.plot_side();
        let layers = Heatmap { side, ..layers };
        let plots: Vec<Density<'_>> = self
            .comparisons
            .iter()
            .flat_map(|comparison| comparison.plots(side))
            .collect();
        let sizes: Vec<(u32, u32)> = [layers.size(), heads.size()]
            .into_iter()
            .chain(plots.iter().map(Density::size))
            .collect();
        let widest = sizes.iter().map(|size| size.0).max().unwrap_or(0);
        let tallest = sizes.iter().map(|size| size.1).max().unwrap_or(0);
        let rows = sizes.len().div_ceil(2) as u32;
        let mut scene = Scene::new(
            2 * widest + 3 * MARGIN,
            TITLE_SPACE + rows * (tallest + MARGIN),
            &format!("{}: how alike the heads attend", self.name),
            &format!(
                "{}; {}; the first token gets {:.0}% of the attention",
                self.model,
                self.windows_text(),
                self.first_token_share * 100.0
            ),
        );
        let mut places = (0..).map(|i: u32| {
            let (column, row) = (i % 2, i / 2);
            (
                MARGIN + column * (widest + MARGIN),
                TITLE_SPACE + row * (tallest + MARGIN),
            )
        });
        for (map, at) in [layers, heads].iter().zip(&mut places) {
            map.draw(&mut scene, at);
        }
        for (plot, at) in plots.iter().zip(&mut places) {
            plot.draw(&mut scene, at);
        }
        scene
    }

    fn heatmaps(&self) -> (Heatmap<'_>, Heatmap<'_>) {
        let layers = Heatmap {
            heading: "Layers: cosine of their heads' mean maps".to_owned(),
            caption: String::new(),
            matrix: &self.layer_similarity,
            bands: bands(self.layers.iter().copied()),
            scale: Scale::sequential(0.0, 1.0),
            meaning: "cosine",
            marks: Vec::new(),
            rows: "layer",
            columns: "layer",
            side: SIDE,
        };
        let heads = Heatmap {
            heading: format!("Heads: cosine of their maps, {} heads", self.heads.len()),
            matrix: &self.head_similarity,
            bands: bands(self.heads.iter().map(|head| head.0)),
            rows: "layer of the query head",
            columns: "layer of the query head",
            side: SIDE.max(self.heads.len().min(1024) as u32),
            caption: String::new(),
            marks: Vec::new(),
            ..layers
        };
        (layers, heads)
    }
}

impl Comparison {
    /// Attention against weights, and the same without the first token.
    fn plots(&self, side: u32) -> [Density<'_>; 2] {
        let parts: Vec<&str> = self.parts.iter().map(|p| Part::as_str(*p)).collect();
        let marked_name = match self.matched {
            Some(m) => format!("the {} matches at ratio {}", m.n, m.ratio),
            None => String::new(),
        };
        let plot = |correlation: &Correlation, points, marked: &[(f64, f64)], y| Density {
            heading: format!(
                "Units against weights ({}): Pearson {}, Spearman {}",
                parts.join(","),
                number(correlation.pearson),
                number(correlation.spearman),
            ),
            caption: "pairs of units in different layers".to_owned(),
            points,
            marked: marked.to_vec(),
            marked_name: marked_name.clone(),
            x: "cosine of the weights",
            y,
            side,
        };
        [
            plot(
                &self.across_layers,
                &self.points,
                &self.matched_points,
                "cosine of the attention maps",
            ),
            plot(
                &self.across_layers_without_first_token,
                &self.points_without_first,
                &self.matched_points_without_first,
                "the maps without the first token",
            ),
        ]
    }
}

fn number(r: Option<f64>) -> String {
    match r {
        // Adding 0 turns -0 into 0.
        Some(r) => format!("{:.2}", (r * 100.0).round() / 100.0 + 0.0).replace('-', "\u{2212}"),
        None => "none".to_owned(),
    }
}
