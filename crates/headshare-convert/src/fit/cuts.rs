//! What a layer loses when units of its attention or channels of its feed-forward part go:
//! what the least-squares fit of those that stay cannot give back.
//!
//! Both are columns of the matrix that writes to the residual stream. Without the columns
//! S, the best that others can do leaves tr(W_S (H⁻¹_SS)⁻¹ W_Sᵀ) of its outputs' squares
//! (Hassibi and Stork, "Second order derivatives for network pruning: Optimal Brain
//! Surgeon", 1993), with H the inputs' Gram matrix. They go one after the other, those
//! first that cost least.

use std::ops::Range;

use faer::linalg::solvers::{DenseSolveCore, Solve};
use faer::{Mat, Side};
use headshare_format::GgmlType;
use serde::{Deserialize, Serialize};

use super::error::FitError;
use super::inputs::{inputs_of, rows_of};
use crate::convert::variant::{Limits, Variant};
use crate::encode::transposed;
use crate::engine::normal::ridged;
use crate::engine::{EngineError, Role, Seen, Site, Visitor, Wants};
use crate::input::ModelFile;
use crate::model::{AttentionLayer, AttentionMap, UnitId, layer_of};
use crate::plan::{Choice, Edit, Narrow, Plan, Removed, Store};
use crate::quantize::Settings;

/// Channels that go at a time.
const CHANNELS: usize = 32;

/// The part of a feed-forward layer that goes at most.
const MOST: f64 = 0.75;

/// What goes from a layer, step by step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cut {
    /// The layer.
    pub layer: u32,
    /// Of what.
    pub part: Part,
    /// Units or channels that there are.
    pub of: u32,
    /// What goes, those first that cost least.
    pub steps: Vec<Step>,
}

/// A part of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// Its units.
    Attention,
    /// Its channels.
    FeedForward,
}

/// A step of a [`Cut`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// The units or channels that go in this step.
    pub gone: Vec<u32>,
    /// What is lost with those of all steps up to this one: the mean square of what changes
    /// in the layer's outputs, relative to them.
    pub loss: f64,
}

impl Cut {
    /// The matrix that writes to the residual stream.
    pub fn tensor(&self) -> String {
        let (layer, stem) = (self.layer, self.stems().1);
        format!("blk.{layer}.{stem}.weight")
    }

    /// The tensors whose rows go.
    fn rows(&self) -> Vec<String> {
        let name = |stem: &&str| format!("blk.{}.{stem}.weight", self.layer);
        self.stems().0.iter().map(name).collect()
    }

    /// All tensors that become smaller: those of which rows go, then the one that loses columns.
    pub fn tensors(&self) -> Vec<String> {
        let mut all = self.rows();
        all.push(self.tensor());
        all
    }

    fn stems(&self) -> (&'static [&'static str], &'static str) {
        match self.part {
            Part::Attention => (&["attn_q", "attn_k", "attn_v"], "attn_output"),
            Part::FeedForward => (&["ffn_gate", "ffn_up"], "ffn_down"),
        }
    }

    /// How many are left after so many steps.
    pub fn left(&self, steps: usize) -> u32 {
        let gone: usize = self.steps[..steps].iter().map(|s| s.gone.len()).sum();
        self.of - gone as u32
    }

    /// What is lost after so many steps.
    pub fn loss(&self, steps: usize) -> f64 {
        steps
            .checked_sub(1)
            .map_or(0.0, |last| self.steps[last].loss)
    }

    /// The first so many steps as edits of a plan.
    pub fn edits(&self, steps: usize) -> Vec<Edit> {
        let gone = self.steps[..steps].iter().flat_map(|s| &s.gone);
        let mut gone: Vec<u32> = gone.copied().collect();
        gone.sort_unstable();
        let layer = self.layer;
        match self.part {
            _ if gone.is_empty() => Vec::new(),
            Part::Attention => (gone.into_iter())
                .map(|unit| {
                    Edit::Drop(Removed {
                        layer,
                        unit,
                        score: None,
                    })
                })
                .collect(),
            Part::FeedForward => {
                let mut channels: Vec<[u64; 2]> = Vec::new();
                let mut at = 0;
                for end in gone.into_iter().chain([self.of]).map(u64::from) {
                    if at < end {
                        channels.push([at, end]);
                    }
                    at = end + 1;
                }
                vec![Edit::Narrow(Narrow { layer, channels })]
            }
        }
    }

    /// Whether each unit or channel goes once, and not all of them go.
    pub fn is_sound(&self) -> bool {
        let mut gone: Vec<u32> = self.steps.iter().flat_map(|s| s.gone.clone()).collect();
        let count = gone.len();
        gone.sort_unstable();
        gone.dedup();
        gone.len() == count
            && count < self.of as usize
            && gone.last().is_none_or(|&last| last < self.of)
            && self
                .steps
                .iter()
                .all(|s| s.loss.is_finite() && s.loss >= 0.0)
    }
}

