//! Why weights cannot be quantized.

use headshare_runtime::quants::QuantError;

/// Why weights cannot be quantized.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuantizeError {
    /// ggml refuses.
    #[error(transparent)]
    Ggml(#[from] QuantError),
    /// Rows are no whole blocks, or do not fit the inputs.
    #[error("rows of {columns} elements are no whole blocks of {width}")]
    Shape {
        /// Length of a row.
        columns: usize,
        /// Length of a block.
        width: usize,
    },
    /// The Gram matrix cannot be inverted.
    #[error("the Gram matrix of the inputs is not positive definite")]
    Singular,
}
