//! What could become of a tensor, of several together, and of the tensors of a layer from
//! which something goes: bytes, and predicted costs.

use std::collections::{BTreeMap, BTreeSet};

use headshare_format::{GgmlType, PageSize, TensorInfo};

use crate::convert::variant::{EMBEDDING, HEAD, can_untie};
use crate::fit::cuts::{Cut, Part};
use crate::fit::error::FitError;
use crate::fit::moves::{Movable, in_file};
use crate::fit::select::{Alternatives, hull};
use crate::fit::statistics::Statistics;
use crate::input::ModelFile;

/// Choices of a group that are kept, at most.
const CHOICES: usize = 64;

/// What could become of a group.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Choice<'a> {
    pub bytes: u64,
    pub cost: f64,
    /// The types of tensors that can have others, by name.
    pub types: BTreeMap<&'a str, GgmlType>,
    /// Steps of what else changes.
    pub steps: usize,
    /// How many things change: types of tensors, and what goes or shares.
    pub changes: usize,
}

/// What counts as bytes beside those of tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// What is shared are whole pages of this size.
    pub page: PageSize,
    /// Bytes of the KV cache for each unit of attention, where memory is what they are to fit
    /// into; else 0.
    pub unit_cache: u64,
}

/// A model, and what was measured of it.
pub(super) struct Measured<'a, 's> {
    pub source: &'s ModelFile,
    pub counts: Counts,
    /// The tensors that could have other types, or lose columns, by name.
    pub movable: BTreeMap<&'a str, &'a Movable>,
    pub statistics: &'a Statistics,
}

impl<'a, 's> Measured<'a, 's> {
    /// Bytes that count for each unit or channel of this part of a layer, beside its weights.
    pub fn unit_cache(&self, part: Part) -> u64 {
        match part {
            Part::Attention => self.counts.unit_cache,
            Part::FeedForward => 0,
        }
    }

    /// The tensors that become smaller with `cut`, and what could become of them; `None` where
    /// what that costs is not known.
    #[allow(clippy::type_complexity, reason = "a pair that is taken apart at once")]
    pub fn cut(
        &self,
        cut: &Cut,
    ) -> Result<Option<(Vec<&'s TensorInfo>, Vec<Choice<'a>>)>, FitError> {
        let tensor = cut.tensor();
        let names = cut.tensors();
        let tensors: Option<Vec<&TensorInfo>> = names
            .iter()
            .map(|name| self.source.gguf.tensor(name))
            .collect();
        let (Some(tensors), Some(sensitivity)) = (tensors, self.statistics.sensitivity(&tensor))
        else {
            return Ok(None);
        };
        let mut choices = Vec::new();
        for steps in 0..=cut.steps.len() {
            let left = f64::from(cut.left(steps)) / f64::from(cut.of);
            let scaled = |elements: u64| (elements as f64 * left).round() as u64;
            let mut of_step = vec![Choice {
                bytes: u64::from(cut.left(steps)) * self.unit_cache(cut.part),
                ..Choice::start(steps, sensitivity * cut.loss(steps))
            }];
            for info in &tensors {
                let shape = match info.name == tensor {
                    true => (scaled(info.row_elems()), info.rows()),
                    false => (info.row_elems(), scaled(info.rows())),
                };
                // Channels go anywhere, so blocks of several columns are not left whole: they are
                // made anew, which is one of its moves.
                let stays = steps == 0
                    || cut.part != Part::FeedForward
                    || info.name != tensor
                    || info.ggml_type.block_elems() == 1;
                of_step = pruned(together(&of_step, &self.types(info, shape, left, stays)?));
            }
            choices.extend(of_step);
        }
        Ok(Some((tensors, choices)))
    }

    /// What could become of `tensor` by itself.
    pub fn alone(
        &self,
        tensor: &'a Movable,
        info: &TensorInfo,
    ) -> Result<Vec<Choice<'a>>, FitError> {
        let mut choices = self.types(info, (info.row_elems(), info.rows()), 1.0, true)?;
        if tensor.name == EMBEDDING && can_untie(&self.source.gguf).is_ok() {
            choices.extend(untied(tensor, self.statistics));
        }
        Ok(choices)
    }

    /// What could become of `tensors` that are byte-equal: the same for all of them, which is
    /// stored once. Only two of them, as an embedding and its head, can also differ.
    pub fn equal(&self, tensors: &[&TensorInfo]) -> Result<Vec<Choice<'a>>, FitError> {
        let shape = (tensors[0].row_elems(), tensors[0].rows());
        let mut same: Vec<Choice<'a>> = Vec::new();
        let known: Option<Vec<&'a Movable>> = (tensors.iter())
            .map(|info| self.movable.get(info.name.as_str()).copied())
            .collect();
        let Some(known) = known else {
            return Ok(same);
        };
        for m in &known[0].moves {
            let mut choice = Choice {
                bytes: m.bytes,
                changes: 1,
                ..Choice::start(0, 0.0)
            };
            for tensor in &known {
                choice.cost += self.statistics.cost(tensor, m.to)?;
                choice.types.insert(&tensor.name, m.to);
            }
            same.push(choice);
        }
        if let [one, other] = tensors {
            let [one, other] = [one, other].map(|info| self.types(info, shape, 1.0, true));
            same.extend(together(&one?, &other?));
        }
        Ok(pruned(same))
    }

    /// What could become of a tensor of this shape (elements of a row, and rows), of whose
    /// errors the part `left` counts; whether it may keep its type is what `stays` says.
    pub fn types(
        &self,
        info: &TensorInfo,
        (elements, rows): (u64, u64),
        left: f64,
        stays: bool,
    ) -> Result<Vec<Choice<'a>>, FitError> {
        let of = |to: GgmlType| Some(in_file(to.row_bytes(elements)? * rows, self.source));
        let choice = |bytes, cost, types, changes| Choice {
            bytes,
            cost,
            types,
            steps: 0,
            changes,
        };
        let mut all = Vec::new();
        let tensor = self.movable.get(info.name.as_str());
        if let Some(bytes) = of(info.ggml_type).filter(|_| stays) {
            let types = tensor.map(|m| (m.name.as_str(), m.has));
            all.push(choice(bytes, 0.0, types.into_iter().collect(), 0));
        }
        if let Some(tensor) = tensor {
            for m in &tensor.moves {
                let cost = self.statistics.cost(tensor, m.to)?;
                if let Some(bytes) = of(m.to) {
                    let types = BTreeMap::from([(tensor.name.as_str(), m.to)]);
                    all.push(choice(bytes, cost * left, types, 1));
                }
            }
        }
        Ok(pruned(all))
    }
}

