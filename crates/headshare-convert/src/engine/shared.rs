//! Blocks that several matrices have in common: rows of one, the donor's, that
//! others use as well. Whatever becomes of them becomes of them everywhere, so
//! what they are fitted to is the sum over all their users.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use headshare_format::Gguf;
use headshare_runtime::calibrate::{CalibrateError, Calibrator, Graph, Pass};

use super::error::EngineError;
use super::normal::Sums;
use super::role::Role;
use super::sites::{Site, Target};
use super::visit::{Seen, Visitor, Wants};
use crate::model::{AttentionMap, RowsRange};
use crate::plan::Plan;

/// Rows of a matrix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// The matrix's name.
    pub matrix: String,
    /// The rows.
    pub rows: Range<usize>,
}

/// A block, and the one whose data it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shared {
    /// Where the block is used once more.
    pub user: Block,
    /// Whose data it has.
    pub donor: Block,
}

/// `shared`, cut where one expert of a stacked tensor ends and the next one begins;
/// `rows` are those of an expert by the name of its tensor, where it is stacked.
pub fn by_expert(shared: Vec<Shared>, rows: &dyn Fn(&str) -> Option<usize>) -> Vec<Shared> {
    let to_border = |shared: &Shared, at: usize| {
        let each = rows(&shared.user.matrix)?;
        let left = |start: usize| each - (start + at) % each;
        Some(left(shared.user.rows.start).min(left(shared.donor.rows.start)))
    };
    let cut = |shared: Shared| cut(&shared, &|at| to_border(&shared, at));
    shared.into_iter().flat_map(cut).collect()
}

/// `shared`, cut where any donor's block begins or ends: two of these are then the same
/// rows or have none in common.
pub fn by_donor(shared: Vec<Shared>) -> Vec<Shared> {
    let mut borders: BTreeMap<String, BTreeSet<usize>> = BTreeMap::new();
    for Shared { donor, .. } in &shared {
        let of = borders.entry(donor.matrix.clone()).or_default();
        of.extend([donor.rows.start, donor.rows.end]);
    }
    let to_border = |donor: &Block, at: usize| {
        let here = donor.rows.start + at;
        let next = borders.get(&donor.matrix)?.range(here + 1..).next()?;
        Some(next - here)
    };
    let cut = |shared: Shared| cut(&shared, &|at| to_border(&shared.donor, at));
    shared.into_iter().flat_map(cut).collect()
}

/// `shared` in parts, which are as long as `to_border` says for where they begin; where
/// that says nothing, they go on to the end.
fn cut(shared: &Shared, to_border: &dyn Fn(usize) -> Option<usize>) -> Vec<Shared> {
    let (mut at, mut parts) = (0, Vec::new());
    let whole = shared.user.rows.len();
    while at < whole {
        let len = to_border(at).map_or(whole - at, |left| left.min(whole - at));
        let part = |block: &Block| Block {
            matrix: block.matrix.clone(),
            rows: block.rows.start + at..block.rows.start + at + len,
        };
        parts.push(Shared {
            user: part(&shared.user),
            donor: part(&shared.donor),
        });
        at += len;
    }
    parts
}

/// What `plan` shares in the model with the header `gguf`, whose heads `map` knows.
pub fn shared_by(plan: &Plan, map: &AttentionMap, gguf: &Gguf) -> Vec<Shared> {
    let block = |rows: RowsRange| {
        let info = &gguf.tensors()[rows.tensor];
        let row = |bytes: u64| (bytes / info.row_bytes()) as usize;
        Block {
            matrix: info.name.clone(),
            rows: row(rows.offset)..row(rows.offset + rows.len),
        }
    };
    plan.shared_rows(map)
        .map(|(user, donor)| Shared {
            user: block(user),
            donor: block(donor),
        })
        .collect()
}

