//! Why the engine cannot run.

use headshare_runtime::calibrate::CalibrateError;
use headshare_runtime::own_text::OwnTextError;
use headshare_runtime::{ModelError, VocabError};

use crate::input::InputError;

/// Why the engine cannot run.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Too little text.
    #[error("the calibration text has {found} tokens; it needs at least {needed}")]
    TextTooShort {
        /// What it has.
        found: usize,
        /// What it needs.
        needed: usize,
    },
    /// The model has no positions for whole windows.
    #[error(
        "{architecture} models have no positions beyond {positions}, and windows have {window} tokens"
    )]
    WindowTooLong {
        /// The model's architecture.
        architecture: String,
        /// Positions that it has.
        positions: u32,
        /// Tokens of a window.
        window: u32,
    },
    /// The model predicts no text.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The bound on memory is too small.
    #[error("{bound} bytes of memory are too few; this model needs at least {needed}")]
    Memory {
        /// The bound.
        bound: u64,
        /// What it takes.
        needed: u64,
    },
    /// The run was interrupted or llama.cpp failed.
    #[error(transparent)]
    Calibrate(#[from] CalibrateError),
    /// The model wrote no text.
    #[error("the model writes no text to calibrate on: {0}")]
    OwnText(#[from] OwnTextError),
    /// The tokenizer failed.
    #[error(transparent)]
    Vocab(#[from] VocabError),
    /// The system starts no thread for the second stream.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
    /// Weights are no numbers.
    #[error(transparent)]
    NotNumbers(#[from] InputError),
    /// The model computes no numbers.
    #[error("{what} {name} are not all finite numbers")]
    NotFinite {
        /// Which numbers.
        what: &'static str,
        /// Of which tensor.
        name: String,
    },
    /// Something that cannot be.
    #[error("engine: {0}")]
    Internal(String),
}
