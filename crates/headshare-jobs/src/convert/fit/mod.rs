//! The best model for the bytes that a device has: `choice` says what is predicted to cost
//! least, `candidates` are made to see which is best, and `memory` holds them against what
//! there is of memory. The rest is a conversion like any other.

mod bracket;
mod budget;
mod candidates;
mod choice;
mod make;
mod memory;
pub(crate) mod plan;
pub(crate) mod predictions;

pub use budget::{Budget, Changes, InMemory, MadeToFit, OfMemory, OtherSize, Retyped, Tried};
