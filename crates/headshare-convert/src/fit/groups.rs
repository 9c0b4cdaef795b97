//! What can become of a model, group by group: tensors whose rows and columns go together,
//! or a tensor alone; each with all that its types and its cuts allow.

use std::collections::{BTreeMap, BTreeSet};

use headshare_format::{GgmlType, TensorInfo};

use super::cuts::{Cut, Part};
use super::error::FitError;
use super::moves::{Movable, in_file};
use super::select::Alternatives;
use super::statistics::Statistics;
use crate::convert::variant::{EMBEDDING, HEAD, can_untie};
use crate::input::ModelFile;
use crate::plan::Edit;

/// Choices of a group that are kept, at most.
const CHOICES: usize = 64;

/// What could become of some tensors.
#[derive(Debug, Clone, PartialEq)]
pub struct Group<'a> {
    /// What goes from their layer, where anything can.
    cut: Option<&'a Cut>,
    /// As it is, and everything that costs less than all that is smaller.
    choices: Vec<Choice<'a>>,
}

/// What could become of a group.
#[derive(Debug, Clone, PartialEq)]
struct Choice<'a> {
    bytes: u64,
    cost: f64,
    /// The types of tensors that can have others, by name.
    types: BTreeMap<&'a str, GgmlType>,
    /// Steps of the cut that are taken.
    steps: usize,
}

/// What becomes of a model.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Changes<'a> {
    /// The types of the tensors that could have others, by name.
    pub types: BTreeMap<&'a str, GgmlType>,
    /// The units and channels that go.
    pub edits: Vec<Edit>,
}

/// The groups of `source`, by what was measured of `movable`.
///
/// # Errors
/// When a move was not measured.
pub fn groups<'a>(
    source: &ModelFile,
    movable: &'a [Movable],
    statistics: &'a Statistics,
) -> Result<Vec<Group<'a>>, FitError> {
    let by_name: BTreeMap<&str, &Movable> = movable.iter().map(|m| (m.name.as_str(), m)).collect();
    let info = |name: &str| source.gguf.tensor(name);
    let mut cut = BTreeSet::new();
    let mut all = Vec::new();
    for of in &statistics.cuts {
        let tensor = of.tensor();
        let rows = of.rows();
        let names: Vec<&String> = rows.iter().chain([&tensor]).collect();
        let tensors: Option<Vec<&TensorInfo>> = names.iter().map(|name| info(name)).collect();
        let (Some(tensors), Some(sensitivity)) = (tensors, statistics.sensitivity(&tensor)) else {
            continue;
        };
        let mut choices = Vec::new();
        for steps in 0..=of.steps.len() {
            let left = f64::from(of.left(steps)) / f64::from(of.of);
            let scaled = |elements: u64| (elements as f64 * left).round() as u64;
            let mut of_step = vec![Choice {
                bytes: 0,
                cost: sensitivity * of.loss(steps),
                types: BTreeMap::new(),
                steps,
            }];
            for info in &tensors {
                let shape = match info.name == tensor {
                    true => (scaled(info.row_elems()), info.rows()),
                    false => (info.row_elems(), scaled(info.rows())),
                };
                let of_types = types_of(source, info, &by_name, statistics, shape, left)?;
                of_step = pruned(together(&of_step, &of_types));
            }
            choices.extend(of_step);
        }
        cut.extend(names.into_iter().cloned());
        all.push(group(source, Some(of), &tensors, choices));
    }
    for tensor in movable.iter().filter(|m| !cut.contains(&m.name)) {
        let Some(info) = info(&tensor.name) else {
            continue;
        };
        let shape = (info.row_elems(), info.rows());
        let mut of_types = types_of(source, info, &by_name, statistics, shape, 1.0)?;
        if tensor.name == EMBEDDING && can_untie(&source.gguf).is_ok() {
            of_types.extend(pairs(source, info, tensor, statistics));
        }
        all.push(group(source, None, &[info], of_types));
    }
    Ok(all)
}

/// A group of `tensors`, which comes first as it is.
fn group<'a>(
    source: &ModelFile,
    cut: Option<&'a Cut>,
    tensors: &[&TensorInfo],
    choices: Vec<Choice<'a>>,
) -> Group<'a> {
    let bytes = tensors
        .iter()
        .map(|info| in_file(info.byte_len(), source))
        .sum();
    let as_it_is = Choice {
        bytes,
        cost: 0.0,
        types: BTreeMap::new(),
        steps: 0,
    };
    let smaller = choices.into_iter().filter(|c| c.bytes < bytes).collect();
    let choices = std::iter::once(as_it_is).chain(pruned(smaller)).collect();
    Group { cut, choices }
}

