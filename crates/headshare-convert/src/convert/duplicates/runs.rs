//! Runs of equal rows, anywhere: a digest for every few rows, in one pass over
//! all tensors, and neighbours put together.

use std::collections::HashMap;

use headshare_format::GgmlType;
use headshare_format::layout::SharedRows;
use rayon::prelude::*;

use super::claimed::Claimed;
use crate::convert::variant::Variant;

/// Bytes that a digest stands for, at least.
const GRAIN: u64 = 4096;
/// Bytes that are worth sharing: a share costs a hundred bytes of table, and the
/// rest of a page at either end.
const WORTH: u64 = 64 << 10;

/// Rows with one digest.
struct Grain {
    tensor: usize,
    offset: u64,
    digest: [u8; 16],
}

/// Which grains of a tensor can be equal to which others.
type Kind = (GgmlType, u64);

/// Finds runs of equal rows in what is free.
pub(super) fn equal_runs(variant: &Variant<'_>, claimed: &Claimed) -> Vec<SharedRows> {
    let tensors = &variant.gguf().tensors();
    let grains_of = |tensor: usize| -> Vec<Grain> {
        let info = &tensors[tensor];
        let grain = grain(info.row_bytes());
        // A vector is one row; what is encoded has no bytes yet.
        if grain == 0 || info.rows() < 2 || variant.identity(tensor, 0..0).0.is_some() {
            return Vec::new();
        }
        let mut all = Vec::new();
        for (start, end) in claimed.free(tensor, info.byte_len()) {
            let mut at = start.next_multiple_of(grain);
            while at + grain <= end {
                let bytes = variant.identity(tensor, at..at + grain).1;
                let mut digest = [0; 16];
                digest.copy_from_slice(&blake3::hash(&bytes).as_bytes()[..16]);
                all.push(Grain {
                    tensor,
                    offset: at,
                    digest,
                });
                at += grain;
            }
        }
        all
    };
    let grains: Vec<Vec<Grain>> = (0..tensors.len()).into_par_iter().map(grains_of).collect();
    let grains: Vec<Grain> = grains.into_iter().flatten().collect();
    let kind = |g: &Grain| -> Kind { (tensors[g.tensor].ggml_type, tensors[g.tensor].row_elems()) };
    let mut first: HashMap<(Kind, [u8; 16]), usize> = HashMap::new();
    // Each grain's predecessor of equal content.
    let mut open: Option<SharedRows> = None;
    let mut found = Vec::new();
    let mut donor_at = 0;
    for (i, this) in grains.iter().enumerate() {
        let size = grain(tensors[this.tensor].row_bytes());
        let follows = open.as_mut().filter(|run| {
            let next = grains.get(donor_at + 1);
            run.alias == this.tensor
                && run.alias_offset + run.len == this.offset
                && next.is_some_and(|next| {
                    next.tensor == run.donor
                        && next.offset == run.donor_offset + run.len
                        && next.digest == this.digest
                        // A run does not use itself.
                        && (run.donor != run.alias || next.offset + size <= run.alias_offset)
                })
        });
        if let Some(run) = follows {
            run.len += size;
            donor_at += 1;
            continue;
        }
        found.extend(open.take());
        let earlier = *first.entry((kind(this), this.digest)).or_insert(i);
        if earlier < i {
            donor_at = earlier;
            open = Some(SharedRows {
                alias: this.tensor,
                alias_offset: this.offset,
                donor: grains[earlier].tensor,
                donor_offset: grains[earlier].offset,
                len: size,
            });
        }
    }
    found.extend(open);
    found.retain(|run| run.len >= WORTH && is_equal(variant, run));
    found
}

/// Bytes of the fewest whole rows that make up a grain.
fn grain(row_bytes: u64) -> u64 {
    match row_bytes {
        0 => 0,
        _ => GRAIN.div_ceil(row_bytes) * row_bytes,
    }
}

fn is_equal(variant: &Variant<'_>, run: &SharedRows) -> bool {
    let bytes = |tensor, offset: u64| variant.identity(tensor, offset..offset + run.len).1;
    bytes(run.alias, run.alias_offset) == bytes(run.donor, run.donor_offset)
}
