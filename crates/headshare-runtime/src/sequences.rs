//! What a context remembers of each sequence, copied and removed.
//!
//! A common beginning is evaluated once, as one sequence, and becomes the
//! beginning of others with [`Context::seq_cp`]; where the KV cache is unified
//! ([`crate::ContextParams::kv_unified`]), that copies nothing.

use std::ops::{Bound, RangeBounds};

use ggml_sys as sys;

use crate::batch::SeqId;
use crate::context::{Context, ContextError};
use crate::guard;

impl Context {
    /// The position behind a sequence's last token: its length, where it
    /// begins at 0. 0 for sequences without tokens and those that there cannot
    /// be.
    pub fn seq_end(&self, sequence: SeqId) -> u32 {
        if sequence >= self.n_seq_max() {
            return 0;
        }
        // SAFETY: the context lives; llama.cpp answers -1 where it has no
        // memory, and the sequence is one that there can be.
        let last = unsafe {
            let memory = sys::llama_get_memory(self.raw.as_ptr());
            sys::llama_memory_seq_pos_max(memory, sequence as i32)
        };
        u32::try_from(last.saturating_add(1)).unwrap_or(0)
    }

    /// Makes the tokens of `from` at `positions` also those of `to`, which must
    /// be empty. Without a unified KV cache only whole sequences can be copied.
    ///
    /// Models that keep one state a sequence instead of a KV cache (Mamba,
    /// RWKV) copy that state, whatever the positions are.
    pub fn seq_cp(
        &mut self,
        from: SeqId,
        to: SeqId,
        positions: impl RangeBounds<u32>,
    ) -> Result<(), ContextError> {
        self.check_sequence(from)?;
        self.check_sequence(to)?;
        if self.seq_end(to) > 0 {
            let message = format!("sequence {to} is not empty");
            return Err(ContextError::Sequence(message));
        }
        let (p0, p1) = ends(&positions);
        let whole = p0 == 0 && (p1 < 0 || p1.unsigned_abs() >= self.seq_end(from));
        if !whole && !self.kv_unified {
            let message = "part of a sequence can be copied with kv_unified only";
            return Err(ContextError::Sequence(message.into()));
        }
        let p1 = if whole { -1 } else { p1 };
        guard::call(self.model().path(), |error, error_size| {
            // SAFETY: the context lives and has a memory, both sequences are
            // ones that there can be, and only what llama.cpp can copy is.
            unsafe {
                guard::headshare_memory_seq_cp(
                    self.raw.as_ptr(),
                    from as i32,
                    to as i32,
                    p0,
                    p1,
                    error,
                    error_size,
                )
            }
        })
        .map_err(ContextError::Sequence)?;
        self.recount();
        Ok(())
    }

    /// Forgets the tokens of a sequence at `positions`. Models that keep one
    /// state a sequence can forget whole sequences only.
    pub fn seq_rm(
        &mut self,
        sequence: SeqId,
        positions: impl RangeBounds<u32>,
    ) -> Result<(), ContextError> {
        self.check_sequence(sequence)?;
        let (p0, p1) = ends(&positions);
        let mut removed = false;
        let called = guard::call(self.model().path(), |error, error_size| {
            // SAFETY: the context lives and has a memory, and the sequence is
            // one that there can be.
            unsafe {
                guard::headshare_memory_seq_rm(
                    self.raw.as_ptr(),
                    sequence as i32,
                    p0,
                    p1,
                    &mut removed,
                    error,
                    error_size,
                )
            }
        });
        self.recount();
        called.map_err(ContextError::Sequence)?;
        if !removed {
            let architecture = self.model().architecture();
            let message = format!("{architecture} models cannot forget part of a sequence");
            return Err(ContextError::Sequence(message));
        }
        Ok(())
    }

    /// Forgets all sequences but one.
    pub fn seq_keep(&mut self, sequence: SeqId) -> Result<(), ContextError> {
        self.check_sequence(sequence)?;
        if !self.kv_unified {
            // llama.cpp looks into the sequence's own part of the cache only.
            return (0..self.n_seq_max())
                .filter(|&other| other != sequence)
                .try_for_each(|other| self.seq_rm(other, ..));
        }
        let called = guard::call(self.model().path(), |error, error_size| {
            // SAFETY: as in `seq_rm`.
            unsafe {
                guard::headshare_memory_seq_keep(
                    self.raw.as_ptr(),
                    sequence as i32,
                    error,
                    error_size,
                )
            }
        });
        self.recount();
        called.map_err(ContextError::Sequence)
    }

    fn check_sequence(&self, sequence: SeqId) -> Result<(), ContextError> {
        self.check_generative()?;
        let n_seq_max = self.n_seq_max();
        if sequence < n_seq_max {
            return Ok(());
        }
        let message = format!("sequence {sequence}, where there can be {n_seq_max} (n_seq_max)");
        Err(ContextError::Sequence(message))
    }
}

/// llama.cpp's form of a range of positions: first, and end or -1.
fn ends(positions: &impl RangeBounds<u32>) -> (sys::llama_pos, sys::llama_pos) {
    let number = |n: u32| i32::try_from(n).unwrap_or(i32::MAX);
    let first = match positions.start_bound() {
        Bound::Included(&first) => number(first),
        Bound::Excluded(&before) => number(before).saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match positions.end_bound() {
        Bound::Included(&last) => number(last).saturating_add(1),
        Bound::Excluded(&end) => number(end),
        Bound::Unbounded => -1,
    };
    (first, end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_half_open() {
        assert_eq!(ends(&(..)), (0, -1));
        assert_eq!(ends(&(3..)), (3, -1));
        assert_eq!(ends(&(..7)), (0, 7));
        assert_eq!(ends(&(2..=5)), (2, 6));
        assert_eq!(ends(&(..u32::MAX)), (0, i32::MAX));
    }
}
