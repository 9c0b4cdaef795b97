//! Quantizing a model: [`assign`] gives its tensors types, as edits of its plan, and
//! [`TypedPlan::fit`] or [`TypedPlan::round`] makes their data.
//!
//! Fitting is a visitor of the [`engine`](crate::engine): each matrix makes up for what
//! the ones before it lost, and is [encoded](crate::encode) with feedback.

mod assign;
mod error;
pub mod imatrix;
pub mod importance;
mod pass;
mod record;
pub mod types;
#[cfg(test)]
mod types_tests;
mod visitor;

pub use assign::{TypedPlan, assign};
pub use error::QuantizerError;
pub use pass::{Fit, NewTensors, measure, takes, takes_with_repair};
pub use record::{
    By, Calibrated, Counts, QuantizeRecord, Settings, TIED_DAMPING, TooFew, Unfitted,
};
