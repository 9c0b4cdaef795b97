//! What goes wrong in a report, beside what goes wrong in its measures.

use std::io;
use std::path::PathBuf;

use headshare_files::FileError;

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The folder holds what no report has put there.
    #[error("{path} is no report's folder: it holds {name}", path = .path.display())]
    Foreign {
        /// The folder.
        path: PathBuf,
        /// What is in it.
        name: String,
    },
    /// The folder cannot be read or made.
    #[error("{path}: {error}", path = .path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// A file cannot be written.
    #[error("{0}")]
    File(#[from] FileError),
    /// A cell that is no JSON.
    #[error("a cell cannot be written: {0}")]
    Json(serde_json::Error),
}

impl ReportError {
    /// Whether it is about how the program was called.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Foreign { .. } => true,
            Self::Folder { error, .. } => error.kind() == io::ErrorKind::NotADirectory,
            _ => false,
        }
    }
}
