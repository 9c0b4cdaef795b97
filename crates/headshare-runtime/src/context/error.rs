//! Why a context could not be made or used.

use crate::batch::BatchError;

/// Why a context could not be made or used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ContextError {
    /// A parameter that llama.cpp would abort or divide by zero on.
    #[error("{0} must be at least 1")]
    Zero(&'static str),
    /// llama.cpp makes no context; mostly for lack of memory.
    #[error("cannot make a context of {n_ctx} tokens: {reason}")]
    Init {
        /// Tokens asked for.
        n_ctx: u32,
        /// llama.cpp's own words.
        reason: String,
    },
    /// The system starts no more threads, for lack of memory or by a limit.
    #[error("cannot start {n} threads: {reason}")]
    Threads {
        /// Threads asked for.
        n: u32,
        /// The system's own words.
        reason: String,
    },
    /// The tokens cannot be evaluated, or not at once.
    // Its text has the other's in it: it is no further source.
    #[error("invalid batch: {0}")]
    Batch(BatchError),
    /// A sequence operation that this context cannot do.
    #[error("{0}")]
    Sequence(String),
    /// The context holds as many tokens as it can.
    #[error("the context of {n_ctx} tokens is full")]
    Full {
        /// Its size in tokens.
        n_ctx: u32,
    },
    /// The model does not generate text token by token.
    #[error("{architecture} models do not generate text: they are encoders")]
    NotGenerative {
        /// `general.architecture`.
        architecture: String,
    },
    /// The stop flag was set.
    #[error("evaluation was interrupted")]
    Interrupted,
    /// The observer ended the evaluation.
    #[error("the observer ended the evaluation")]
    Halted,
    /// The context was not made to be watched.
    #[error("the context cannot be watched: ContextParams::observable is not set")]
    NotObservable,
    /// llama.cpp failed to evaluate tokens.
    #[error("llama.cpp failed to evaluate: {0}")]
    Decode(String),
}

impl From<BatchError> for ContextError {
    fn from(error: BatchError) -> Self {
        Self::Batch(error)
    }
}
