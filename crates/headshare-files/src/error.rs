//! Errors about files: which one, and what was tried. What helps is the caller's to
//! say, who knows how the user named the file.

use std::io;
use std::path::{Path, PathBuf};

/// Something about a file keeps the program from going on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// The operating system refused.
    #[error("{path}: cannot {action}: {source}", path = .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried: `open`, `map`, `write`, ...
        action: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// A folder, device, pipe or socket where a regular file is needed.
    #[error("{path}: is {kind}, not a regular file", path = .path.display())]
    NotRegular {
        /// The path.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// The output is there already.
    #[error("{path}: exists already", path = .path.display())]
    Exists {
        /// The output.
        path: PathBuf,
    },
    /// The output is one of the inputs, perhaps through a link.
    #[error("{path}: is the input itself", path = .path.display())]
    SameFile {
        /// The output.
        path: PathBuf,
    },
    /// The file system cannot take the output.
    #[error("{path}: no space for {needed} bytes: {source}", path = .path.display())]
    NoSpace {
        /// The output.
        path: PathBuf,
        /// Its size in bytes.
        needed: u64,
        /// The system's reason.
        source: io::Error,
    },
}

impl FileError {
    /// Makes an [`Io`](Self::Io) error of the system's: `action` on the file at
    /// `path` failed.
    pub fn io(path: impl Into<PathBuf>, action: &'static str) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            path,
            action,
            source,
        }
    }

    /// Whether memory or addresses ran out, which is no fault of the file.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::OutOfMemory)
    }

    /// An error of writing `needed` bytes or more to `path`.
    pub(crate) fn write(path: &Path, needed: u64, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::FileTooLarge => Self::NoSpace {
                path,
                needed,
                source,
            },
            _ => Self::Io {
                path,
                action: "write",
                source,
            },
        }
    }
}
