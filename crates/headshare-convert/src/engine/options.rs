//! How the engine runs.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// How the engine runs.
#[derive(Debug, Clone)]
pub struct Options {
    /// The text to calibrate on.
    pub text: Text,
    /// Windows of it, at most.
    pub windows: u32,
    /// Tokens of each.
    pub window: u32,
    /// Bytes of memory to stay within.
    pub memory: u64,
    /// Threads; `None` means one a physical core that this process may use.
    pub n_threads: Option<u32>,
    /// While true, everything stops as soon as it can.
    pub stop: Arc<AtomicBool>,
}

/// A text to calibrate on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Text {
    /// This one.
    Given(String),
    /// What the model writes itself.
    Own,
    /// As much as it would write, where nothing reads it: a dry run.
    Unwritten,
}

/// Fewest tokens whose sums tell enough of other tokens to fit a matrix of so many `columns`.
pub fn tokens_to_fit(columns: usize) -> usize {
    columns / 2
}

/// Bytes of logits that are of use, for so many tokens in the `vocabulary`: as many as it takes to
/// fit a matrix of the last layer that has the `widest` rows.
pub(super) fn useful_logits(vocabulary: u64, widest: u64) -> u64 {
    let needed = tokens_to_fit(widest as usize) as u64;
    (4 * vocabulary).saturating_mul(needed).max(1 << 30)
}

/// Bytes of logits that may be set aside, where `memory` is there in all, and so many are of use.
pub(super) fn logits_bytes(memory: u64, useful: u64) -> u64 {
    useful.min(memory / 8)
}
