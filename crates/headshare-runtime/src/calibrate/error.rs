//! Why a pass failed.

use crate::callbacks::NodeError;
use crate::context::ContextError;
use crate::model::ModelError;

/// Why a pass failed.
#[derive(Debug, thiserror::Error)]
pub enum CalibrateError {
    /// The model cannot be loaded or does not generate.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// It cannot be evaluated.
    #[error(transparent)]
    Context(#[from] ContextError),
    /// A node's data is not what was expected.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// A weight cannot be written.
    #[error("weight {name}: {problem}")]
    Weight {
        /// Its name.
        name: String,
        /// Why not.
        problem: String,
    },
    /// The graph of a pass is not the graph of the first one.
    #[error("llama.cpp's graph changed: {0}")]
    Graph(String),
}
