//! What the paper compares sharing with: whole units that are removed by a measure of
//! their importance, as many parameters as sharing at a ratio would save.
//!
//! [`Ranking::magnitude`] goes by the size of a unit's weights, as LLM-Pruner's "l2" does;
//! [`Ranking::llm_pruner`] by what the loss owes to each of them (Ma, Fang, Wang:
//! "LLM-Pruner: On the Structural Pruning of Large Language Models", 2023, arXiv
//! 2305.11627). Both add up over all that belongs to a unit: its rows of q, k and v and its
//! columns of `attn_output`, which is the group that LLM-Pruner finds.
//!
//! All layers are compared with each other, as by LLM-Pruner's `--global_pruning`: a layer
//! of three KV groups cannot lose a tenth of them.

use std::collections::{BTreeMap, BTreeSet};

use headshare_format::TensorInfo;
use headshare_runtime::quants::QuantError;

use crate::convert::UNKNOWN_DIGEST;
use crate::convert::variant::Limits;
use crate::engine::weights::dequantized;
use crate::input::ModelFile;
use crate::matching::{MatchError, aliases_for};
use crate::model::{AttentionLayer, AttentionMap, Part, UnitId};
pub use crate::plan::Baseline;
use crate::plan::{Choice, ChosenBy, Edit, Plan, Removed};

/// Layers at the beginning, and at the end, that LLM-Pruner leaves alone (the defaults of
/// its `--block_attention_layer_start` and `_end`, for 32 layers).
const SPARED: (u32, u32) = (3, 1);

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
    /// A weight, or what it is multiplied by, is infinite or no number.
    #[error("the {what} of {name} are not finite numbers")]
    NotFinite {
        /// The tensor.
        name: String,
        /// Weights or gradients.
        what: &'static str,
    },
    /// There is no such tensor.
    #[error("there is no {name}")]
    Missing {
        /// Its name.
        name: String,
    },
}

/// What becomes of the units that are chosen.
#[derive(Debug, Clone, Copy)]
pub enum Way<'a> {
    /// They are dropped, as far as that is possible.
    Drop(Limits<'a>),
    /// They stay and do nothing: any can, alone.
    Silence,
}

/// What a unit weighs.
#[derive(Debug, Clone, Copy, Default)]
struct Weight {
    /// What it counts.
    importance: f64,
    /// Its parameters in q, k and v.
    rows: u64,
    /// Those in `attn_output`.
    columns: u64,
}

impl Weight {
    fn parameters(&self) -> f64 {
        (self.rows + self.columns) as f64
    }
}

/// The units of a model by what they count.
#[derive(Debug, Clone)]
pub struct Ranking {
    by: Baseline,
    weights: BTreeMap<UnitId, Weight>,
    /// Layers that lose units only after all others have.
    spared: BTreeSet<u32>,
}

impl Ranking {
    /// By the sums of squares of the units' weights.
    ///
    /// # Errors
    /// When weights cannot be read or are no numbers.
    pub fn magnitude(source: &ModelFile, map: &AttentionMap) -> Result<Self, BaselineError> {
        let numbers = &mut |index: usize, info: &TensorInfo| {
            let values = dequantized(source, index).map_err(|error| BaselineError::Weights {
                name: info.name.clone(),
                source: error,
            })?;
            finite(values, info, "weights")
        };
        Ok(Self {
            by: Baseline::Magnitude,
            weights: weigh(source, map, numbers, |v| v * v)?,
            spared: BTreeSet::new(),
        })
    }