/// Measures the cuts of all layers that can have some.
pub(super) struct Cutter<'a> {
    source: &'a ModelFile,
    /// Layers of which units can go, and how many of them only go together.
    drops: Vec<(&'a AttentionLayer, u32)>,
    narrows: bool,
    /// What was measured so far.
    pub cuts: Vec<Cut>,
}

impl<'a> Cutter<'a> {
    /// For what llama.cpp can run of `source` with fewer units (whose heads are `map`) and
    /// channels, by layer.
    pub fn new(source: &'a ModelFile, map: Option<&'a AttentionMap>) -> Self {
        let limits = map.and_then(|map| Limits::of(source, map).ok());
        let drops = |layer: &'a AttentionLayer| {
            let together = limits?.together(layer.layer);
            let first = (0..together).map(|unit| UnitId {
                layer: layer.layer,
                unit,
            });
            let can_go = layer.n_head_kv > together && can_be(source, first.map(dropped).collect());
            can_go.then_some((layer, together))
        };
        // None goes from the first layer: what the others do with that is far worse than what is
        // measured of a unit by itself.
        let layers = map.and_then(|map| map.layers.get(1..)).unwrap_or_default();
        let drops = layers.iter().filter_map(drops).collect();
        let narrows = (source.gguf.tensors().iter())
            .find(|info| info.name.ends_with(".ffn_down.weight"))
            .is_some_and(|down| {
                let narrow = Edit::Narrow(Narrow {
                    layer: layer_of(&down.name).unwrap_or(0),
                    channels: vec![[0, down.row_elems().saturating_sub(1)]],
                });
                let store = Edit::Store(Store {
                    tensor: down.name.clone(),
                    ggml_type: GgmlType::F32,
                });
                can_be(source, vec![narrow, store])
            });
        Self {
            source,
            drops,
            narrows,
            cuts: Vec::new(),
        }
    }

    /// The columns of what only goes together, and how many of these go at a time.
    fn groups(&self, site: &Site) -> Option<Groups> {
        let layer = site.layer.filter(|_| site.experts.is_none())?;
        match site.role {
            Role::AttentionOutput => {
                let (layer, together) = self.drops.iter().find(|(l, _)| l.layer == layer)?;
                let units: Vec<u32> = (0..layer.n_head_kv).collect();
                // Neighbours, so their columns are one range.
                let columns = |units: &[u32]| {
                    let of = |unit: u32| layer.output_columns(unit);
                    let (first, last) = (of(units[0]), of(units[units.len() - 1]));
                    first.start as usize..last.end as usize
                };
                let rows = ["attn_q", "attn_k", "attn_v"].iter().all(|stem| {
                    let name = format!("blk.{}.{stem}.weight", layer.layer);
                    self.source.gguf.tensor(&name).is_some()
                });
                rows.then(|| Groups {
                    part: Part::Attention,
                    of: layer.n_head_kv,
                    each: *together,
                    columns: units
                        .chunks_exact(*together as usize)
                        .map(columns)
                        .collect(),
                    batch: 1,
                })
            }
            Role::Down if self.narrows => {
                let columns = (0..site.columns).map(|i| i..i + 1);
                Some(Groups {
                    part: Part::FeedForward,
                    of: site.columns as u32,
                    each: 1,
                    columns: columns.collect(),
                    batch: CHANNELS,
                })
            }
            _ => None,
        }
    }
}

