//! What can go wrong when models are trained.

use std::path::PathBuf;

use headshare_convert::convert::ConvertError;
use headshare_convert::model::{About, HeadsError};
use headshare_files::FileError;
use headshare_format::FormatError;
use headshare_runtime::quants::QuantError;

/// Why a model cannot be trained, or its training has stopped.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The file's heads cannot be found.
    #[error("{path}: {error}", path = .path.display())]
    Heads {
        /// The file.
        path: PathBuf,
        /// Why.
        error: HeadsError,
    },
    /// The architecture, or something in this file, is not built here.
    #[error("{path}: cannot train architecture {architecture:?}{place}: {reason}", path = .path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// `general.architecture`.
        architecture: String,
        /// What it is about.
        place: About,
        /// What is missing.
        reason: String,
    },
    /// A key of the file does not say what is needed.
    #[error("{path}: {error}", path = .path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: FormatError,
    },
    /// A tensor has no numbers to train.
    #[error("{path}: tensor {tensor:?}: {error}", path = .path.display())]
    Weights {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Why.
        error: QuantError,
    },
    /// The changed model cannot be made.
    #[error(transparent)]
    Convert(#[from] ConvertError),
    /// Tensors that are no windows of this model, or an operation's failure.
    #[error("training: {0}")]
    Tensor(#[from] candle_core::Error),
    /// Windows that the model cannot read.
    #[error("windows: {0}")]
    Windows(String),
    /// A text that is too short for windows.
    #[error("windows: {0}")]
    TooShort(String),
    /// Windows that are longer than the model has positions.
    #[error("windows of {length} tokens: the model has {positions} positions")]
    Positions {
        /// Tokens of a window.
        length: usize,
        /// Positions that there are.
        positions: usize,
    },
    /// A parameter's new numbers are not as many, or there is no such parameter.
    #[error("parameter {name:?}: {problem}")]
    Parameter {
        /// Its name.
        name: String,
        /// What is wrong.
        problem: String,
    },
    /// What is asked for makes no sense together.
    #[error("{field}: {problem}")]
    Options {
        /// The option.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The loss is no number any more.
    #[error("step {step}: the {what} is {value}, not a finite number{kept}")]
    NotFinite {
        /// The step, counted from 1.
        step: u64,
        /// Loss or gradient norm.
        what: &'static str,
        /// What it is.
        value: f64,
        /// Where the last good state is, as the end of the sentence.
        kept: String,
    },
    /// A checkpoint does not belong to this run, or is damaged.
    #[error("{path}: checkpoint field {field:?}: {problem}", path = .path.display())]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// The field or tensor.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A checkpoint is of a run that was begun in another way.
    #[error("{path}: the state of another run: its {field:?} is {found}, and {expected} in this run", path = .path.display())]
    OtherRun {
        /// The file.
        path: PathBuf,
        /// The setting.
        field: String,
        /// What it is there, as JSON.
        found: String,
        /// What it is now.
        expected: String,
    },
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
}

impl TrainError {
    /// An option that makes no sense.
    pub(crate) fn option(field: &'static str, problem: impl Into<String>) -> Self {
        let problem = problem.into();
        Self::Options { field, problem }
    }
}