    /// By the sums of |w dL/dw| over the units' weights w, of a loss L: the first-order
    /// Taylor importance of single weights, added up (LLM-Pruner's `param_first` and
    /// `sum`). `products` gives w dL/dw of a tensor, row after row, if it is known.
    ///
    /// The first three layers and the last one, which LLM-Pruner leaves alone, lose units
    /// only if the others have too few.
    ///
    /// # Errors
    /// When products are not known or are no numbers.
    pub fn llm_pruner(
        source: &ModelFile,
        map: &AttentionMap,
        products: &mut dyn FnMut(&str) -> Option<Vec<f32>>,
    ) -> Result<Self, BaselineError> {
        let numbers = &mut |_: usize, info: &TensorInfo| {
            let name = || info.name.clone();
            let values = products(&info.name);
            let values = values.ok_or_else(|| BaselineError::Missing { name: name() })?;
            finite(values, info, "gradients")
        };
        let end = map.layers.len() as u32 + map.headless_layers;
        let spared = |layer: &u32| *layer < SPARED.0 || *layer + SPARED.1 >= end;
        Ok(Self {
            by: Baseline::LlmPruner,
            weights: weigh(source, map, numbers, f64::abs)?,
            spared: map.layers.iter().map(|l| l.layer).filter(spared).collect(),
        })
    }

    /// What each unit counts.
    pub fn importances(&self) -> BTreeMap<UnitId, f64> {
        let weights = self.weights.iter();
        weights.map(|(unit, of)| (*unit, of.importance)).collect()
    }

    /// The plan that removes the units that count least, as many parameters of attention as
    /// sharing `ratio` of the units would save; its source's digest is not known yet.
    ///
    /// # Errors
    /// [`BaselineError::Ratio`].
    pub fn plan(&self, ratio: f64, way: Way<'_>) -> Result<Plan, BaselineError> {
        let units = self.weights.len();
        let count = aliases_for(ratio, units)?;
        let rows: u64 = self.weights.values().map(|w| w.rows).sum();
        // Units of different sizes share in no order that is known here.
        let goal = rows as f64 * count as f64 / units.max(1) as f64;
        let edit = |unit: UnitId| {
            let removed = Removed {
                layer: unit.layer,
                unit: unit.unit,
                score: Some(-self.weights[&unit].importance),
            };
            match way {
                Way::Drop(_) => Edit::Drop(removed),
                Way::Silence => Edit::Silence(removed),
            }
        };
        let choice = Choice {
            by: ChosenBy::Baseline(self.by),
            ratio: Some(ratio),
            units: Some(units),
            ..Choice::default()
        };
        let edits = self.least(goal, way).into_iter().map(edit).collect();
        Ok(Plan::new(UNKNOWN_DIGEST.to_owned(), choice, edits))
    }

    /// The units that count least, until `goal` parameters are gone, as closely as whole
    /// units allow.
    fn least(&self, goal: f64, way: Way<'_>) -> BTreeSet<UnitId> {
        let together = |layer: u32| match way {
            Way::Drop(limits) => limits.together(layer).max(1),
            Way::Silence => 1,
        };
        let mut groups: BTreeMap<(u32, u32), Vec<UnitId>> = BTreeMap::new();
        for unit in self.weights.keys() {
            let group = (unit.layer, unit.unit / together(unit.layer));
            groups.entry(group).or_default().push(*unit);
        }
        let importance = |group: &[UnitId]| {
            let sum: f64 = group.iter().map(|u| self.weights[u].importance).sum();
            sum / group.len() as f64
        };
        let mut groups: Vec<(bool, f64, Vec<UnitId>)> = (groups.into_iter())
            .filter(|((layer, _), group)| group.len() == together(*layer) as usize)
            .map(|((layer, _), group)| (self.spared.contains(&layer), importance(&group), group))
            .collect();
        groups.sort_by(|a, b| (a.0.cmp(&b.0)).then(a.1.total_cmp(&b.1)));
        let mut removed = BTreeSet::new();
        let mut gone = 0.0;
        for (_, _, group) in groups {
            let size: f64 = group.iter().map(|u| self.weights[u].parameters()).sum();
            if gone + size / 2.0 > goal {
                break;
            }
            let layer = group[0].layer;
            let is_left = |unit: &&UnitId| unit.layer == layer && !removed.contains(*unit);
            let left = self.weights.keys().filter(is_left).count();
            let must_stay = match way {
                Way::Drop(limits) => limits.must_keep_one(layer),
                Way::Silence => false,
            };
            if left == group.len() && must_stay {
                continue;
            }
            gone += size;
            removed.extend(group);
        }
        removed
    }
}

