//! Blocks that several matrices have in common: rows of one, the donor's, that
//! others use as well. Whatever becomes of them becomes of them everywhere, so
//! what they are fitted to is the sum over all their users.

use std::collections::BTreeMap;
use std::ops::Range;

use headshare_format::Gguf;
use headshare_runtime::calibrate::{CalibrateError, Calibrator, Graph, Pass};

use super::error::EngineError;
use super::normal::Sums;
use super::sites::Site;
use super::visit::{Seen, Visitor, Wants};
use crate::model::{AttentionMap, RowsRange};
use crate::plan::Plan;

/// WeightRows of a matrix.
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

/// Shared blocks in a graph, and what their users feed them.
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

/// WeightRows of a weight.
struct WeightRows {
    weight: usize,
    rows: Range<usize>,
    /// WeightRows of the whole weight.
    of: usize,
}

impl WeightRows {
    fn new(graph: &Graph, block: &Block) -> Result<Self, EngineError> {
        let name = &block.matrix;
        let unused = || EngineError::Internal(format!("llama.cpp does not use {name}"));
        let weight = graph.weight(name).ok_or_else(unused)?;
        Ok(Self {
            weight,
            rows: block.rows.clone(),
            of: graph.weights[weight].dims[1] as usize,
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

    /// The rows of `weight` that are another's.
    pub fn fixed(&self, weight: usize) -> Vec<Range<usize>> {
        let here = self.all.iter().filter(|link| link.user.weight == weight);
        here.map(|link| link.user.rows.clone()).collect()
    }

    /// The rows of `weight` that others use, and what those feed them, as far as
    /// that was gathered.
    pub fn donated(&self, weight: usize) -> Vec<(Range<usize>, Option<&Sums>)> {
        let mut all: Vec<(Range<usize>, Option<&Sums>)> = Vec::new();
        for Link { donor, .. } in self.all.iter().filter(|l| l.donor.weight == weight) {
            if all.iter().all(|(rows, _)| *rows != donor.rows) {
                let sums = self.gathered.get(&(weight, donor.rows.start));
                all.push((donor.rows.clone(), sums));
            }
        }
        all
    }
}

/// Adds up what users of shared blocks feed them, in a pass beforehand.
pub(super) struct Gatherer<'a>(pub &'a mut Links);

impl Visitor<EngineError> for Gatherer<'_> {
    fn wants(&mut self, site: &Site) -> Result<Wants, EngineError> {
        Ok(match self.0.fixed(site.weight).is_empty() {
            true => Wants::Nothing,
            false => Wants::Fit,
        })
    }

    fn visit(&mut self, site: &Site, seen: &Seen<'_>) -> Result<Option<Vec<u8>>, EngineError> {
        let Links { all, gathered } = &mut *self.0;
        for Link { user, donor } in all.iter().filter(|l| l.user.weight == site.weight) {
            let sums = seen.sums_to(user.rows.clone());
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