/// What could become of a tensor of this `shape` (elements of a row, and rows), of whose
/// errors the part `left` counts.
fn types_of<'a>(
    source: &ModelFile,
    info: &TensorInfo,
    movable: &BTreeMap<&str, &'a Movable>,
    statistics: &Statistics,
    (elements, rows): (u64, u64),
    left: f64,
) -> Result<Vec<Choice<'a>>, FitError> {
    let of = |to: GgmlType| Some(in_file(to.row_bytes(elements)? * rows, source));
    let choice = |bytes, cost, types| Choice {
        bytes,
        cost,
        types,
        steps: 0,
    };
    let mut all = Vec::new();
    let tensor = movable.get(info.name.as_str());
    if let Some(bytes) = of(info.ggml_type) {
        let types = tensor.map(|m| (m.name.as_str(), m.has));
        all.push(choice(bytes, 0.0, types.into_iter().collect()));
    }
    if let Some(tensor) = tensor {
        for m in &tensor.moves {
            let cost = statistics.cost(tensor, m.to)?;
            if let Some(bytes) = of(m.to) {
                let types = BTreeMap::from([(tensor.name.as_str(), m.to)]);
                all.push(choice(bytes, cost * left, types));
            }
        }
    }
    Ok(pruned(all))
}

/// What could become of a table of embeddings that is the output head, too, where each of
/// both has a type of its own.
fn pairs<'a>(
    source: &ModelFile,
    info: &TensorInfo,
    tensor: &'a Movable,
    statistics: &Statistics,
) -> Vec<Choice<'a>> {
    let moves = tensor.moves.iter().filter_map(|m| {
        let costs = statistics.apart(tensor, m.to)?;
        Some((m.to, m.bytes, costs))
    });
    let as_it_is = (tensor.has, in_file(info.byte_len(), source), [0.0; 2]);
    let each: Vec<_> = std::iter::once(as_it_is).chain(moves).collect();
    let of = |role: usize, name: &'a str| -> Vec<Choice<'a>> {
        let choice = |&(to, bytes, costs): &(GgmlType, u64, [f64; 2])| Choice {
            bytes,
            cost: costs[role],
            types: BTreeMap::from([(name, to)]),
            steps: 0,
        };
        each.iter().map(choice).collect()
    };
    together(&of(0, &tensor.name), &of(1, HEAD))
}

/// Each of `some` with each of `others`.
fn together<'a>(some: &[Choice<'a>], others: &[Choice<'a>]) -> Vec<Choice<'a>> {
    let with = |a: &Choice<'a>| {
        let both = |b: &Choice<'a>| Choice {
            bytes: a.bytes + b.bytes,
            cost: a.cost + b.cost,
            types: a
                .types
                .iter()
                .chain(&b.types)
                .map(|(n, t)| (*n, *t))
                .collect(),
            steps: a.steps.max(b.steps),
        };
        others.iter().map(both).collect::<Vec<_>>()
    };
    some.iter().flat_map(with).collect()
}

/// Those that cost less than all that are smaller, largest first; some of them where they
/// are very many.
fn pruned(mut choices: Vec<Choice<'_>>) -> Vec<Choice<'_>> {
    choices.sort_by(|a, b| a.bytes.cmp(&b.bytes).then(a.cost.total_cmp(&b.cost)));
    let mut least = f64::INFINITY;
    choices.retain(|choice| {
        let is_better = choice.cost < least;
        least = least.min(choice.cost);
        is_better
    });
    choices.reverse();
    let count = choices.len();
    if count > CHOICES {
        let last = count - 1;
        // Both ends, and what lies evenly between them.
        let kept: BTreeSet<usize> = (0..CHOICES).map(|i| i * last / (CHOICES - 1)).collect();
        let mut i = 0;
        choices.retain(|_| {
            i += 1;
            kept.contains(&(i - 1))
        });
    }
    choices
}

impl<'a> Group<'a> {
    /// Bytes and predicted divergence of what could become of it, as it is first.
    pub fn alternatives(&self) -> Alternatives {
        self.choices.iter().map(|c| (c.bytes, c.cost)).collect()
    }

    /// Whether nothing goes with this alternative but bits.
    pub fn is_whole(&self, which: usize) -> bool {
        self.choices[which].steps == 0
    }

    /// Of what units or channels go with this alternative, and how many; `None` where
    /// nothing can.
    pub fn gone(&self, which: usize) -> Option<(Part, u32)> {
        let cut = self.cut?;
        Some((cut.part, cut.of - cut.left(self.choices[which].steps)))
    }
}

/// What the chosen alternatives of `groups` make of the model.
pub fn changes<'a>(groups: &[Group<'a>], which: &[usize]) -> Changes<'a> {
    let mut changes = Changes::default();
    for (group, &which) in groups.iter().zip(which) {
        let choice = &group.choices[which];
        changes.types.extend(&choice.types);
        if let Some(cut) = group.cut {
            changes.edits.extend(cut.edits(choice.steps));
        }
    }
    changes
}