/// What of a layer can go.
struct Groups {
    part: Part,
    /// Units or channels that there are.
    of: u32,
    /// Units or channels of a group.
    each: u32,
    /// The columns of each group.
    columns: Vec<Range<usize>>,
    /// Groups that go at a time.
    batch: usize,
}

impl Groups {
    /// Groups that go at most.
    fn most(&self) -> usize {
        most_of(self.part, self.of, self.each)
    }

    /// The units or channels of `groups`.
    fn members(&self, groups: &[u32]) -> Vec<u32> {
        let of = |&group: &u32| group * self.each..(group + 1) * self.each;
        groups.iter().flat_map(of).collect()
    }
}

/// All that could go from `source`, at no cost: how small it can become.
pub(super) fn all_that_can_go(source: &ModelFile) -> Vec<Cut> {
    let map = AttentionMap::of(&source.gguf).ok();
    let cutter = Cutter::new(source, map.as_ref());
    let cut = |layer, part, of: u32, (each, batch): (u32, usize)| {
        let together = each * batch as u32;
        let step = |i: usize| Step {
            gone: (i as u32 * together..(i as u32 + 1) * together).collect(),
            loss: 0.0,
        };
        Cut {
            layer,
            part,
            of,
            steps: (0..most_of(part, of, each) / batch).map(step).collect(),
        }
    };
    let mut cuts: Vec<Cut> = (cutter.drops.iter())
        .map(|(layer, together)| {
            let units = layer.n_head_kv;
            cut(layer.layer, Part::Attention, units, (*together, 1))
        })
        .collect();
    let downs = source.gguf.tensors().iter().filter(|info| {
        cutter.narrows && info.name.ends_with(".ffn_down.weight") && info.dims.len() == 2
    });
    cuts.extend(downs.filter_map(|info| {
        let layer = layer_of(&info.name)?;
        let channels = u32::try_from(info.row_elems()).ok()?;
        Some(cut(layer, Part::FeedForward, channels, (1, CHANNELS)))
    }));
    cuts
}

/// Of the units of `source`, the part that is left when all go that can: 1 where none can.
pub fn units_at_least(source: &ModelFile) -> f64 {
    let map = AttentionMap::of(&source.gguf).ok();
    let all: u32 = (map.iter().flat_map(|map| &map.layers))
        .map(|layer| layer.n_head_kv)
        .sum();
    let cuts = all_that_can_go(source);
    let of_units = cuts.iter().filter(|cut| cut.part == Part::Attention);
    let gone: u32 = of_units.map(|cut| cut.of - cut.left(cut.steps.len())).sum();
    1.0 - f64::from(gone) / f64::from(all.max(1))
}

/// How many groups of so many units or channels of a layer, of `all` of which there are, go at
/// most. A unit must be left.
fn most_of(part: Part, all: u32, each: u32) -> usize {
    match part {
        Part::Attention => (all.saturating_sub(1) / each.max(1)) as usize,
        Part::FeedForward => (f64::from(all) * MOST) as usize,
    }
}

fn dropped(unit: UnitId) -> Edit {
    Edit::Drop(Removed {
        layer: unit.layer,
        unit: unit.unit,
        score: None,
    })
}

fn can_be(source: &ModelFile, edits: Vec<Edit>) -> bool {
    let plan = Plan::new(String::new(), Choice::default(), edits);
    Variant::new(source, &plan, None).is_ok()
}

