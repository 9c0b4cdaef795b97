//! What the paper compares sharing with: whole units that are dropped by a measure of
//! their importance, as many parameters as sharing at a ratio would save.
//!
//! [`Baseline::Magnitude`] takes the units with the smallest weights: of q, k, v and the
//! columns of `attn_output` together, the sum of squares, as LLM-Pruner's "l2" does.

use std::collections::{BTreeMap, BTreeSet};

use headshare_runtime::quants::QuantError;

use crate::convert::UNKNOWN_DIGEST;
use crate::convert::variant::Limits;
use crate::engine::weights::dequantized;
use crate::input::ModelFile;
use crate::matching::{MatchError, aliases_for};
use crate::model::{AttentionLayer, AttentionMap, Part, UnitId};
pub use crate::plan::Baseline;
use crate::plan::{Choice, ChosenBy, Drop, Edit, Plan};

/// Why units cannot be chosen.
#[derive(Debug, thiserror::Error)]
pub enum BaselineError {
    /// The ratio is not a number from 0 to 1.
    #[error(transparent)]
    Ratio(#[from] MatchError),
    /// A tensor's weights cannot be read.
    #[error("{name}: {source}")]
    Weights {
        /// Its name.
        name: String,
        /// What went wrong.
        source: QuantError,
    },
    /// A weight is infinite or no number.
    #[error("the weights of {name} are not finite numbers")]
    NotFinite {
        /// The tensor.
        name: String,
    },
    /// There is no such tensor.
    #[error("there is no {name}")]
    Missing {
        /// Its name.
        name: String,
    },
}

/// What a unit weighs.
#[derive(Debug, Clone, Copy, Default)]
struct Weight {
    /// The sum of squares of its weights.
    squares: f64,
    /// Its parameters in q, k and v.
    rows: u64,
    /// Those in `attn_output`.
    columns: u64,
}

/// The plan that drops units by `baseline`, as many parameters of attention as sharing
/// `ratio` of the units would save; its source's digest is not known yet.
///
/// # Errors
/// [`BaselineError`].
pub fn plan(
    source: &ModelFile,
    map: &AttentionMap,
    limits: Limits<'_>,
    baseline: Baseline,
    ratio: f64,
) -> Result<Plan, BaselineError> {
    let weights = match baseline {
        Baseline::Magnitude => magnitudes(source, map)?,
    };
    let units = weights.len();
    let count = aliases_for(ratio, units)?;
    let rows: u64 = weights.values().map(|w| w.rows).sum();
    // Units of different sizes share in no order that is known here.
    let goal = rows as f64 * count as f64 / units.max(1) as f64;
    let dropped = smallest(&weights, goal, limits);
    let drop = |unit: &UnitId| {
        Edit::Drop(Drop {
            layer: unit.layer,
            unit: unit.unit,
            score: Some(-weights[unit].squares),
        })
    };
    let choice = Choice {
        by: ChosenBy::Baseline(baseline),
        ratio: Some(ratio),
        units: Some(units),
        ..Choice::default()
    };
    let edits = dropped.iter().map(drop).collect();
    Ok(Plan::new(UNKNOWN_DIGEST.to_owned(), choice, edits))
}

/// The units with the smallest weights, until `goal` parameters are gone, as closely as
/// whole units allow.
fn smallest(weights: &BTreeMap<UnitId, Weight>, goal: f64, limits: Limits<'_>) -> BTreeSet<UnitId> {
    let mut groups: BTreeMap<(u32, u32), Vec<UnitId>> = BTreeMap::new();
    for unit in weights.keys() {
        let together = limits.together(unit.layer).max(1);
        let group = groups.entry((unit.layer, unit.unit / together));
        group.or_default().push(*unit);
    }
    let whole = |(layer, _): &(u32, u32), group: &[UnitId]| {
        group.len() == limits.together(*layer).max(1) as usize
    };
    let mut groups: Vec<(f64, Vec<UnitId>)> = (groups.into_iter())
        .filter(|(place, group)| whole(place, group))
        .map(|(_, group)| {
            let squares: f64 = group.iter().map(|unit| weights[unit].squares).sum();
            (squares / group.len() as f64, group)
        })
        .collect();
    groups.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut dropped = BTreeSet::new();
    let mut gone = 0.0;
    for (_, group) in groups {
        let size: u64 = group
            .iter()
            .map(|u| weights[u].rows + weights[u].columns)
            .sum();
        let size = size as f64;
        if gone + size / 2.0 > goal {
            break;
        }
        let layer = group[0].layer;
        let left = (weights.keys())
            .filter(|unit| unit.layer == layer && !dropped.contains(*unit))
            .count();
        if left == group.len() && limits.must_keep_one(layer) {
            continue;
        }
        gone += size;
        dropped.extend(group);
    }
    dropped
}

/// The sums of squares of the units' weights.
fn magnitudes(
    source: &ModelFile,
    map: &AttentionMap,
) -> Result<BTreeMap<UnitId, Weight>, BaselineError> {
    let mut weights: BTreeMap<UnitId, Weight> = BTreeMap::new();
    for layer in &map.layers {
        for part in Part::ALL {
            let tensor = layer.tensor(part);
            let values = numbers(source, tensor.tensor)?;
            let row = tensor.row_elems as usize;
            for unit in layer.units() {
                let rows = tensor.range(layer.heads(part, unit.unit));
                let first = (rows.offset / tensor.row_bytes) as usize;
                let count = (rows.len / tensor.row_bytes) as usize;
                let of_unit = &values[first * row..(first + count) * row];
                let weight = weights.entry(unit).or_default();
                weight.squares += squares(of_unit);
                weight.rows += of_unit.len() as u64;
            }
        }
        add_output(source, layer, &mut weights)?;
    }
    Ok(weights)
}

/// Adds the columns of `attn_output`.
fn add_output(
    source: &ModelFile,
    layer: &AttentionLayer,
    weights: &mut BTreeMap<UnitId, Weight>,
) -> Result<(), BaselineError> {
    let name = format!("blk.{}.attn_output.weight", layer.layer);
    let index = source.gguf.tensor_index(&name);
    let index = index.ok_or(BaselineError::Missing { name })?;
    let columns = source.gguf.tensors()[index].row_elems() as usize;
    let width = (columns / layer.n_head_kv.max(1) as usize).max(1);
    for row in numbers(source, index)?.chunks(columns) {
        for (unit, of_unit) in layer.units().zip(row.chunks(width)) {
            let weight = weights.entry(unit).or_default();
            weight.squares += squares(of_unit);
            weight.columns += of_unit.len() as u64;
        }
    }
    Ok(())
}

fn numbers(source: &ModelFile, index: usize) -> Result<Vec<f32>, BaselineError> {
    let name = || source.gguf.tensors()[index].name.clone();
    let values = dequantized(source, index).map_err(|error| BaselineError::Weights {
        name: name(),
        source: error,
    })?;
    match values.iter().all(|v| v.is_finite()) {
        true => Ok(values),
        false => Err(BaselineError::NotFinite { name: name() }),
    }
}

fn squares(values: &[f32]) -> f64 {
    values.iter().map(|&v| f64::from(v) * f64::from(v)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use headshare_testmodels::ModelSpec;

    fn opened(preset: &str) -> (tempfile::TempDir, ModelFile) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        ModelSpec::preset(preset).unwrap().write(&path).unwrap();
        let source = ModelFile::open(&path).unwrap();
        (folder, source)
    }

    #[test]
    fn the_smallest_units_go_until_as_many_parameters_are_gone() {
        let (_folder, source) = opened("tiny-llama");
        let map = AttentionMap::of(&source.gguf).unwrap();
        let limits = Limits::of(&source, &map).unwrap();
        let of = |ratio| plan(&source, &map, limits, Baseline::Magnitude, ratio);
        assert!(of(0.0).unwrap().edits.is_empty());
        assert!(matches!(of(1.5), Err(BaselineError::Ratio(_))));
        let half = of(0.5).unwrap();
        let weights = magnitudes(&source, &map).unwrap();
        let dropped = half.dropped_units();
        // Every weight of a unit counts once.
        let layer = &map.layers[0];
        let own = weights[&layer.units().next().unwrap()];
        let embedding = layer.tensor(Part::Q).row_elems;
        let heads = u64::from(layer.heads_per_unit());
        let rows = heads * layer.key_length + layer.key_length + layer.value_length;
        assert_eq!(own.rows, rows * embedding);
        assert_eq!(own.columns, heads * layer.value_length * embedding);
        // As many parameters as sharing saves, to half of a unit.
        let gone: u64 = dropped
            .iter()
            .map(|u| weights[u].rows + weights[u].columns)
            .sum();
        let goal = rows * embedding * (weights.len() as u64).div_ceil(2);
        let unit = own.rows + own.columns;
        assert!(gone.abs_diff(goal) * 2 <= unit, "{gone} {goal} {unit}");
        // None that stays is smaller than one that goes, but where one must be left.
        let most = dropped
            .iter()
            .map(|u| weights[u].squares)
            .fold(0.0, f64::max);
        for (unit, weight) in &weights {
            let alone = (map.units().iter())
                .all(|u| u == unit || u.layer != unit.layer || dropped.contains(u));
            assert!(dropped.contains(unit) || alone || weight.squares >= most);
        }
        assert_eq!(String::from(half.choice.by), "magnitude");
    }
}
