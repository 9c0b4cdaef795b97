//! Why a conversion failed.

use std::path::PathBuf;

use headshare_files::FileError;
use headshare_runtime::quants::QuantError;

use super::damage::Damage;
use super::variant::ShapeError;
use crate::input::{InputError, ModelFile};
use crate::model::HeadsError;
use crate::plan::PlanError;

/// Why a conversion failed.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// The input is bad.
    #[error(transparent)]
    Input(#[from] InputError),
    /// A file cannot be read or written.
    #[error("{0}")]
    File(#[from] FileError),
    /// The model has no heads that could share.
    #[error("{path}: {error}", path = .path.display())]
    Model {
        /// The model.
        path: PathBuf,
        /// Why not.
        error: HeadsError,
    },
    /// The plan does not fit.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Tensors cannot get the shapes that the plan asks for.
    #[error("{path}: {error}", path = .path.display())]
    Shape {
        /// The model.
        path: PathBuf,
        /// Why not.
        error: ShapeError,
    },
    /// Weights cannot be stored at another type.
    #[error("{path}: tensor {tensor:?}: {error}", path = .path.display())]
    Encode {
        /// The model.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Why not.
        error: QuantError,
    },
    /// The plan was made for another file.
    #[error(
        "{path}: the plan was made for another file: it states {expected}, this file is {actual}",
        path = .path.display()
    )]
    WrongSource {
        /// The file.
        path: PathBuf,
        /// The digest in the plan.
        expected: String,
        /// The file's digest.
        actual: String,
    },
    /// The converted file is not what it was when it was written.
    #[error(transparent)]
    Damaged(#[from] Damage),
}

impl ConvertError {
    pub(crate) fn model(source: &ModelFile, error: HeadsError) -> Self {
        Self::Model {
            path: source.path().to_owned(),
            error,
        }
    }
}