/// Shared blocks in a graph, and what their users feed them. Donors' blocks are the
/// same rows or have none in common ([`by_donor`]).
#[derive(Default)]
pub(super) struct Links {
    all: Vec<Link>,
    /// The sums of all users, by donor: matrix and first row.
    gathered: BTreeMap<(usize, usize), Sums>,
}

/// A block of a weight and the one that it is a copy of.
struct Link {
    user: WeightRows,
    donor: WeightRows,
}

/// Rows of a weight.
struct WeightRows {
    weight: usize,
    rows: Range<usize>,
    /// Rows of the whole weight.
    of: usize,
}

impl WeightRows {
    fn new(graph: &Graph, block: &Block) -> Result<Self, EngineError> {
        let name = &block.matrix;
        let unused = || EngineError::Internal(format!("llama.cpp does not use {name}"));
        let weight = graph.weight(name).ok_or_else(unused)?;
        // The rows of several experts follow each other.
        let rows: u64 = graph.weights[weight].dims[1..].iter().product();
        Ok(Self {
            weight,
            rows: block.rows.clone(),
            of: rows as usize,
        })
    }

    /// Where it lies in the weight's `len` bytes.
    fn bytes(&self, len: usize) -> Range<usize> {
        let row = len / self.of;
        self.rows.start * row..self.rows.end * row
    }
}

impl Links {
    pub fn new(graph: &Graph, shared: &[Shared]) -> Result<Self, EngineError> {
        let link = |shared: &Shared| {
            Ok(Link {
                user: WeightRows::new(graph, &shared.user)?,
                donor: WeightRows::new(graph, &shared.donor)?,
            })
        };
        Ok(Self {
            all: shared
                .iter()
                .map(link)
                .collect::<Result<_, EngineError>>()?,
            gathered: BTreeMap::new(),
        })
    }

    /// Puts the donors' rows into their users' places.
    pub fn put(&self, model: &mut Calibrator) -> Result<(), CalibrateError> {
        for Link { user, donor } in &self.all {
            let from = model.weight(donor.weight)?;
            let rows = from[donor.bytes(from.len())].to_vec();
            let at = user.bytes(model.weight(user.weight)?.len()).start;
            model.write_weight(user.weight, at, &rows)?;
        }
        Ok(())
    }

    /// The same of those that have to do with `weight`, which was written to.
    pub fn follow(&self, pass: &mut Pass<'_>, weight: usize) -> Result<(), CalibrateError> {
        let ends = |link: &&Link| [link.user.weight, link.donor.weight].contains(&weight);
        for Link { user, donor } in self.all.iter().filter(ends) {
            let from = pass.weight(donor.weight)?;
            let rows = from[donor.bytes(from.len())].to_vec();
            let at = user.bytes(pass.weight(user.weight)?.len()).start;
            pass.write_weight(user.weight, at, &rows)?;
        }
        Ok(())
    }

    /// Whether any rows of `weight` are another's.
    fn has_fixed(&self, weight: usize) -> bool {
        self.all.iter().any(|link| link.user.weight == weight)
    }

    /// The rows of the `matrix` that are another's.
    pub fn fixed(&self, matrix: &Matrix) -> Vec<Range<usize>> {
        let rows = self.all.iter().map(|link| &link.user);
        rows.filter_map(|user| matrix.own(user)).collect()
    }

    /// The rows of the `matrix` that others use, and what those feed them, as far as
    /// that was gathered.
    pub fn donated(&self, matrix: &Matrix) -> Vec<(Range<usize>, Option<&Sums>)> {
        let mut all: Vec<(Range<usize>, Option<&Sums>)> = Vec::new();
        for Link { donor, .. } in &self.all {
            let Some(rows) = matrix.own(donor) else {
                continue;
            };
            if all.iter().all(|(other, _)| *other != rows) {
                let sums = self.gathered.get(&(donor.weight, donor.rows.start));
                all.push((rows, sums));
            }
        }
        all
    }
}