impl Visitor<FitError> for Cutter<'_> {
    fn wants(&mut self, site: &Site) -> Result<Wants, FitError> {
        Ok(match self.groups(site) {
            Some(_) => inputs_of(site),
            None => Wants::Nothing,
        })
    }

    fn visit(&mut self, site: &Site, seen: &Seen<'_>) -> Result<Option<Vec<u8>>, FitError> {
        let (Some(groups), Some(layer)) = (self.groups(site), site.layer) else {
            return Ok(None);
        };
        let name = &site.name;
        let info = self.source.gguf.tensor(name);
        let info = info.ok_or_else(|| EngineError::Internal(format!("there is no {name}")))?;
        let all: Vec<usize> = (0..site.rows).collect();
        let weights = rows_of(self.source, info, &all).map_err(|error| FitError::Weights {
            tensor: name.clone(),
            error,
        })?;
        let weights = transposed(&weights, site.columns);
        let gram = seen.sums().all().gram;
        let ridge = Settings::default().ridge;
        let (columns, batch, most) = (&groups.columns, groups.batch, groups.most());
        let steps = eliminate(weights, (&gram, ridge), columns, batch, most);
        let of_members = |step: Step| Step {
            gone: groups.members(&step.gone),
            ..step
        };
        let steps: Vec<Step> = (steps.into_iter().flatten()).map(of_members).collect();
        if !steps.is_empty() {
            self.cuts.push(Cut {
                layer,
                part: groups.part,
                of: groups.of,
                steps,
            });
        }
        Ok(None)
    }
}

/// Takes groups of the rows of `weights` away, `batch` at a time and `most` in all: those
/// first that the others can give back best, for inputs of this Gram matrix and with a ridge.
/// Nothing where no input is there.
fn eliminate(
    mut weights: Mat<f64>,
    (gram, ridge): (&Mat<f64>, f64),
    groups: &[Range<usize>],
    batch: usize,
    most: usize,
) -> Option<Vec<Step>> {
    let image = gram * &weights;
    let mut all = 0.0;
    for j in 0..weights.ncols() {
        all += (0..weights.nrows())
            .map(|i| weights[(i, j)] * image[(i, j)])
            .sum::<f64>();
    }
    let mut inverse = ridged(gram, ridge).llt(Side::Lower).ok()?.inverse();
    let mut left: Vec<usize> = (0..groups.len()).collect();
    let mut steps: Vec<Step> = Vec::new();
    let mut lost = 0.0;
    while groups.len() - left.len() + batch <= most && all > 0.0 {
        let mut costs = Vec::with_capacity(left.len());
        for &group in &left {
            let columns: Vec<usize> = groups[group].clone().collect();
            let cost = match columns[..] {
                [row] => cost_of_row(&weights, &inverse, row),
                _ => without(&weights, &inverse, &columns)?.0,
            };
            costs.push((cost, group));
        }
        costs.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let gone: Vec<usize> = costs[..batch].iter().map(|c| c.1).collect();
        let columns: Vec<usize> = gone.iter().flat_map(|&g| groups[g].clone()).collect();
        let (cost, solved, of_inverse) = without(&weights, &inverse, &columns)?;
        lost += cost;
        let across = Mat::from_fn(inverse.nrows(), columns.len(), |i, j| {
            inverse[(i, columns[j])]
        });
        weights -= &across * solved;
        inverse -= &across * of_inverse;
        left.retain(|group| !gone.contains(group));
        steps.push(Step {
            gone: gone.iter().map(|&g| g as u32).collect(),
            loss: lost / all,
        });
    }
    Some(steps)
}

/// [`without`] of one row: what is lost.
fn cost_of_row(weights: &Mat<f64>, inverse: &Mat<f64>, row: usize) -> f64 {
    let squares = (0..weights.ncols()).map(|j| weights[(row, j)].powi(2));
    squares.sum::<f64>() / inverse[(row, row)]
}

