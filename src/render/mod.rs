//! Outcomes of jobs, and errors, in words: one file a subcommand. JSON is the outcome
//! itself.

pub(crate) mod advice;
pub(crate) mod analyze;
pub(crate) mod bench;
pub(crate) mod convert;
pub(crate) mod eval;
pub(crate) mod expand;
mod fit;
pub(crate) mod inspect;
mod numbers;
pub(crate) mod perf;
pub(crate) mod plan;
mod quantize;
mod repair;
#[cfg(feature = "train")]
pub(crate) mod train;
pub(crate) mod verify;
