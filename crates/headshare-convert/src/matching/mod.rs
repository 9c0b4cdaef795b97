//! Decides which units share their weights: the paper's match functions and
//! its Algorithm 1 (DirectShare).
//!
//! A **unit** is what is shared as one: an attention head's q, k and v blocks,
//! or with grouped-query attention a KV group's. The **score** of two units is
//! the cosine of the flattened concatenations of those parts that the
//! [`MatchFunction`] looks at. Algorithm 1 gives each unit of every layer but
//! the first its best match among *all* units of earlier layers, sorts these
//! candidates by score and lets the first N share,
//! N = round-half-up(ratio x number of all units). A match that is itself an
//! alias is followed to its root, so that every alias points to a unit that is
//! stored.
//!
//! # What the numbers are
//! The search runs in `f32` matrix products, whose rounding depends on the
//! CPU's kernels. What their error bound leaves open is decided, and every
//! score computed, by `f64` sums in one fixed order. So the same weights give
//! the same plan, bit for bit, with any number of threads and on any CPU; ties
//! between exact duplicates are real ties, and exact duplicates score exactly 1.
//!
//! - A unit whose looked-at blocks are all zero has cosine 0 with every unit.
//! - Units can only match when their blocks are of one class (same type, rows
//!   and row length): for all three parts, since the whole unit is shared
//!   whatever the match function looks at; for [`MatchFunction::Separate`], for
//!   the part in question.
//! - Weights that are not finite are an error, not a score.

mod blocks;
mod gram;
mod plan;
mod products;
mod score_matrix;
mod select;
mod weights;

pub use blocks::{MatchError, MatchFunction, UnitBlocks, UnknownMatchFunction};
pub use gram::cosine;
pub use plan::{SlabPlan, plan_slabs};
pub use products::Products;
pub use score_matrix::{ScoreMatrix, score_matrices};
pub use select::{
    Candidate, Match, Matching, Ranking, Skipped, aliases_for, match_units, rank_units,
};
pub use weights::WeightBlocks;