/// One matrix of a weight: of several experts each is one.
pub(super) struct Matrix {
    pub weight: usize,
    /// Its rows among those of the whole weight.
    pub rows: Range<usize>,
}

impl Matrix {
    /// That of `site`, or of its expert.
    pub fn of(site: &Site, expert: Option<usize>) -> Self {
        let first = expert.unwrap_or(0) * site.rows;
        Self {
            weight: site.weight,
            rows: first..first + site.rows,
        }
    }

    /// `rows`, counted from the matrix's first one, if they are its own.
    fn own(&self, rows: &WeightRows) -> Option<Range<usize>> {
        let inside = rows.weight == self.weight
            && self.rows.start <= rows.rows.start
            && rows.rows.end <= self.rows.end;
        inside.then(|| rows.rows.start - self.rows.start..rows.rows.end - self.rows.start)
    }
}

/// Adds up what users of shared blocks feed them, in a pass beforehand.
pub(super) struct Gatherer<'a>(pub &'a mut Links);

impl Visitor<EngineError> for Gatherer<'_> {
    fn wants(&mut self, site: &Site) -> Result<Wants, EngineError> {
        Ok(match self.0.has_fixed(site.weight) {
            false => Wants::Nothing,
            // The logits of all tokens are too many to be held against each other.
            true if site.role == Role::Head => Wants::Nothing,
            // What stands in for a target there is none that anybody aims at.
            true if matches!(site.target, Target::NoPlain { .. }) => Wants::Inputs,
            true => Wants::Fit,
        })
    }

    fn visit(&mut self, site: &Site, seen: &Seen<'_>) -> Result<Option<Vec<u8>>, EngineError> {
        let Links { all, gathered } = &mut *self.0;
        let matrix = Matrix::of(site, seen.expert());
        for Link { user, donor } in all.iter() {
            let Some(rows) = matrix.own(user) else {
                continue;
            };
            let sums = match seen.targets().is_empty() {
                true => seen.sums(),
                false => seen.sums_to(rows),
            };
            let key = (donor.weight, donor.rows.start);
            let sums = match gathered.get(&key) {
                Some(others) => others.plus(&sums),
                None => sums,
            };
            gathered.insert(key, sums);
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared(user: (&str, Range<usize>), donor: (&str, Range<usize>)) -> Shared {
        let block = |(matrix, rows): (&str, Range<usize>)| Block {
            matrix: matrix.to_owned(),
            rows,
        };
        Shared {
            user: block(user),
            donor: block(donor),
        }
    }

    #[test]
    fn donors_blocks_that_overlap_are_cut_where_others_begin_and_end() {
        let whole = shared(("b", 0..64), ("a", 0..64));
        let head = shared(("a", 48..64), ("a", 0..16));
        let run = shared(("c", 100..110), ("a", 10..20));
        let parts = by_donor(vec![whole, head, run]);
        let expected = [
            shared(("b", 0..10), ("a", 0..10)),
            shared(("b", 10..16), ("a", 10..16)),
            shared(("b", 16..20), ("a", 16..20)),
            shared(("b", 20..64), ("a", 20..64)),
            shared(("a", 48..58), ("a", 0..10)),
            shared(("a", 58..64), ("a", 10..16)),
            shared(("c", 100..106), ("a", 10..16)),
            shared(("c", 106..110), ("a", 16..20)),
        ];
        assert_eq!(parts, expected);
    }

    #[test]
    fn blocks_of_several_experts_are_cut_where_either_side_has_a_border() {
        let all = vec![shared(("x", 5..25), ("y", 0..20))];
        let parts = by_expert(all, &|_| Some(10));
        let starts: Vec<_> = parts
            .iter()
            .map(|s| (s.user.rows.start, s.donor.rows.start))
            .collect();
        assert_eq!(starts, [(5, 0), (10, 5), (15, 10), (20, 15)]);
    }
}
