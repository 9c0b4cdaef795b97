//! Why a model is not quantized.

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
    /// The model computes no numbers.
    #[error("{what} {name} are not all finite numbers")]
    NotFinite {
        /// Which numbers.
        what: &'static str,
        /// Of which tensor.
        name: String,
    },
}
