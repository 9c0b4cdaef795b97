//! The best model for so many bytes.
//!
//! Data flows one way: [`moves`] says which types each tensor could have, and what that
//! saves; `trial` encodes some rows at each and says what that changes of the tensor's
//! outputs; `probe` measures on the running model what an error in a tensor does to its
//! predictions; [`cuts`] say what is lost when units and channels go, and `sharing` what
//! is lost when units use another unit's weights, where none can go. [`Statistics`] are
//! all of these. `groups` are what can become of the tensors that belong together, of which
//! [`select`] takes what costs least for its bytes. What comes out are types and edits of a
//! plan, which [`crate::quantize`] carries out. Of some such plans, the [`divergence`] that
//! they really make is measured.
//!
//! The divergence that a small error in a tensor causes grows with the error's square, and
//! divergences of several tensors add up, as long as they are small (the linearity that
//! HIGGS rests on, Malinovskii et al. 2024, arXiv 2411.17525). So one probe a tensor serves
//! all types.

pub mod cuts;
mod error;
mod groups;
mod inputs;
pub mod moves;
mod probe;
mod running;
pub mod select;
mod sharing;
mod statistics;
#[cfg(test)]
mod tests;
mod trial;

pub use cuts::units_at_least;
pub use error::FitError;
pub use groups::{Changed, Changes, Counts, Group, changes, groups};
pub use moves::{Movable, Move};
pub use running::divergence;
pub use select::Chosen;
pub use statistics::{Statistics, StatisticsError};
