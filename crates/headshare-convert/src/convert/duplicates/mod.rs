//! Exact duplicates: byte-equal tensors, head blocks, experts and runs of rows,
//! found by digest and confirmed by comparison. They cost nothing to share.

mod claimed;
mod ranges;
mod runs;

use std::collections::BTreeMap;

use headshare_format::layout::SharedRows;

use super::variant::Variant;
use crate::model::RowsRange;
use claimed::Claimed;
use ranges::equal_ranges;

/// What was found.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Duplicates {
    /// The rows to share, aliases ascending.
    pub shared: Vec<SharedRows>,
    /// Whole tensors among them.
    pub tensors: usize,
    /// Head blocks among them.
    pub blocks: usize,
    /// Single experts of 3-D tensors among them.
    pub experts: usize,
    /// Runs of rows elsewhere among them.
    pub runs: usize,
    /// Bytes of the aliases.
    pub bytes: u64,
}

impl Duplicates {
    /// These and others, of other rows.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.shared.extend(other.shared);
        self.shared.sort();
        Self {
            shared: self.shared,
            tensors: self.tensors + other.tensors,
            blocks: self.blocks + other.blocks,
            experts: self.experts + other.experts,
            runs: self.runs + other.runs,
            bytes: self.bytes + other.bytes,
        }
    }
}

/// Finds duplicates among all tensors, among `blocks`, among experts and among
/// rows. What overlaps `claimed`, ranges that are shared for another reason, is
/// left out.
pub fn find(variant: &Variant<'_>, blocks: &[RowsRange], claimed: &[RowsRange]) -> Duplicates {
    let mut claimed = Claimed::new(variant, claimed);
    let mut found = Duplicates::default();
    let mut take = |shared: Vec<SharedRows>, claimed: &mut Claimed| {
        claimed.add(shared.iter().map(alias));
        let count = shared.len();
        found.shared.extend(shared);
        count
    };
    let free = |all: Vec<RowsRange>, claimed: &Claimed| -> Vec<RowsRange> {
        all.into_iter()
            .filter(|range| claimed.is_free(range))
            .collect()
    };
    let whole = free(whole_tensors(variant), &claimed);
    let tensors = take(equal_ranges(variant, &whole), &mut claimed);
    let parts = free(blocks.to_vec(), &claimed);
    let blocks = take(equal_ranges(variant, &parts), &mut claimed);
    let slices = free(experts_of(variant), &claimed);
    let experts = take(equal_ranges(variant, &slices), &mut claimed);
    let runs = take(runs::equal_runs(variant, &claimed), &mut claimed);
    found.shared.sort();
    Duplicates {
        tensors,
        blocks,
        experts,
        runs,
        bytes: found.shared.iter().map(|s| s.len).sum(),
        shared: found.shared,
    }
}

/// Tensors of `variant` that are byte-equal: of each class those of no layer first, then layer by
/// layer.
pub(crate) fn equal_tensors(variant: &Variant<'_>) -> Vec<Vec<usize>> {
    let whole = whole_tensors(variant);
    let mut classes: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for shared in equal_ranges(variant, &whole) {
        let class = classes.entry(shared.donor).or_insert(vec![shared.donor]);
        class.push(shared.alias);
    }
    classes.into_values().collect()
}

fn whole_tensors(variant: &Variant<'_>) -> Vec<RowsRange> {
    let tensors = variant.gguf().tensors().iter().enumerate();
    let whole = tensors.map(|(tensor, info)| RowsRange {
        tensor,
        offset: 0,
        len: info.byte_len(),
    });
    whole.collect()
}

/// A matrix smaller than this, the smallest page, takes more to describe than it saves.
const SMALLEST: u64 = 4096;

/// The matrices of which 3-D tensors are made.
fn experts_of(variant: &Variant<'_>) -> Vec<RowsRange> {
    let tensors = variant.gguf().tensors().iter().enumerate();
    let stacked = tensors.filter(|(_, info)| info.dims.len() > 2);
    let slices = stacked.flat_map(|(tensor, info)| {
        let len = info.row_bytes() * info.dims[1];
        let count = match len {
            SMALLEST.. => info.byte_len() / len,
            _ => 0,
        };
        (0..count).map(move |i| RowsRange {
            tensor,
            offset: i * len,
            len,
        })
    });
    slices.collect()
}

/// The rows that `shared` gives up.
pub(super) fn alias(shared: &SharedRows) -> RowsRange {
    RowsRange {
        tensor: shared.alias,
        offset: shared.alias_offset,
        len: shared.len,
    }
}
