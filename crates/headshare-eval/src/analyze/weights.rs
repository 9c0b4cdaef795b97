//! How alike the heads' weights are: the scores of all pairs of units, and
//! which of them Algorithm 1 would let share.

use serde::Serialize;

use super::picture::{Bars, Colour, Heatmap, HistogramPlot, MARGIN, Scale, Scene, TITLE_SPACE};
use super::{AnalyzeError, Histogram, PlainModel, Summary, SymmetricMatrix, bands, index_of, npy};
use headshare_convert::convert::ConvertError;
use headshare_convert::matching::WeightBlocks;
use headshare_convert::matching::{self, MatchFunction};
use headshare_convert::model::{Part, UnitId};
use headshare_convert::stats::quantile;

/// Ranges of a histogram of `n` numbers.
fn bins(n: usize) -> usize {
    ((n as f64).sqrt() as usize * 2).clamp(12, 96)
}

/// How alike the units of a model are.
#[derive(Debug, Clone, Serialize)]
pub struct Weights {
    /// The file's path.
    pub path: String,
    /// The model in a few words.
    pub model: String,
    /// The match function.
    #[serde(rename = "match")]
    pub function: MatchFunction,
    /// The share of units that Algorithm 1 is asked for.
    pub ratio: f64,
    /// The rows and columns of the matrices.
    pub units: Vec<UnitId>,
    /// One view, or for `separate` one for each part.
    pub views: Vec<View>,
    #[serde(skip)]
    name: String,
}

/// The scores by one set of parts.
#[derive(Debug, Clone, Serialize)]
pub struct View {
    /// The parts that are compared.
    pub parts: Vec<Part>,
    /// All pairs of units that can be compared.
    pub all: Option<Summary>,
    /// Those in different layers.
    pub across_layers: Option<Summary>,
    /// Each unit's best match in earlier layers.
    pub best: Option<Summary>,
    /// Algorithm 1's matches.
    pub matched: Option<Summary>,
    /// The distribution of all pairs.
    pub histogram: Histogram,
    /// The matches, ordered by (layer, unit).
    pub matches: Vec<Match>,
    /// The scores; `null` for units that can never share.
    pub scores: SymmetricMatrix,
}

/// A unit and its best match in an earlier layer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Match {
    /// Layer of the unit that would share.
    pub layer: u32,
    /// The unit.
    pub unit: u32,
    /// Layer of the unit it is most like.
    pub matched_layer: u32,
    /// That unit.
    pub matched_unit: u32,
    /// The score of the two.
    pub score: f64,
}

impl Match {
    /// The unit that would share.
    pub fn alias(&self) -> UnitId {
        UnitId {
            layer: self.layer,
            unit: self.unit,
        }
    }

    /// The unit it is most like.
    pub fn other(&self) -> UnitId {
        UnitId {
            layer: self.matched_layer,
            unit: self.matched_unit,
        }
    }
}

/// Compares the units of `model`. `progress` is told the share of the work that
/// is done.
///
/// # Errors
/// When weights cannot be read as numbers, or are not finite.
pub fn weights(
    model: &PlainModel,
    function: MatchFunction,
    ratio: f64,
    progress: &dyn Fn(f64),
) -> Result<Weights, AnalyzeError> {
    let blocks =
        WeightBlocks::new(&model.file.gguf, &model.file.file, &model.map).map_err(|error| {
            let path = model.path.clone();
            ConvertError::Model { path, error }
        })?;
    let error = || model.match_error();
    let matrices = matching::score_matrices(&blocks, function, &|done| progress(done / 2.0))
        .map_err(error())?;
    let ranking = matching::rank_units(&blocks, function, &|done| progress(0.5 + done / 2.0))
        .map_err(error())?;
    let selected = ranking.select(ratio).map_err(error())?;
    let separate = function == MatchFunction::Separate;
    let views = matrices
        .iter()
        .zip(ranking.lists())
        .map(|(matrix, (shared, candidates))| {
            let mut scores = SymmetricMatrix::zeros(matrix.units.len());
            scores.add(|a, b| f64::from(matrix.get(a, b)));
            let matches = selected
                .aliases
                .iter()
                .filter(|alias| !separate || alias.parts == shared)
                .map(|alias| Match {
                    layer: alias.unit.layer,
                    unit: alias.unit.unit,
                    matched_layer: alias.matched.layer,
                    matched_unit: alias.matched.unit,
                    score: alias.score,
                })
                .collect();
            let best = candidates.iter().map(|candidate| candidate.score);
            View::new(&matrix.parts, &matrix.units, scores, best, matches)
        })
        .collect();
    Ok(Weights {
        path: model.path.display().to_string(),
        model: model.map.describe(),
        function,
        ratio,
        units: model.map.units(),
        views,
        name: model.name(),
    })
}

