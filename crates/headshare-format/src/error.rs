//! The one error of this crate: what is wrong with which part of a file.

use std::fmt;

/// A file does not follow GGUF or the headshare format.
///
/// Displays as `field: problem`; the caller prefixes the file's name and
/// prints [`hint`](Self::hint) on a line of its own.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct FormatError {
    /// Which part of the file: `magic`, `key "general.alignment"`,
    /// `tensor "blk.0.attn_q.weight"`, ...
    pub field: String,
    /// What is wrong with it, with the numbers that show it.
    pub problem: String,
    /// What the user can do, when there is something to do.
    pub hint: Option<String>,
}

impl FormatError {
    /// An error about `field`.
    pub fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            problem: problem.into(),
            hint: None,
        }
    }

    /// An error about the key `key`.
    pub fn key(key: &str, problem: impl Into<String>) -> Self {
        Self::new(format!("key {key:?}"), problem)
    }

    /// An error about the tensor `name`.
    pub fn tensor(name: &str, problem: impl Into<String>) -> Self {
        Self::new(format!("tensor {name:?}"), problem)
    }

    /// The same error with advice.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for FormatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.problem)
    }
}
