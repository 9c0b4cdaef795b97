//! The one error of this crate: what kind it is, what is wrong with which part
//! of a file, and what can be done.

use std::fmt;

/// A file does not follow GGUF or the headshare format, or cannot be used in the
/// way that was asked for.
///
/// Displays as `field: problem`; the caller prefixes the file's name and prints
/// what [`advice`](Self::advice) means on a line of its own.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub struct FormatError {
    /// What kind of error it is, for programs.
    pub kind: ErrorKind,
    /// Which part of the file: `magic`, `key "general.alignment"`,
    /// `tensor "blk.0.attn_q.weight"`, ...
    pub field: String,
    /// What is wrong with it, with the numbers that show it.
    pub problem: String,
    /// What the user can do, when there is something to do.
    pub advice: Option<Advice>,
}

/// The kinds of [`FormatError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The file ends before what it states: it was not fully downloaded or
    /// copied, or the number that says how much follows is damaged.
    Truncated,
    /// Nothing need be wrong with the file, but it is not one for this: another
    /// kind of file, another version, a type that ggml does not have.
    Unsupported,
    /// The file breaks this rule.
    Malformed(Rule),
}

/// The rules that a file can break.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Rule {
    /// A GGUF file begins with the letters `GGUF` and its version.
    Magic,
    /// Keys are UTF-8, not empty, and each is there once.
    Key,
    /// Values have a type that GGUF has and that the key asks for, and say what
    /// the key asks for.
    Value,
    /// The alignment is a power of two that is not too large.
    Alignment,
    /// Tensors have short UTF-8 names, each its own.
    TensorName,
    /// Tensors have one to four dimensions, rows of whole blocks, and a size that
    /// can be counted.
    Shape,
    /// Tensors' data follow each other with nothing but padding between them.
    Data,
    /// What is to share rows is alike, lies in tensors, and not in circles.
    Sharing,
    /// A rule of the headshare format, by its number in `docs/FORMAT.md`: 1 for
    /// R1, and so on.
    Table(u8),
}

/// What can be done about a [`FormatError`], in terms of what it achieves. A
/// program says it in terms of its own commands.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Advice {
    /// What to do outside the program, in words.
    Words(String),
    /// The file is converted: start from the plain file that it expands to.
    StartFromExpanded,
    /// Expanding the file works, and gives a plain one.
    Expand,
    /// A newer program reads the file.
    UseNewer,
    /// The header of a converted file was edited: edit a plain file, and convert
    /// that.
    EditPlainFile,
}

impl FormatError {
    /// An error about `field`.
    pub fn new(kind: ErrorKind, field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self {
            kind,
            field: field.into(),
            problem: problem.into(),
            advice: None,
        }
    }

    /// What there is under the key `key` is not what it must be ([`Rule::Value`]).
    pub fn key(key: &str, problem: impl Into<String>) -> Self {
        let kind = ErrorKind::Malformed(Rule::Value);
        Self::new(kind, format!("key {key:?}"), problem)
    }

    /// The tensor `name` is not as it must be ([`Rule::Shape`]).
    pub fn tensor(name: &str, problem: impl Into<String>) -> Self {
        let kind = ErrorKind::Malformed(Rule::Shape);
        Self::new(kind, format!("tensor {name:?}"), problem)
    }

    /// A file that this is not for.
    pub fn unsupported(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported, field, problem)
    }

    /// The same error, breaking `rule`.
    #[must_use]
    pub fn breaking(self, rule: Rule) -> Self {
        self.of(ErrorKind::Malformed(rule))
    }

    /// The same error, of another kind.
    #[must_use]
    pub fn of(mut self, kind: ErrorKind) -> Self {
        self.kind = kind;
        self
    }

    /// The same error with advice in words.
    #[must_use]
    pub fn hint(self, words: impl Into<String>) -> Self {
        self.advise(Advice::Words(words.into()))
    }

    /// The same error with advice.
    #[must_use]
    pub fn advise(mut self, advice: Advice) -> Self {
        self.advice = Some(advice);
        self
    }
}

impl fmt::Display for FormatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.problem)
    }
}
