//! `report`: what sharing does to one model, next to what else could be done
//! with it for the same bytes.
//!
//! A report measures *forms* of a model: the source; the files that each
//! [`Series`] of conversions makes at each ratio; and for each of those its
//! plain alternative ([`lower`]), the plain file that is as small because part
//! of its tensors are stored one type lower. Each measure of a form is a cell
//! ([`cells`]) that is kept, so that a report goes on where it was stopped. The
//! measuring itself is the caller's; from rows of finished cells come the words
//! ([`verdict`]), the table ([`markdown`]) and the picture ([`picture`]).

pub mod cells;
mod error;
pub mod lower;
#[cfg(test)]
mod lowered_tests;
pub mod markdown;
pub mod overlap;
pub mod picture;
mod rows;
#[cfg(test)]
mod tests;
pub mod verdict;

pub use error::ReportError;
pub use rows::{
    Against, File, FileFacts, LoadModeSpeed, Paired, Quality, Report, Row, RowKind, Series,
    SeriesTitle, Settings, Speed, TaskScore, Throughput,
};
