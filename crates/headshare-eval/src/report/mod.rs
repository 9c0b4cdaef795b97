//! `report`: what sharing does to one model, next to what else could be done
//! with it for the same bytes.
//!
//! A report measures *forms* of a model: the source; the files that each
//! [`Series`] of conversions makes at each ratio; and for each of those its
//! plain alternative ([`lower`]), the plain file that is as small because part
//! of its tensors are stored one type lower. Or the files that are made to fit into
//! some [`sizes`], each with [`rivals`] that llama.cpp makes in as many bytes. Each
//! measure of a form is a cell
//! ([`cells`]) that is kept, so that a report goes on where it was stopped. The
//! measuring itself is the caller's; from rows of finished cells come the words
//! ([`verdict`]), the table ([`markdown`]) and the pictures ([`picture`], of match
//! functions [`functions`], of subjects [`subjects`]).

pub mod cells;
#[cfg(test)]
mod compared_tests;
mod error;
pub mod functions;
pub mod lower;
#[cfg(test)]
mod lowered_tests;
pub mod markdown;
pub mod overlap;
pub mod picture;
pub mod rivals;
mod rows;
pub mod sizes;
#[cfg(test)]
mod sizes_tests;
pub mod subjects;
#[cfg(test)]
mod tests;
pub mod verdict;
mod words;

pub use error::ReportError;
pub use rows::{
    Against, File, FileFacts, FunctionCurve, FunctionPoint, LoadModeSpeed, Paired, Quality, Report,
    Row, RowKind, Series, SeriesTitle, Settings, Speed, TaskScore, Throughput,
};
