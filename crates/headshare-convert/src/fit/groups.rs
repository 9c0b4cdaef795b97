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
            of_types.extend(pairs(tensor, statistics));
        }
        all.push(group(source, None, &[info], of_types));
    }
    Ok(all)
}

/// The bytes of the smallest file that the moves of `movable` make of `source`, but for what
/// the header says of them.
///
/// # Errors
/// Never where `movable` is what [`moves`](super::moves::movable) found.
pub fn smallest(source: &ModelFile, movable: &[Movable]) -> Result<u64, FitError> {
    let statistics = Statistics::of_nothing(source, movable);
    let saved = groups(source, movable, &statistics)?
        .iter()
        .map(|group| {
            let bytes = || group.choices.iter().map(|choice| choice.bytes);
            group.choices[0].bytes - bytes().min().unwrap_or_default()
        })
        .sum::<u64>();
    Ok(source.len() - saved)
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
fn pairs<'a>(tensor: &'a Movable, statistics: &Statistics) -> Vec<Choice<'a>> {
    let of = |role: usize, name: &'a str| -> Vec<Choice<'a>> {
        let moves = tensor.moves.iter().filter_map(|m| {
            Some(Choice {
                bytes: m.bytes,
                cost: statistics.apart(tensor, m.to)?[role],
                types: BTreeMap::from([(name, m.to)]),
                steps: 0,
            })
        });
        moves.collect()
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

#[cfg(test)]
mod tests {
    use headshare_testmodels::{ModelSpec, type_named as named};

    use super::*;
    use crate::fit::moves;
    use crate::fit::statistics::{OfTensor, OfType};

    const TYPES: [&str; 4] = ["q8_0", "q5_0", "q4_0", "q2_0"];

    /// Errors of outputs, of rows encoded with them, and of rows alone, for [`TYPES`].
    const ERRORS: [[f64; 3]; 4] = [
        [1e-5, 3e-5, 2e-5],
        [2e-4, 4e-3, 3e-3],
        [7e-4, 1.5e-2, 1.2e-2],
        [1e-2, 3e-1, 2e-1],
    ];

    /// What may become of the token embedding of a model, with the types of each alternative,
    /// where these are the table's and the head's parts of the divergence.
    fn alternatives(spec: &ModelSpec, of: Option<[f64; 2]>) -> (Vec<(u64, f64)>, Vec<Vec<String>>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        spec.write(&path).unwrap();
        let source = ModelFile::open_plain(&path).unwrap();
        let types = moves::types(Some(&TYPES.map(str::to_owned))).unwrap();
        let mut movable = moves::movable(&source, &types).unwrap();
        movable.retain(|m| m.name == EMBEDDING);
        let of_type = |(name, [outputs, rows, alone]): (&str, [f64; 3])| OfType {
            name: name.to_owned(),
            rounded: 2.0 * outputs,
            encoded: outputs,
            of_table: Some([2.0 * rows, rows]),
            alone: Some(alone),
        };
        let statistics = Statistics {
            version: 1,
            source: String::new(),
            text: String::new(),
            windows: 1,
            window: 1,
            tensors: vec![OfTensor {
                name: EMBEDDING.to_owned(),
                probed: "q4_0".to_owned(),
                divergence: of.map_or(0.1, |of| of.iter().sum()),
                of_table: of.map(|of| of[0]),
                of_head: of.map(|of| of[1]),
                estimated: false,
                types: TYPES.into_iter().zip(ERRORS).map(of_type).collect(),
            }],
            cuts: Vec::new(),
        };
        let groups = groups(&source, &movable, &statistics).unwrap();
        let [group] = &groups[..] else {
            panic!("one tensor");
        };
        let said = |(name, to): (&&str, &GgmlType)| format!("{name} {to}");
        let choices = group.choices.iter();
        let types = choices
            .map(|c| c.types.iter().map(said).collect())
            .collect();
        (group.alternatives(), types)
    }

    fn spec(architecture: &str, tied_output: bool) -> ModelSpec {
        ModelSpec {
            tied_output,
            weight_type: named("f16").unwrap(),
            ..ModelSpec::preset(architecture).unwrap()
        }
    }

    #[test]
    fn a_tied_head_and_its_table_have_all_pairs_of_types() {
        let spec = spec("tiny-gqa", true);
        let elements = u64::from(spec.n_vocab) * u64::from(spec.n_embd);
        let bytes = |name: &str| {
            let of = named(name).unwrap();
            (elements / of.block_elems() * of.block_bytes()).next_multiple_of(32)
        };
        // At the larger of two types, both together take fewer bytes than apart: that costs
        // less, unless the rows count that are encoded better by themselves.
        for ([table, head], is_apart) in [
            ([0.09, 1e-7], true),
            ([1e-7, 0.09], false),
            ([0.05, 0.04], false),
        ] {
            let (found, types) = alternatives(&spec, Some([table, head]));
            // Everything that there is, by the errors of q4_0.
            let [outputs, rows, _] = ERRORS[2].map(|of| 2.0 * of);
            let mut all = Vec::new();
            for (i, name) in TYPES.into_iter().enumerate() {
                let [o, r, _] = ERRORS[i];
                all.push((bytes(name), table / rows * r + head / outputs * o));
            }
            let mut apart = TYPES.map(bytes).to_vec();
            apart.push(bytes("f16"));
            let cost = |part: f64, of: f64, i: usize, role: usize| {
                ERRORS.get(i).map_or(0.0, |errors| part / of * errors[role])
            };
            for (i, of_table) in apart.iter().enumerate() {
                for (j, of_head) in apart.iter().enumerate() {
                    let both = cost(table, rows, i, 2) + cost(head, outputs, j, 0);
                    all.push((of_table + of_head, both));
                }
            }
            let is_best = |&(b, c): &(u64, f64)| {
                b < bytes("f16") && all.iter().all(|&(bytes, cost)| bytes > b || cost >= c)
            };
            let mut best: Vec<(u64, f64)> = all.iter().copied().filter(is_best).collect();
            best.sort_by_key(|of| std::cmp::Reverse(of.0));
            best.insert(0, (bytes("f16"), 0.0));
            assert_eq!(found.len(), best.len(), "{found:?} {best:?}");
            for (found, best) in found.iter().zip(&best) {
                assert_eq!(found.0, best.0);
                assert!(
                    (found.1 - best.1).abs() <= 1e-9 * best.1,
                    "{found:?} {best:?}"
                );
            }
            let is_pair = |of: &Vec<String>| of.len() == 2 && of[0].starts_with(HEAD);
            assert_eq!(types.iter().any(is_pair), is_apart, "{types:?}");
        }
    }

    #[test]
    fn a_head_that_cannot_be_untied_stays() {
        let always_tied = ModelSpec {
            arch: "gemma".to_owned(),
            ..spec("tiny-gqa", true)
        };
        for (spec, of) in [
            (spec("tiny-gqa", false), Some([0.1, 1e-7])),
            (always_tied, Some([0.1, 1e-7])),
            // What was measured before there was such a thing.
            (spec("tiny-gqa", true), None),
        ] {
            let (found, types) = alternatives(&spec, of);
            assert_eq!(found.len(), 1 + TYPES.len());
            assert!(types.iter().all(|of| of.len() <= 1), "{types:?}");
        }
    }
}
