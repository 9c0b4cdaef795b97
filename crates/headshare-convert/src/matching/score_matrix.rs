//! The scores of all pairs of units: the paper's heat map of head similarity.

use super::blocks::{MatchError, MatchFunction, UnitBlocks};
use super::gram::Gram;
use super::select::groups;
use crate::model::{Part, UnitId};

/// The cosine of every unit with every other.
#[derive(Clone, Debug)]
pub struct ScoreMatrix {
    /// The parts whose concatenation is compared.
    pub parts: Vec<Part>,
    /// The units, ascending by (layer, unit): rows and columns.
    pub units: Vec<UnitId>,
    scores: Vec<f32>,
}

impl ScoreMatrix {
    /// The cosine of two units, counted as in [`units`](Self::units): symmetric,
    /// 1 on the diagonal (0 for a unit without weight), not a number for units
    /// of different classes, which never match.
    pub fn get(&self, a: usize, b: usize) -> f32 {
        assert!(b < self.units.len(), "unit {b} of {}", self.units.len());
        self.scores[a * self.units.len() + b]
    }

    /// One unit's cosines with all units.
    pub fn row(&self, unit: usize) -> &[f32] {
        let units = self.units.len();
        &self.scores[unit * units..][..units]
    }
}

/// The scores of all pairs, within layers too: one matrix, or for
/// [`Separate`](MatchFunction::Separate) one for each part. From `f32` products,
/// so accurate to about 1e-6.
///
/// `progress` is told the share of the work that is done, from the calling
/// thread.
pub fn score_matrices(
    blocks: &dyn UnitBlocks,
    function: MatchFunction,
    progress: &dyn Fn(f64),
) -> Result<Vec<ScoreMatrix>, MatchError> {
    let units = blocks.units();
    let mut grouped = Vec::new();
    for view in function.views() {
        grouped.push((view, groups(blocks, *view)?));
    }
    let work = grouped
        .iter()
        .flat_map(|(_, groups)| groups)
        .map(|group| group.work());
    let total = work.sum::<f64>().max(1.0);
    let mut done = 0.0;
    let mut matrices = Vec::new();
    for (view, groups) in &grouped {
        let mut scores = vec![f32::NAN; units.len() * units.len()];
        for group in groups {
            let gram = Gram::compute(blocks, group, &|share| {
                progress((done + share * group.work()) / total);
            })?;
            for (a, &row) in group.units.iter().enumerate() {
                for (b, &column) in group.units[..a].iter().enumerate() {
                    let score = gram.cosine(a, b) as f32;
                    scores[row * units.len() + column] = score;
                    scores[column * units.len() + row] = score;
                }
                scores[row * units.len() + row] = if gram.is_zero(a) { 0.0 } else { 1.0 };
            }
            done += group.work();
        }
        matrices.push(ScoreMatrix {
            parts: view.scored.to_vec(),
            units: units.to_vec(),
            scores,
        });
    }
    progress(1.0);
    Ok(matrices)
}
