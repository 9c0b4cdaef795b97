//! Ranges of tensors, as they are, that are byte-equal.

use std::collections::HashMap;

use headshare_format::layout::SharedRows;
use rayon::prelude::*;

use crate::convert::variant::Variant;
use crate::model::{RowsRange, layer_of};

/// Pairs each range with the first byte-equal one of its type and row length: that of no layer, or
/// of the lowest one, wherever the file has it. That one runs first.
pub(super) fn equal_ranges(variant: &Variant<'_>, ranges: &[RowsRange]) -> Vec<SharedRows> {
    let kind = |range: &RowsRange| {
        let info = &variant.gguf().tensors()[range.tensor];
        let made = variant.identity(range.tensor, 0..0).0;
        (info.ggml_type, info.row_elems(), range.len, made)
    };
    let bytes = |range: &RowsRange| {
        let range_in_tensor = range.offset..range.offset + range.len;
        variant.identity(range.tensor, range_in_tensor).1
    };
    // Ranges that no other resembles are not read in full.
    let looks: Vec<_> = ranges
        .par_iter()
        .map(|range| (kind(range), sample(&bytes(range))))
        .collect();
    let mut counts: HashMap<_, usize> = HashMap::new();
    for look in &looks {
        *counts.entry(look).or_default() += 1;
    }
    let mut candidates: Vec<&RowsRange> = ranges
        .iter()
        .zip(&looks)
        .filter(|(_, look)| counts[look] > 1)
        .map(|(range, _)| range)
        .collect();
    candidates.sort_by_key(|range| layer_of(&variant.gguf().tensors()[range.tensor].name));
    let digests: Vec<blake3::Hash> = candidates
        .par_iter()
        .map(|range| blake3::hash(&bytes(range)))
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
