//! What can become of a model, group by group: tensors whose rows and columns go together,
//! those of two layers of which one can use the other's units, or a tensor alone; each with
//! all that its types, its cuts and its sharing allow.

mod choices;
mod pair;

use std::collections::{BTreeMap, BTreeSet};

use headshare_format::{GgmlType, TensorInfo};

pub use choices::Counts;
use choices::{Choice, Measured, pruned};
use pair::Pair;

use super::cuts::{Cut, Part};
use super::error::FitError;
use super::moves::{Movable, in_file};
use super::select::Alternatives;
use super::sharing::{self, Sharing};
use super::statistics::Statistics;
use crate::convert::equal_tensors;
use crate::convert::variant::Variant;
use crate::input::ModelFile;
use crate::model::{AttentionMap, Part as HeadPart};
use crate::plan::Edit;

/// What could become of some tensors.
#[derive(Debug, Clone, PartialEq)]
pub struct Group<'a> {
    /// What else than their types can change, step by step.
    more: More<'a>,
    /// Bytes that the tensors take in the source.
    now: u64,
    /// As it is, and everything that costs less than all that is smaller.
    choices: Vec<Choice<'a>>,
}

/// What can change of tensors beside their types.
#[derive(Debug, Clone, PartialEq)]
enum More<'a> {
    /// Nothing.
    Nothing,
    /// Units or channels of their layer go, of which each that stays counts as so many bytes.
    Cut(&'a Cut, u64),
    /// Units of one of their layers use those of the other.
    Share(Sharing),
}

/// Units and channels that are no longer there by themselves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Changed {
    /// Units that go.
    pub dropped: u64,
    /// Units that use another unit's weights.
    pub shared: u64,
    /// Feed-forward channels that go.
    pub channels: u64,
}

/// What becomes of a model.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Changes<'a> {
    /// The types of the tensors that could have others, by name.
    pub types: BTreeMap<&'a str, GgmlType>,
    /// The units and channels that go, and the units that share.
    pub edits: Vec<Edit>,
    /// How many these are.
    pub changed: Changed,
}

/// The groups of `source`, by what was measured of `movable`.
///
/// # Errors
/// When a move was not measured.
pub fn groups<'a>(
    source: &ModelFile,
    movable: &'a [Movable],
    statistics: &'a Statistics,
    counts: Counts,
) -> Result<Vec<Group<'a>>, FitError> {
    let of = Measured {
        source,
        counts,
        movable: movable.iter().map(|m| (m.name.as_str(), m)).collect(),
        statistics,
    };
    let mut all = Vec::new();
    let mut grouped = BTreeSet::new();
    // What is there more than once is stored once, if all of it gets the same.
    for class in equal_tensors(&Variant::unchanged(source)) {
        let tensors: Vec<&TensorInfo> = (class.iter())
            .map(|&tensor| &source.gguf.tensors()[tensor])
            .collect();
        grouped.extend(tensors.iter().map(|info| info.name.as_str()));
        all.push(of_equal(&of, &tensors)?);
    }
    for cut in &statistics.cuts {
        if cut
            .tensors()
            .iter()
            .any(|name| grouped.contains(name.as_str()))
        {
            continue;
        }
        if let Some((tensors, choices)) = of.cut(cut)? {
            grouped.extend(tensors.iter().map(|info| info.name.as_str()));
            let more = More::Cut(cut, of.unit_cache(cut.part));
            all.push(group(source, more, &tensors, choices));
        }
    }
    let map = AttentionMap::of(&source.gguf).ok();
    let is_free = |layer: u32| {
        let of = map.as_ref().and_then(|map| map.layer(layer));
        let name = |part| of.map(|of| &*source.gguf.tensors()[of.tensor(part).tensor].name);
        let mut names = HeadPart::ALL.into_iter().filter_map(name);
        names.all(|name| !grouped.contains(name))
    };
    for sharing in sharing::pairs(&statistics.units, &is_free) {
        let Some(pair) = (map.as_ref()).and_then(|map| Pair::of(source, map, sharing)) else {
            continue;
        };
        let (tensors, choices) = (pair.tensors(), pair.choices(&of)?);
        let group = group(source, More::Share(pair.sharing), &tensors, choices);
        // Without sharing, tensors are freer by themselves.
        if group.choices.iter().any(|choice| choice.steps > 0) {
            grouped.extend(tensors.iter().map(|info| info.name.as_str()));
            all.push(group);
        }
    }
    for tensor in movable.iter().filter(|m| !grouped.contains(&*m.name)) {
        if let Some(info) = source.gguf.tensor(&tensor.name) {
            let choices = of.alone(tensor, info)?;
            all.push(group(source, More::Nothing, &[info], choices));
        }
    }
    Ok(all)
}

