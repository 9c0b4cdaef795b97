//! Statistics: quantiles and means, means with their errors, distributions, and
//! what logits say. The one place for them; the figures that `llama-perplexity`
//! and `llama-bench` have, too, are computed as they do it.

mod estimate;
mod logits;
mod quantile;
mod summary;

#[cfg(test)]
pub(crate) mod oracle;

pub use estimate::{Estimate, Pairs, Sums, share};
pub use logits::{Comparison, Prediction, Reference, compare, predict};
pub use quantile::{mean, median, quantile, sort, stddev};
pub use summary::{Correlation, Histogram, Summary};
