//! Why a model cannot be repaired.

use headshare_runtime::VocabError;
use headshare_runtime::calibrate::CalibrateError;

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
    /// Too little text.
    #[error("the calibration text has {found} tokens; it needs at least {needed}")]
    TextTooShort {
        /// What it has.
        found: usize,
        /// What it needs.
        needed: usize,
    },
    /// The bound on memory is too small.
    #[error("{bound} bytes of memory are too few; repairing this model needs at least {needed}")]
    Memory {
        /// The bound.
        bound: u64,
        /// What it takes.
        needed: u64,
    },
    /// The model computes no numbers.
    #[error("layer {layer}: {what} are not finite")]
    NotFinite {
        /// The layer.
        layer: u32,
        /// Which numbers.
        what: String,
    },
    /// A matrix cannot be quantized.
    #[error("{name}: {error}")]
    Quantize {
        /// Its name.
        name: String,
        /// Why not.
        error: QuantizeError,
    },
    /// The run was interrupted or llama.cpp failed.
    #[error(transparent)]
    Calibrate(#[from] CalibrateError),
    /// The tokenizer failed.
    #[error(transparent)]
    Vocab(#[from] VocabError),
    /// The system starts no thread for the second stream.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
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

impl From<EngineError> for RepairError {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::TextTooShort { found, needed } => Self::TextTooShort { found, needed },
            EngineError::Memory { bound, needed } => Self::Memory { bound, needed },
            EngineError::Calibrate(error) => Self::Calibrate(error),
            EngineError::Vocab(error) => Self::Vocab(error),
            EngineError::Thread(error) => Self::Thread(error),
            EngineError::Internal(problem) => Self::Internal(problem),
        }
    }
}
