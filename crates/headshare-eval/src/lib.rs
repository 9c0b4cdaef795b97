//! What became of a model: [`eval`] measures it, [`analyze`] looks at its heads,
//! [`inspect`] says what a file holds and shares, [`bench`](mod@bench) how fast it
//! runs, [`report`] puts it next to what else could be done.
#![forbid(unsafe_code)]

pub mod analyze;
pub mod bench;
pub mod eval;
pub mod inspect;
pub mod report;