/// What a tensor, by its index, is measured by: numbers, row after row.
type Numbers<'n> = dyn FnMut(usize, &TensorInfo) -> Result<Vec<f32>, BaselineError> + 'n;

/// Adds up `measure` of the `numbers` of each tensor, by unit.
fn weigh(
    source: &ModelFile,
    map: &AttentionMap,
    numbers: &mut Numbers<'_>,
    measure: fn(f64) -> f64,
) -> Result<BTreeMap<UnitId, Weight>, BaselineError> {
    let sum = |values: &[f32]| values.iter().map(|&v| measure(f64::from(v))).sum::<f64>();
    let tensors = source.gguf.tensors();
    let mut weights: BTreeMap<UnitId, Weight> = BTreeMap::new();
    for layer in &map.layers {
        for part in Part::ALL {
            let tensor = layer.tensor(part);
            let values = numbers(tensor.tensor, &tensors[tensor.tensor])?;
            let row = tensor.row_elems as usize;
            for unit in layer.units() {
                let rows = tensor.range(layer.heads(part, unit.unit));
                let first = (rows.offset / tensor.row_bytes) as usize;
                let count = (rows.len / tensor.row_bytes) as usize;
                let of_unit = &values[first * row..(first + count) * row];
                let weight = weights.entry(unit).or_default();
                weight.importance += sum(of_unit);
                weight.rows += of_unit.len() as u64;
            }
        }
        let index = output(source, layer)?;
        let columns = tensors[index].row_elems() as usize;
        let width = (columns / layer.n_head_kv.max(1) as usize).max(1);
        for row in numbers(index, &tensors[index])?.chunks(columns) {
            for (unit, of_unit) in layer.units().zip(row.chunks(width)) {
                let weight = weights.entry(unit).or_default();
                weight.importance += sum(of_unit);
                weight.columns += of_unit.len() as u64;
            }
        }
    }
    Ok(weights)
}

/// The tensor that a layer's heads are put together by.
fn output(source: &ModelFile, layer: &AttentionLayer) -> Result<usize, BaselineError> {
    let name = format!("blk.{}.attn_output.weight", layer.layer);
    let index = source.gguf.tensor_index(&name);
    index.ok_or(BaselineError::Missing { name })
}

/// The tensors that units of `map` have weights in, by name.
///
/// # Errors
/// When a layer has no `attn_output`.
pub fn tensors_of_units(
    source: &ModelFile,
    map: &AttentionMap,
) -> Result<BTreeSet<String>, BaselineError> {
    let mut names = BTreeSet::new();
    let name = |index: usize| source.gguf.tensors()[index].name.clone();
    for layer in &map.layers {
        names.extend(Part::ALL.map(|part| name(layer.tensor(part).tensor)));
        names.insert(name(output(source, layer)?));
    }
    Ok(names)
}

