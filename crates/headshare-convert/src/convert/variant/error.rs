//! Why tensors cannot get the shapes or types that a plan asks for.

use headshare_format::FormatError;

/// Why not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShapeError {
    /// The model is no whole one.
    #[error(transparent)]
    Model(#[from] FormatError),
    /// Units cannot go.
    #[error("dropping units: {0}")]
    Units(String),
}

impl ShapeError {
    pub(super) fn units(why: impl Into<String>) -> Self {
        Self::Units(why.into())
    }
}
