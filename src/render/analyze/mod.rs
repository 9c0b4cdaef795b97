//! What `analyze` says.

pub(crate) mod attention;
pub(crate) mod predictions;
pub(crate) mod ratios;
mod summaries;
pub(crate) mod weights;
