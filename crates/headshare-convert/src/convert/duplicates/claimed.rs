//! What is taken already: ranges per tensor.

use crate::convert::variant::Variant;
use crate::model::RowsRange;

/// Ranges per tensor, for overlap queries.
pub(super) struct Claimed {
    /// Ascending; may overlap.
    by_tensor: Vec<Vec<(u64, u64)>>,
}

impl Claimed {
    pub fn new(variant: &Variant<'_>, ranges: &[RowsRange]) -> Self {
        let mut this = Self {
            by_tensor: vec![Vec::new(); variant.gguf().tensors().len()],
        };
        this.add(ranges.iter().copied());
        this
    }

    pub fn add(&mut self, ranges: impl Iterator<Item = RowsRange>) {
        for range in ranges {
            self.by_tensor[range.tensor].push((range.offset, range.offset + range.len));
        }
        for list in &mut self.by_tensor {
            list.sort_unstable();
        }
    }

    pub fn is_free(&self, range: &RowsRange) -> bool {
        let taken =
            |&(start, end): &(u64, u64)| start < range.offset + range.len && end > range.offset;
        !self.by_tensor[range.tensor].iter().any(taken)
    }

    /// What is free of the first `len` bytes of a tensor, ascending.
    pub fn free(&self, tensor: usize, len: u64) -> Vec<(u64, u64)> {
        let mut free = Vec::new();
        let mut at = 0;
        for &(start, end) in &self.by_tensor[tensor] {
            if start > at {
                free.push((at, start));
            }
            at = at.max(end);
        }
        if at < len {
            free.push((at, len));
        }
        free
    }
}