impl View {
    fn new(
        parts: &[Part],
        units: &[UnitId],
        scores: SymmetricMatrix,
        best: impl Iterator<Item = f64>,
        matches: Vec<Match>,
    ) -> Self {
        let pairs = || scores.pairs().filter(|(_, _, score)| !score.is_nan());
        let all = Summary::of(pairs().map(|pair| pair.2));
        let across = pairs().filter(|&(a, b, _)| units[a].layer != units[b].layer);
        let (low, high) = all.map_or((-1.0, 1.0), |all| (all.min, all.max));
        let room = ((high - low) * 0.01).max(1e-6);
        let bins = bins(all.map_or(0, |all| all.n));
        Self {
            parts: parts.to_vec(),
            across_layers: Summary::of(across.map(|pair| pair.2)),
            best: Summary::of(best),
            matched: Summary::of(matches.iter().map(|m| m.score)),
            histogram: Histogram::of(pairs().map(|pair| pair.2), low - room, high + room, bins),
            all,
            matches,
            scores,
        }
    }

    /// The parts' names: `q,k`.
    pub fn parts_text(&self) -> String {
        let names: Vec<&str> = self.parts.iter().map(|part| part.as_str()).collect();
        names.join(",")
    }

    /// The score beyond which colours do not change: most lie far below the
    /// few largest, which would leave the rest white.
    fn limit(&self) -> f64 {
        let mut sizes: Vec<f64> = self
            .scores
            .pairs()
            .map(|pair| pair.2.abs())
            .filter(|size| !size.is_nan())
            .collect();
        if sizes.is_empty() {
            return 1.0;
        }
        sizes.sort_by(f64::total_cmp);
        quantile(&sizes, 0.998).clamp(1e-4, 1.0)
    }
}

impl Weights {
    /// The matrices as one array for NumPy: units by units, for `separate` with
    /// a first axis of three for q, k and v.
    pub fn npy(&self) -> Vec<u8> {
        let n = self.units.len();
        let views = &self.views;
        let at = |i: usize| views[i / (n * n)].scores.get(i / n % n, i % n) as f32;
        let values = (0..views.len() * n * n).map(at);
        match views.len() {
            1 => npy::encode(&[n, n], values),
            several => npy::encode(&[several, n, n], values),
        }
    }

    /// The picture: for each view the matrix, and the distribution below it.
    pub fn picture(&self) -> Scene {
        let maps: Vec<Heatmap<'_>> = self.views.iter().map(|view| self.heatmap(view)).collect();
        let sizes: Vec<(u32, u32)> = maps.iter().map(Heatmap::size).collect();
        let width: u32 = sizes.iter().map(|size| size.0 + MARGIN).sum();
        let tallest = sizes.iter().map(|size| size.1).max().unwrap_or(0);
        let mut scene = Scene::new(
            (width + MARGIN).max(900),
            TITLE_SPACE + tallest + HistogramPlot::HEIGHT + MARGIN,
            &format!("{}: how alike the weights are", self.name),
            &format!("{}; match {}", self.model, self.function),
        );
        let mut x = MARGIN;
        for ((view, map), size) in self.views.iter().zip(&maps).zip(&sizes) {
            map.draw(&mut scene, (x, TITLE_SPACE));
            let h = &view.histogram;
            let scores = view.matches.iter().map(|m| m.score);
            let matched = Histogram::of(scores, h.low, h.high, h.counts.len());
            let plot = HistogramPlot {
                heading: "Distribution".to_owned(),
                meaning: "cosine of the weights",
                counted: "pairs",
                bars: vec![
                    Bars {
                        name: "all pairs of units".to_owned(),
                        histogram: h,
                        colour: Colour::DATA,
                    },
                    Bars {
                        name: format!("the {} matches", view.matches.len()),
                        histogram: &matched,
                        colour: Colour::ACCENT,
                    },
                ],
            };
            plot.draw(&mut scene, (x, TITLE_SPACE + tallest), map.plot_side());
            x += size.0 + MARGIN;
        }
        scene
    }

    fn heatmap<'a>(&'a self, view: &'a View) -> Heatmap<'a> {
        let n = self.units.len();
        let matched = view.matches.len();
        let limit = view.limit();
        let beyond = view.all.is_some_and(|all| all.max > limit);
        Heatmap {
            heading: format!("Cosine of {}, {n} units", view.parts_text()),
            caption: {
                let mut caption = match matched {
                    0 => format!("ratio {}: no unit shares", self.ratio),
                    n => format!("marked: {n} matches, ratio {}", self.ratio),
                };
                if beyond {
                    caption += &format!("; colours end at \u{b1}{limit:.3}");
                }
                if view.scores.pairs().any(|(_, _, score)| score.is_nan()) {
                    caption += "; grey: other type or shape, never share";
                }
                caption
            },
            matrix: &view.scores,
            bands: bands(self.units.iter().map(|unit| unit.layer)),
            scale: Scale::diverging(limit),
            meaning: "cosine",
            marks: view
                .matches
                .iter()
                .map(|m| {
                    let at = |unit| index_of(&self.units, unit);
                    (at(m.alias()), at(m.other()))
                })
                .collect(),
            rows: "layer of the unit that would share",
            columns: "layer of the unit that it is like",
            side: if self.views.len() > 1 { 720 } else { 1024 },
        }
    }
}
