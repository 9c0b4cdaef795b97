//! Why a model is not quantized.

use headshare_format::GgmlType;

use super::types::TypesError;
use crate::convert::ConvertError;
use crate::encode::QuantizeError;
use crate::engine::EngineError;
use crate::repair::RepairError;

/// Why a model is not quantized.
#[derive(Debug, thiserror::Error)]
pub enum QuantizerError {
    /// Tensors get no types.
    #[error(transparent)]
    Types(#[from] TypesError),
    /// The engine cannot run.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The plan cannot be carried out.
    #[error(transparent)]
    Convert(#[from] ConvertError),
    /// A layer cannot be refitted beside.
    #[error(transparent)]
    Repair(#[from] RepairError),
    /// A tensor cannot be encoded.
    #[error("{name}: {error}")]
    Tensor {
        /// Its name.
        name: String,
        /// Why not.
        error: QuantizeError,
    },
    /// No tensor gets another type.
    #[error("every tensor has the type already that {0} would give it")]
    Nothing(String),
    /// What is stored once has one type.
    #[error(
        "{alias} has rows in common with {donor}, and the plan's `store` gives a type to one of \
         them alone: let it give both the same one, or neither"
    )]
    OneType {
        /// A tensor.
        alias: String,
        /// Another.
        donor: String,
    },
    /// Rounding to this type without importances makes noise of weights.
    #[error("{name} would be {ggml_type}, which weights are not rounded to without importances")]
    NeedsImportances {
        /// A tensor.
        name: String,
        /// The type.
        ggml_type: GgmlType,
    },
    /// The model computes no numbers.
    #[error("{what} {name} are not all finite numbers")]
    NotFinite {
        /// Which numbers.
        what: &'static str,
        /// Of which tensor.
        name: String,
    },
}

impl QuantizerError {
    /// That the tensor `name` cannot be encoded.
    pub(super) fn tensor(name: &str, error: impl Into<QuantizeError>) -> Self {
        Self::Tensor {
            name: name.to_owned(),
            error: error.into(),
        }
    }
}
