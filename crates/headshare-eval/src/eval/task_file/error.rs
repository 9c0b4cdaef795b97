//! Why a task file cannot be used.

use std::path::{Path, PathBuf};

use headshare_convert::input::text;

/// Why a task file cannot be used; each names the file, and the line and the
/// field where there is one.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// It cannot be read.
    #[error("cannot read {path}: {source}", path = text::name(path))]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A line is not what it must be.
    #[error("{path}:{line}: {problem}", path = text::name(path))]
    Line {
        /// The file, or the archive and the file in it.
        path: PathBuf,
        /// The line, counted from 1.
        line: u64,
        /// What is wrong with it.
        problem: String,
        /// What the user can do.
        hint: Option<String>,
    },
    /// The file as a whole is not what it must be.
    #[error("{path}: {problem}", path = text::name(path))]
    Content {
        /// The file, or the archive and the file in it.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// What the user can do.
        hint: Option<String>,
    },
}

impl TaskError {
    pub(in crate::eval) fn read(path: &Path, source: std::io::Error) -> Self {
        let path = path.to_owned();
        Self::Read { path, source }
    }

    pub(in crate::eval) fn line(path: &Path, line: u64, problem: impl ToString) -> Self {
        Self::Line {
            path: path.to_owned(),
            line,
            problem: problem.to_string(),
            hint: None,
        }
    }

    pub(in crate::eval) fn content(path: &Path, problem: impl ToString) -> Self {
        Self::Content {
            path: path.to_owned(),
            problem: problem.to_string(),
            hint: None,
        }
    }

    pub(in crate::eval) fn with_hint(mut self, text: impl ToString) -> Self {
        if let Self::Line { hint, .. } | Self::Content { hint, .. } = &mut self {
            *hint = Some(text.to_string());
        }
        self
    }
}
