//! Exact duplicates: byte-equal tensors and byte-equal head blocks, found by
//! digest and confirmed by comparison. They cost nothing to share.

use std::collections::HashMap;

use headshare_format::layout::SharedRows;
use rayon::prelude::*;

use super::variant::Variant;
use crate::model::RowsRange;

/// What was found.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Duplicates {
    /// The rows to share, aliases ascending.
    pub shared: Vec<SharedRows>,
    /// Whole tensors among them.
    pub tensors: usize,
    /// Head blocks among them.
    pub blocks: usize,
    /// Bytes of the aliases.
    pub bytes: u64,
}

/// Finds duplicates among all tensors and among `blocks`. What overlaps
/// `claimed`, ranges that are shared for another reason, is left out.
pub fn find(variant: &Variant<'_>, blocks: &[RowsRange], claimed: &[RowsRange]) -> Duplicates {
    let claimed = Claimed::new(variant, claimed);
    let whole: Vec<RowsRange> = variant
        .gguf()
        .tensors
        .iter()
        .enumerate()
        .map(|(tensor, info)| RowsRange {
            tensor,
            offset: 0,
            len: info.byte_len(),
        })
        .filter(|range| claimed.is_free(range))
        .collect();
    let tensors = equal_ranges(variant, &whole);
    let is_alias: Vec<bool> = {
        let mut flags = vec![false; variant.gguf().tensors.len()];
        for rows in &tensors {
            flags[rows.alias] = true;
        }
        flags
    };
    let parts: Vec<RowsRange> = blocks
        .iter()
        .filter(|range| !is_alias[range.tensor] && claimed.is_free(range))
        .copied()
        .collect();
    let blocks = equal_ranges(variant, &parts);
    let mut found = Duplicates {
        tensors: tensors.len(),
        blocks: blocks.len(),
        bytes: 0,
        shared: tensors,
    };
    found.shared.extend(blocks);
    found.shared.sort();
    found.bytes = found.shared.iter().map(|s| s.len).sum();
    found
}

/// Pairs each range with the first byte-equal one of its type and row length.
fn equal_ranges(variant: &Variant<'_>, ranges: &[RowsRange]) -> Vec<SharedRows> {
    let kind = |range: &RowsRange| {
        let info = &variant.gguf().tensors[range.tensor];
        (info.ggml_type, info.row_elems(), range.len)
    };
    let bytes = |range: &RowsRange| {
        variant.before_encoding(range.tensor, range.offset..range.offset + range.len)
    };
    // Ranges that no other resembles are not read in full.
    let looks: Vec<_> = ranges
        .par_iter()
        .map(|range| bytes(range).map(|bytes| (kind(range), sample(&bytes))))
        .collect();
    let mut counts: HashMap<_, usize> = HashMap::new();
    for look in looks.iter().flatten() {
        *counts.entry(look).or_default() += 1;
    }
    let candidates: Vec<&RowsRange> = ranges
        .iter()
        .zip(&looks)
        .filter(|(_, look)| look.as_ref().is_some_and(|look| counts[look] > 1))
        .map(|(range, _)| range)
        .collect();
    let digests: Vec<Option<blake3::Hash>> = candidates
        .par_iter()
        .map(|range| bytes(range).map(|bytes| blake3::hash(&bytes)))
        .collect();
    let mut firsts: HashMap<_, Vec<&RowsRange>> = HashMap::new();
    let mut shared = Vec::new();
    for (range, digest) in candidates.into_iter().zip(digests) {
        let seen = firsts.entry((kind(range), digest)).or_default();
        match seen.iter().find(|first| bytes(first) == bytes(range)) {
            Some(first) => shared.push(SharedRows {
                alias: range.tensor,
                alias_offset: range.offset,
                donor: first.tensor,
                donor_offset: first.offset,
                len: range.len,
            }),
            None => seen.push(range),
        }
    }
    shared
}

/// A digest of a few bytes spread over `bytes`: equal for equal bytes, and
/// different for nearly all others at next to no cost.
fn sample(bytes: &[u8]) -> blake3::Hash {
    const SAMPLES: usize = 8;
    const LEN: usize = 64;
    let mut hasher = blake3::Hasher::new();
    let last = bytes.len().saturating_sub(LEN);
    for i in 0..SAMPLES {
        let start = last / (SAMPLES - 1) * i;
        hasher.update(&bytes[start..bytes.len().min(start + LEN)]);
    }
    hasher.finalize()
}

/// Ranges per tensor, for overlap queries.
struct Claimed {
    by_tensor: Vec<Vec<(u64, u64)>>,
}

impl Claimed {
    fn new(variant: &Variant<'_>, ranges: &[RowsRange]) -> Self {
        let mut by_tensor = vec![Vec::new(); variant.gguf().tensors.len()];
        for range in ranges {
            by_tensor[range.tensor].push((range.offset, range.offset + range.len));
        }
        for list in &mut by_tensor {
            list.sort_unstable();
        }
        Self { by_tensor }
    }

    fn is_free(&self, range: &RowsRange) -> bool {
        let list = &self.by_tensor[range.tensor];
        let next = list.partition_point(|&(_, end)| end <= range.offset);
        list.get(next)
            .is_none_or(|&(start, _)| start >= range.offset + range.len)
    }
}