/// What could become of a table of embeddings that is the output head, too, where each of
/// both has a type of its own.
fn untied<'a>(tensor: &'a Movable, statistics: &Statistics) -> Vec<Choice<'a>> {
    let of = |role: usize, name: &'a str| -> Vec<Choice<'a>> {
        let moves = tensor.moves.iter().filter_map(|m| {
            Some(Choice {
                bytes: m.bytes,
                cost: statistics.apart(tensor, m.to)?[role],
                types: BTreeMap::from([(name, m.to)]),
                steps: 0,
                changes: 1,
            })
        });
        moves.collect()
    };
    together(&of(0, &tensor.name), &of(1, HEAD))
}

/// Each of `some` with each of `others`.
pub(super) fn together<'a>(some: &[Choice<'a>], others: &[Choice<'a>]) -> Vec<Choice<'a>> {
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
            changes: a.changes + b.changes,
        };
        others.iter().map(both).collect::<Vec<_>>()
    };
    some.iter().flat_map(with).collect()
}

/// Those that cost less than all that are smaller, largest first. Where they are very many, these
/// are kept: those on the convex hull, those in which one thing changes, so that no single move is
/// lost, and some evenly between.
pub(super) fn pruned(mut choices: Vec<Choice<'_>>) -> Vec<Choice<'_>> {
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
        let points: Alternatives = choices.iter().map(|c| (c.bytes, c.cost)).collect();
        // Both ends are among those that lie evenly.
        let evenly = (0..CHOICES).map(|i| i * last / (CHOICES - 1));
        let kept: BTreeSet<usize> = evenly.chain(hull(&points)).collect();
        let mut i = 0;
        choices.retain(|choice| {
            i += 1;
            choice.changes <= 1 || kept.contains(&(i - 1))
        });
    }
    choices
}

impl Choice<'_> {
    /// Of no tensor yet, where so many steps are taken, at this cost.
    pub fn start(steps: usize, cost: f64) -> Self {
        Self {
            bytes: 0,
            cost,
            types: BTreeMap::new(),
            steps,
            changes: usize::from(steps > 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_very_many_choices_neither_hull_nor_single_moves_are_lost() {
        // The cost falls with the bytes, unevenly, and every 37th changes one thing only.
        let all: Vec<Choice<'_>> = (0..1000u64)
            .map(|i| Choice {
                bytes: 10_000 - 10 * i,
                cost: i as f64 + 30.0 * (i as f64 / 7.0).sin() + (i as f64).powi(2) / 500.0,
                changes: if i % 37 == 0 { 1 } else { 2 },
                ..Choice::start(0, 0.0)
            })
            .collect();
        let bytes = |of: &[Choice<'_>]| -> BTreeSet<u64> { of.iter().map(|c| c.bytes).collect() };
        let points = |of: &[Choice<'_>]| of.iter().map(|c| (c.bytes, c.cost)).collect();
        let best: Vec<Choice<'_>> = (all.iter())
            .filter(|c| (all.iter()).all(|o| o.bytes >= c.bytes || o.cost > c.cost))
            .cloned()
            .collect();
        let kept = pruned(all.clone());
        assert!(best.len() > 2 * CHOICES, "{}", best.len());
        assert!((CHOICES..3 * CHOICES / 2 + 40).contains(&kept.len()));
        assert!(kept.windows(2).all(|two| two[0].bytes > two[1].bytes));
        let kept_bytes = bytes(&kept);
        assert!(kept_bytes.is_subset(&bytes(&best)));
        let hull: Vec<usize> = hull(&points(&best));
        assert!(hull.iter().all(|&i| kept_bytes.contains(&best[i].bytes)));
        let single = best.iter().filter(|c| c.changes == 1);
        assert!(single.count() > 4);
        let mut single = best.iter().filter(|c| c.changes == 1);
        assert!(single.all(|c| kept_bytes.contains(&c.bytes)));
    }
}