/// A group of `tensors`, which comes first as it is.
fn group<'a>(
    source: &ModelFile,
    more: More<'a>,
    tensors: &[&TensorInfo],
    choices: Vec<Choice<'a>>,
) -> Group<'a> {
    let bytes = tensors
        .iter()
        .map(|info| in_file(info.byte_len(), source))
        .sum();
    let as_it_is = Choice {
        bytes: bytes + more.cache(0),
        ..Choice::start(0, 0.0)
    };
    Group {
        more,
        now: bytes,
        choices: from(as_it_is, choices),
    }
}

/// `as_it_is`, and the `choices` that are smaller.
fn from<'a>(as_it_is: Choice<'a>, choices: Vec<Choice<'a>>) -> Vec<Choice<'a>> {
    let bytes = as_it_is.bytes;
    let smaller = choices.into_iter().filter(|c| c.bytes < bytes).collect();
    std::iter::once(as_it_is).chain(pruned(smaller)).collect()
}

/// A group of `tensors` that are byte-equal: as they are, they are stored once.
fn of_equal<'a>(of: &Measured<'a, '_>, tensors: &[&TensorInfo]) -> Result<Group<'a>, FitError> {
    let bytes = in_file(tensors[0].byte_len(), of.source);
    let as_they_are = Choice {
        bytes,
        ..Choice::start(0, 0.0)
    };
    Ok(Group {
        more: More::Nothing,
        now: bytes * tensors.len() as u64,
        choices: from(as_they_are, of.equal(tensors)?),
    })
}

impl More<'_> {
    /// Bytes that count with what stays after so many steps.
    fn cache(&self, steps: usize) -> u64 {
        match self {
            Self::Cut(cut, each) => u64::from(cut.left(steps)) * each,
            Self::Nothing | Self::Share(_) => 0,
        }
    }
}

impl<'a> Group<'a> {
    /// Of the bytes of an alternative, those of the KV cache.
    pub fn cache(&self, which: usize) -> u64 {
        self.more.cache(self.choices[which].steps)
    }

    /// Bytes that its tensors take in the source.
    pub fn now(&self) -> u64 {
        self.now
    }

    /// Bytes and predicted divergence of what could become of it, as it is first.
    pub fn alternatives(&self) -> Alternatives {
        self.choices.iter().map(|c| (c.bytes, c.cost)).collect()
    }

    /// Whether nothing goes or shares with this alternative.
    pub fn is_whole(&self, which: usize) -> bool {
        self.choices[which].steps == 0
    }

    /// Whether units share with this alternative.
    pub fn shares(&self, which: usize) -> bool {
        matches!(self.more, More::Share(_)) && !self.is_whole(which)
    }

    /// What this alternative makes of the model.
    fn change(&self, which: usize, changes: &mut Changes<'a>) {
        let Choice { types, steps, .. } = &self.choices[which];
        changes.types.extend(types);
        match &self.more {
            More::Nothing => {}
            More::Cut(cut, _) => {
                changes.edits.extend(cut.edits(*steps));
                let gone = match cut.part {
                    Part::Attention => &mut changes.changed.dropped,
                    Part::FeedForward => &mut changes.changed.channels,
                };
                *gone += u64::from(cut.of - cut.left(*steps));
            }
            More::Share(sharing) => {
                changes.edits.extend(sharing.edits(*steps));
                changes.changed.shared += *steps as u64;
            }
        }
    }
}

/// What the chosen alternatives of `groups` make of the model.
pub fn changes<'a>(groups: &[Group<'a>], which: &[usize]) -> Changes<'a> {
    let mut changes = Changes::default();
    for (group, &which) in groups.iter().zip(which) {
        group.change(which, &mut changes);
    }
    changes
}

#[cfg(test)]
mod tests {
    use headshare_format::PageSize;
    use headshare_testmodels::{ModelSpec, type_named as named};

    use super::*;
    use crate::convert::variant::{EMBEDDING, HEAD};
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
            units: Vec::new(),
            lacks_units: false,
        };
        let counts = Counts {
            page: PageSize::KIB_4,
            unit_cache: 0,
        };
        let groups = groups(&source, &movable, &statistics, counts).unwrap();
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