fn finite(
    values: Vec<f32>,
    info: &TensorInfo,
    what: &'static str,
) -> Result<Vec<f32>, BaselineError> {
    match values.iter().all(|v| v.is_finite()) {
        true => Ok(values),
        false => Err(BaselineError::NotFinite {
            name: info.name.clone(),
            what,
        }),
    }
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
        let ranking = Ranking::magnitude(&source, &map).unwrap();
        let of = |ratio| ranking.plan(ratio, Way::Drop(limits));
        assert!(of(0.0).unwrap().edits.is_empty());
        assert!(matches!(of(1.5), Err(BaselineError::Ratio(_))));
        let half = of(0.5).unwrap();
        let weights = &ranking.weights;
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
        let gone: f64 = dropped.iter().map(|u| weights[u].parameters()).sum();
        let goal = (rows * embedding * (weights.len() as u64).div_ceil(2)) as f64;
        let unit = own.parameters();
        assert!((gone - goal).abs() * 2.0 <= unit, "{gone} {goal} {unit}");
        // None that stays is smaller than one that goes, but where one must be left.
        let most = dropped
            .iter()
            .map(|u| weights[u].importance)
            .fold(0.0, f64::max);
        for (unit, weight) in weights {
            let alone = (map.units().iter())
                .all(|u| u == unit || u.layer != unit.layer || dropped.contains(u));
            assert!(dropped.contains(unit) || alone || weight.importance >= most);
        }
        assert_eq!(String::from(half.choice.by), "magnitude");
    }

    #[test]
    fn units_go_by_what_their_weights_count() {
        let (_folder, source) = opened("tiny-gqa");
        let map = AttentionMap::of(&source.gguf).unwrap();
        let names = tensors_of_units(&source, &map).unwrap();
        assert_eq!(names.len(), 4 * map.layers.len());
        // Products as large as a layer's number says, from last to first, and in the
        // columns of unit 1 ten times as large.
        let end = map.layers.len() as u32;
        let mut products = |name: &str| {
            assert!(names.contains(name));
            let info = source.gguf.tensor(name).unwrap();
            let layer: u32 = name.split('.').nth(1)?.parse().ok()?;
            let is_output = name.contains("attn_output");
            let mut values = Vec::new();
            for _ in 0..info.rows() {
                for i in 0..info.row_elems() {
                    let is_other = is_output && i >= info.row_elems() / 2;
                    let sign = if i % 2 == 0 { -1.0 } else { 1.0 };
                    values.push(sign * (end - layer) as f32 * if is_other { 10.0 } else { 1.0 });
                }
            }
            Some(values)
        };
        let ranking = Ranking::llm_pruner(&source, &map, &mut products).unwrap();
        let importances = ranking.importances();
        let of = |layer, unit| importances[&UnitId { layer, unit }];
        let weight = ranking.weights[&UnitId { layer: 0, unit: 0 }];
        assert_eq!(of(0, 0), f64::from(end) * weight.parameters());
        let other = weight.rows as f64 + 10.0 * weight.columns as f64;
        assert_eq!(of(1, 1), f64::from(end - 1) * other);
        // Without layers in between, the first and the last ones have to do.
        let plan = ranking.plan(1.0, Way::Silence).unwrap();
        assert!(plan.drops().next().is_none());
        let silent: Vec<UnitId> = plan.silences().map(Removed::id).collect();
        let goal = map.units().len() as f64 * weight.rows as f64;
        let gone = silent.len() as f64 * weight.parameters();
        assert!((gone - goal).abs() * 2.0 <= weight.parameters());
        let one = ranking.plan(0.2, Way::Silence).unwrap();
        let first = one.silences().next().unwrap();
        let (layer, score) = (first.layer, first.score.unwrap());
        assert_eq!(score, -of(layer, first.unit));
        assert_eq!(String::from(one.choice.by), "llm-pruner");
        // What is not known is an error.
        let error = Ranking::llm_pruner(&source, &map, &mut |_| None).unwrap_err();
        assert!(matches!(error, BaselineError::Missing { .. }));
        let mut broken = |name: &str| {
            let info = source.gguf.tensor(name)?;
            Some(vec![f32::NAN; (info.rows() * info.row_elems()) as usize])
        };
        let error = Ranking::llm_pruner(&source, &map, &mut broken).unwrap_err();
        assert!(error.to_string().contains("gradients of blk.0."), "{error}");
    }

    #[test]
    fn the_first_and_the_last_layers_are_spared() {
        let spec = ModelSpec {
            n_layer: 6,
            ..ModelSpec::preset("tiny-gqa").unwrap()
        };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        spec.write(&path).unwrap();
        let source = ModelFile::open(&path).unwrap();
        let map = AttentionMap::of(&source.gguf).unwrap();
        let mut ones = |name: &str| {
            let info = source.gguf.tensor(name)?;
            Some(vec![1.0; (info.rows() * info.row_elems()) as usize])
        };
        let ranking = Ranking::llm_pruner(&source, &map, &mut ones).unwrap();
        let layers = |ratio| -> BTreeSet<u32> {
            let plan = ranking.plan(ratio, Way::Silence).unwrap();
            plan.silences().map(|unit| unit.layer).collect()
        };
        assert_eq!(layers(0.4), [3, 4].into());
        assert!(layers(1.0).contains(&0));
    }
}
