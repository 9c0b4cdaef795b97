//! Why tensors cannot get the shapes or types that a plan asks for.

/// Why not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShapeError {
    /// Units cannot go.
    #[error("dropping units: {0}")]
    Units(String),
}

impl ShapeError {
    pub(super) fn units(why: impl Into<String>) -> Self {
        Self::Units(why.into())
    }
}
