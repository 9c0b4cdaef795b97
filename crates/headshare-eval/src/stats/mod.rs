//! Statistics: quantiles and means, means with their errors, distributions, and
//! what logits say. The one place for them; the figures that `llama-perplexity`
//! and `llama-bench` have, too, are computed as they do it.

mod estimate;
mod quantile;
mod summary;

pub use estimate::{Comparison, Estimate, Pairs, Prediction, Sums, compare, predict, share};
pub use quantile::{mean, median, quantile, sort, stddev};
pub use summary::{Correlation, Histogram, Summary};
