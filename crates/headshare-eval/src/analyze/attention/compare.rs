//! Whether units with like weights attend alike: correlations, and what
//! Algorithm 1 picks.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::analyze::weights::{Match, Weights};
use crate::analyze::{Correlation, SymmetricMatrix, index_of};
use headshare_convert::matching::MatchFunction;
use headshare_convert::model::{Part, UnitId};

/// Attention against weights.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    /// The match function.
    #[serde(rename = "match")]
    pub function: MatchFunction,
    /// The parts whose weights are compared.
    pub parts: Vec<Part>,
    /// Over all pairs of units.
    pub all: Correlation,
    /// Over pairs in different layers, which are those that can share.
    pub across_layers: Correlation,
    /// The same, the maps' first column left out.
    pub across_layers_without_first_token: Correlation,
    /// The same with the size of the weights' cosine: weights that are alike or
    /// opposite, rather than unrelated.
    pub across_layers_by_size: Correlation,
    /// Over the same pairs, after the mean of each pair of layers is taken from
    /// both sides: whether the head matters, and not just its layer.
    pub within_pairs_of_layers: Correlation,
    /// The same with the size of the weights' cosine.
    pub within_pairs_of_layers_by_size: Correlation,
    /// What Algorithm 1 picks.
    pub matched: Option<Matched>,
    /// Weight and attention similarity of each pair in different layers.
    #[serde(skip)]
    pub(super) points: Vec<(f64, f64)>,
    /// Those of Algorithm 1's matches.
    #[serde(skip)]
    pub(super) matched_points: Vec<(f64, f64)>,
    /// Both without the maps' first column.
    #[serde(skip)]
    pub(super) points_without_first: Vec<(f64, f64)>,
    #[serde(skip)]
    pub(super) matched_points_without_first: Vec<(f64, f64)>,
}

/// Attention similarity of the pairs that Algorithm 1 picks by their weights,
/// next to what other ways of picking would give for the same units.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Matched {
    /// The share of units that Algorithm 1 is asked for.
    pub ratio: f64,
    /// Matches.
    pub n: usize,
    /// Mean similarity of a unit and its match.
    pub mean: f64,
    /// Mean similarity of those units and all units of earlier layers: a match
    /// picked blindly.
    pub blind: f64,
    /// Mean similarity of those units and all units of their match's layer: a
    /// unit picked blindly, in the right layer.
    pub blind_in_layer: f64,
    /// Mean similarity of those units and the earlier unit that attends most
    /// like them.
    pub best: f64,
    /// The share of earlier units that attend less alike than the match does,
    /// on average; blindly one half.
    pub rank: f64,
}

/// Compares by each of the views of `weights`.
pub(super) fn compare(
    weights: &Weights,
    attention: &SymmetricMatrix,
    without_first: &SymmetricMatrix,
) -> Vec<Comparison> {
    let units = &weights.units;
    let views = weights.views.iter().map(|view| {
        let pairs = |attention: &SymmetricMatrix, within: bool| -> Vec<(f64, f64)> {
            let pairs = view.scores.pairs();
            pairs
                .filter(|&(a, b, _)| within || units[a].layer != units[b].layer)
                .map(|(a, b, score)| (score, attention.get(a, b)))
                .filter(|(x, y)| !x.is_nan() && !y.is_nan())
                .collect()
        };
        let places = |attention: &SymmetricMatrix| -> Vec<(f64, f64)> {
            let place = |m: &Match| {
                let (a, b) = (index_of(units, m.alias()), index_of(units, m.other()));
                (m.score, attention.get(a, b))
            };
            view.matches.iter().map(place).collect()
        };
        let centred =
            |of: &dyn Fn(f64) -> f64| Correlation::of(&centred(&view.scores, attention, units, of));
        let points = pairs(attention, false);
        let points_without_first = pairs(without_first, false);
        let by_size: Vec<(f64, f64)> = points.iter().map(|&(x, y)| (x.abs(), y)).collect();
        Comparison {
            function: weights.function,
            parts: view.parts.clone(),
            all: Correlation::of(&pairs(attention, true)),
            across_layers: Correlation::of(&points),
            across_layers_without_first_token: Correlation::of(&points_without_first),
            across_layers_by_size: Correlation::of(&by_size),
            within_pairs_of_layers: centred(&|score| score),
            within_pairs_of_layers_by_size: centred(&f64::abs),
            matched: matched(weights, &view.matches, attention),
            matched_points: places(attention),
            matched_points_without_first: places(without_first),
            points,
            points_without_first,
        }
    });
    views.collect()
}

/// Both numbers of each pair of units in different layers (of the score, what
/// `of` makes of it), less their means over the pairs of the same two layers.
fn centred(
    weights: &SymmetricMatrix,
    attention: &SymmetricMatrix,
    units: &[UnitId],
    of: &dyn Fn(f64) -> f64,
) -> Vec<(f64, f64)> {
    let mut groups: BTreeMap<(u32, u32), Vec<(f64, f64)>> = BTreeMap::new();
    for (a, b, score) in weights.pairs() {
        let (layers, similarity) = ((units[a].layer, units[b].layer), attention.get(a, b));
        if layers.0 != layers.1 && !score.is_nan() && !similarity.is_nan() {
            groups
                .entry(layers)
                .or_default()
                .push((of(score), similarity));
        }
    }
    groups
        .into_values()
        .filter(|group| group.len() > 1)
        .flat_map(|group| {
            let mean = |side: fn(&(f64, f64)) -> f64| {
                group.iter().map(side).sum::<f64>() / group.len() as f64
            };
            let (x, y) = (mean(|p| p.0), mean(|p| p.1));
            group.iter().map(|p| (p.0 - x, p.1 - y)).collect::<Vec<_>>()
        })
        .collect()
}

fn matched(weights: &Weights, matches: &[Match], attention: &SymmetricMatrix) -> Option<Matched> {
    if matches.is_empty() {
        return None;
    }
    let units = &weights.units;
    let (mut mean, mut blind, mut best, mut rank) = (0.0, 0.0, 0.0, 0.0);
    let mut in_layer = 0.0;
    for m in matches {
        let unit = index_of(units, m.alias());
        let found = attention.get(unit, index_of(units, m.other()));
        let earlier: Vec<f64> = (0..unit)
            .take_while(|&other| units[other].layer < m.layer)
            .map(|other| attention.get(unit, other))
            .filter(|similarity| !similarity.is_nan())
            .collect();
        let there: Vec<f64> = (0..unit)
            .filter(|&other| units[other].layer == m.matched_layer)
            .map(|other| attention.get(unit, other))
            .filter(|similarity| !similarity.is_nan())
            .collect();
        in_layer += there.iter().sum::<f64>() / there.len() as f64;
        let n = earlier.len() as f64;
        mean += found;
        blind += earlier.iter().sum::<f64>() / n;
        best += earlier.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let less = earlier.iter().filter(|&&other| other < found).count() as f64;
        let equal = earlier.iter().filter(|&&other| other == found).count() as f64;
        rank += (less + (equal - 1.0) / 2.0) / (n - 1.0).max(1.0);
    }
    let n = matches.len() as f64;
    Some(Matched {
        ratio: weights.ratio,
        n: matches.len(),
        mean: mean / n,
        blind: blind / n,
        blind_in_layer: in_layer / n,
        best: best / n,
        rank: rank / n,
    })
}
