//! Why a model cannot be repaired.

use headshare_runtime::calibrate::CalibrateError;

use crate::convert::ConvertError;
use crate::encode::QuantizeError;
use crate::engine::{EngineError, Site};

/// Why a model cannot be repaired.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// The architecture's layers do not add up one after the other.
    #[error("architecture {architecture} cannot be repaired: {why}")]
    Unsupported {
        /// Its name.
        architecture: String,
        /// Why not.
        why: String,
    },
    /// The engine cannot run.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The model cannot be written in a form that is read fast.
    #[error(transparent)]
    Convert(#[from] ConvertError),
    /// A matrix cannot be quantized.
    #[error("{name}: {error}")]
    Quantize {
        /// Its name.
        name: String,
        /// Why not.
        error: QuantizeError,
    },
    /// Something that cannot be.
    #[error("repair: {0}")]
    Internal(String),
}

impl RepairError {
    pub(in crate::repair) fn cannot(site: &Site, error: QuantizeError) -> Self {
        let name = site.name.clone();
        Self::Quantize { name, error }
    }
}

impl From<CalibrateError> for RepairError {
    fn from(error: CalibrateError) -> Self {
        EngineError::from(error).into()
    }
}