/// What is lost without these rows of `weights`: tr(W_Sᵀ A W_S) with A the inverse of
/// H⁻¹_SS; and A W_S and A H⁻¹_S.
fn without(
    weights: &Mat<f64>,
    inverse: &Mat<f64>,
    rows: &[usize],
) -> Option<(f64, Mat<f64>, Mat<f64>)> {
    let n = weights.ncols();
    let own = Mat::from_fn(rows.len(), rows.len(), |i, j| inverse[(rows[i], rows[j])]);
    let of = Mat::from_fn(rows.len(), n, |i, j| weights[(rows[i], j)]);
    let llt = own.llt(Side::Lower).ok()?;
    let solved = llt.solve(&of);
    let mut cost = 0.0;
    for j in 0..n {
        cost += (0..rows.len())
            .map(|i| of[(i, j)] * solved[(i, j)])
            .sum::<f64>();
    }
    let of = Mat::from_fn(rows.len(), inverse.ncols(), |i, j| inverse[(rows[i], j)]);
    Some((cost.max(0.0), solved, llt.solve(&of)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::oracle::Numbers;

    fn numbers(rows: usize, columns: usize, seed: u64) -> Mat<f64> {
        let all = Numbers::new(seed).take(rows * columns);
        Mat::from_fn(rows, columns, |i, j| all[i * columns + j])
    }

    /// What is left of W^T x for inputs of Gram matrix H when only `kept` rows may be used.
    fn lost(weights: &Mat<f64>, hessian: &Mat<f64>, kept: &[usize]) -> f64 {
        let k = kept.len();
        let own = Mat::from_fn(k, k, |i, j| hessian[(kept[i], kept[j])]);
        let image = hessian * weights;
        let to = Mat::from_fn(k, weights.ncols(), |i, j| image[(kept[i], j)]);
        let solved = own.llt(Side::Lower).unwrap().solve(&to);
        let dot = |a: &Mat<f64>, b: &Mat<f64>| -> f64 {
            let of = |j: usize| (0..a.nrows()).map(|i| a[(i, j)] * b[(i, j)]).sum::<f64>();
            (0..a.ncols()).map(of).sum()
        };
        (dot(weights, &image) - dot(&solved, &to)) / dot(weights, &image)
    }

    #[test]
    fn what_is_lost_is_what_least_squares_cannot_give_back() {
        let (p, n) = (12, 5);
        let x = numbers(40, p, 1);
        let hessian = x.transpose() * &x;
        let weights = numbers(p, n, 2);
        for (size, batch, most) in [(1, 2, 8), (3, 1, 3), (1, 1, 11)] {
            let groups: Vec<Range<usize>> =
                (0..p / size).map(|g| g * size..(g + 1) * size).collect();
            let steps =
                eliminate(weights.clone(), (&hessian, 1e-13), &groups, batch, most).unwrap();
            assert_eq!(steps.len(), most / batch);
            let mut gone = Vec::new();
            let mut before = 0.0;
            for step in &steps {
                gone.extend(step.gone.iter().flat_map(|&g| groups[g as usize].clone()));
                let kept: Vec<usize> = (0..p).filter(|i| !gone.contains(i)).collect();
                let expected = lost(&weights, &hessian, &kept);
                assert!(
                    (step.loss - expected).abs() < 1e-9,
                    "{} {expected}",
                    step.loss
                );
                assert!(step.loss >= before);
                before = step.loss;
            }
            // The first to go is the one that costs least.
            if batch == 1 {
                let without = |g: &Range<usize>| {
                    let kept: Vec<usize> = (0..p).filter(|i| !g.contains(i)).collect();
                    lost(&weights, &hessian, &kept)
                };
                let least = groups.iter().map(without).fold(f64::INFINITY, f64::min);
                assert!((steps[0].loss - least).abs() < 1e-9);
            }
        }
    }

    #[test]
    fn steps_are_edits_of_what_goes() {
        let step = |gone: &[u32], loss| Step {
            gone: gone.to_vec(),
            loss,
        };
        let mut cut = Cut {
            layer: 3,
            part: Part::FeedForward,
            of: 8,
            steps: vec![step(&[7, 2], 0.1), step(&[3, 0], 0.2)],
        };
        assert!(cut.is_sound());
        assert!(cut.edits(0).is_empty());
        let channels = |edits: Vec<Edit>| match &edits[..] {
            [Edit::Narrow(narrow)] => narrow.channels.clone(),
            _ => panic!("{edits:?}"),
        };
        assert_eq!(channels(cut.edits(1)), [[0, 2], [3, 7]]);
        assert_eq!(channels(cut.edits(2)), [[1, 2], [4, 7]]);
        assert_eq!((cut.left(0), cut.left(2), cut.loss(2)), (8, 4, 0.2));
        cut.part = Part::Attention;
        assert_eq!(cut.edits(1).len(), 2);
        cut.of = 4;
        assert!(!cut.is_sound());
    }
}
