//! What is measured, and what the result depends on.

use headshare_eval::report::cells::Key;

/// Where a result is kept.
#[derive(Debug, Clone)]
pub(super) struct Cell {
    /// The beginning of its file's name.
    pub name: String,
    /// Everything that the result depends on.
    pub key: Key,
    /// The arguments of the program that give it by hand; none where it takes more
    /// than that.
    pub command: Vec<String>,
}

/// A job whose outcome is kept.
#[derive(Debug)]
pub(super) struct Measure<J> {
    pub cell: Cell,
    pub job: J,
}
