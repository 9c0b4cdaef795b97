//! Why a job came to nothing: one error, whoever found it.

mod advice;
mod classify;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use advice::Advice;
pub use classify::Classify;

/// Whose fault it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The job contradicts itself or asks for what cannot be.
    Usage,
    /// A file that was given is not what it must be.
    BadInput,
    /// A check did not hold.
    CheckFailed,
    /// Anything else.
    Failed,
}

/// Why a job came to nothing. As text it is one line: what happened, and its
/// causes, each once.
#[derive(Debug)]
pub struct Error {
    /// Whose fault it is.
    pub kind: Kind,
    /// What can be done about it.
    pub advice: Option<Advice>,
    /// What happened.
    pub source: anyhow::Error,
}

impl Error {
    /// An error of this kind, without advice.
    pub fn new(kind: Kind, source: impl Into<anyhow::Error>) -> Self {
        Self {
            kind,
            advice: None,
            source: source.into(),
        }
    }

    /// An error of this kind, in words.
    pub fn in_words(kind: Kind, message: impl fmt::Display) -> Self {
        Self::new(kind, anyhow::Error::msg(message.to_string()))
    }

    /// A job that asks for what cannot be, in words.
    pub fn usage(message: impl fmt::Display) -> Self {
        Self::in_words(Kind::Usage, message)
    }

    /// A file that is not what it must be, in words.
    pub fn bad_input(message: impl fmt::Display) -> Self {
        Self::in_words(Kind::BadInput, message)
    }

    /// Something that failed.
    pub fn failed(source: impl Into<anyhow::Error>) -> Self {
        Self::new(Kind::Failed, source)
    }

    /// The same with advice.
    #[must_use]
    pub fn advise(self, advice: Advice) -> Self {
        Self {
            advice: Some(advice),
            ..self
        }
    }

    /// The same with the advice in words.
    #[must_use]
    pub fn hint(self, words: impl Into<String>) -> Self {
        self.advise(Advice::Words(words.into()))
    }

    /// The same, said of `subject`.
    #[must_use]
    pub fn about(self, subject: impl fmt::Display) -> Self {
        Self {
            source: self.source.context(subject.to_string()),
            ..self
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        for cause in self.source.chain().map(ToString::to_string) {
            if text.is_empty() {
                text = cause;
            } else if !text.ends_with(&cause) {
                text += ": ";
                text += &cause;
            }
        }
        f.write_str(&text)
    }
}

impl std::error::Error for Error {}

/// Says what an error is about.
pub trait Context<T> {
    /// The same result, an error said of what `subject` makes.
    ///
    /// # Errors
    /// The result's own.
    fn about<S: fmt::Display>(self, subject: impl FnOnce() -> S) -> Result<T, Error>;
}

impl<T, E: Into<Error>> Context<T> for Result<T, E> {
    fn about<S: fmt::Display>(self, subject: impl FnOnce() -> S) -> Result<T, Error> {
        self.map_err(|error| error.into().about(subject()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_is_told_once() {
        let inner = anyhow::anyhow!("no such file").context("model.gguf: cannot open");
        let error = Error::failed(inner).about("converting");
        assert_eq!(
            error.to_string(),
            "converting: model.gguf: cannot open: no such file"
        );
        let repeated = Error::failed(anyhow::anyhow!("end").context("a: end"));
        assert_eq!(repeated.to_string(), "a: end");
    }

    #[test]
    fn advice_says_what_is_large_enough() {
        use headshare_eval::eval::EvalError;
        use headshare_eval::eval::choice::ChoiceError;

        let short = |n_tokens| {
            let error = EvalError::TextTooShort {
                n_tokens,
                n_ctx: 512,
                at_least: 8,
            };
            Error::from(error).advice
        };
        assert_eq!(short(300), Some(Advice::SmallerWindow(Some(256))));
        assert_eq!(short(7), Some(Advice::LongerText));
        let long = ChoiceError::TooLong {
            origin: Default::default(),
            tokens: 6,
            n_ctx: 5,
        };
        assert_eq!(Error::from(long).advice, Some(Advice::LargerContext(6)));
    }
}
