//! Why a file's heads cannot be shared.

use std::fmt;

use headshare_format::FormatError;
use thiserror::Error;

/// What an error is about, within a file of a known architecture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum About {
    /// The architecture as such.
    Architecture,
    /// A layer, counted from 0.
    Layer(u32),
    /// A tensor, by name; it may be a missing one.
    Tensor(String),
    /// A key.
    Key(String),
}

impl fmt::Display for About {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Architecture => Ok(()),
            Self::Layer(layer) => write!(f, ", layer {layer}"),
            Self::Tensor(name) => write!(f, ", tensor {name:?}"),
            Self::Key(key) => write!(f, ", key {key:?}"),
        }
    }
}

/// Why a file's heads cannot be shared.
///
/// Nothing here stands against converting the file losslessly, as whole tensors
/// (but [`Converted`](Self::Converted): that has been done).
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum HeadsError {
    /// The file is something else than a model.
    #[error("{0}")]
    NotAModel(String),
    /// The file has been converted before.
    #[error("this file is in the headshare format already")]
    Converted,
    /// The table has no such architecture.
    #[error(
        "architecture {0:?} is not one that this version knows, so it cannot tell where the heads are"
    )]
    UnknownArchitecture(String),
    /// The architecture, or something in this file, stands against it.
    #[error("architecture {architecture:?}{place}: {reason}")]
    NotShareable {
        /// The architecture's name.
        architecture: &'static str,
        /// What it is about.
        place: About,
        /// What is wrong with it.
        reason: String,
    },
    /// A key does not say what llama.cpp needs to load the file.
    #[error(transparent)]
    Format(#[from] FormatError),
}
