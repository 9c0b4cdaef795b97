//! Measures models: how well they predict a text, how far they are from
//! another model, and how well they answer and write.
//!
//! [`perplexity`] runs windows of a text through one model, or through two in
//! lockstep; [`stats`](headshare_convert::stats) has the formulas. [`choice`] answers
//! multiple-choice questions by log-likelihood. [`generate`] goes on from prompts, and
//! [`bleu`] and [`meteor`] compare that with references.

pub mod bleu;
pub mod choice;
pub mod generate;
pub mod meteor;
pub mod perplexity;
pub mod task_file;

use headshare_runtime::{ContextError, ModelError, VocabError};

/// Why a model could not be evaluated.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// There is no text.
    #[error("the text is empty")]
    EmptyText,
    /// Not one window of text.
    #[error("the text has {n_tokens} tokens, which is less than one window of {n_ctx}")]
    TextTooShort {
        /// Tokens of the text.
        n_tokens: usize,
        /// Tokens of a window.
        n_ctx: u32,
        /// The smallest window that can be evaluated.
        at_least: u32,
    },
    /// A window beyond the last position that a model knows.
    #[error(
        "{architecture} models have no positions beyond {n_positions}, and windows have {n_ctx} tokens"
    )]
    WindowTooLarge {
        /// `general.architecture`.
        architecture: String,
        /// Positions that there are.
        n_positions: u32,
        /// Tokens of a window.
        n_ctx: u32,
    },
    /// A model and its reference do not count in the same tokens.
    #[error("the models have different vocabularies: {0}")]
    Vocabularies(String),
    /// A model that computes nonsense.
    #[error(
        "the {which} gives token {token} of window {window} no probability: its logits are not \
         numbers, or infinite"
    )]
    NotNumbers {
        /// "model" or "model or its reference".
        which: &'static str,
        /// The window, counted from 0.
        window: usize,
        /// The token in it.
        token: u32,
    },
    /// Threads that could not be started.
    #[error("cannot start threads: {0}")]
    Threads(String),
    /// A model that does not predict text.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// llama.cpp failed.
    #[error(transparent)]
    Context(#[from] ContextError),
    /// The text could not be turned into tokens.
    #[error(transparent)]
    Vocab(#[from] VocabError),
}

impl EvalError {
    /// Whether a file that was given is to blame.
    pub fn is_bad_input(&self) -> bool {
        match self {
            Self::EmptyText
            | Self::TextTooShort { .. }
            | Self::Vocabularies(_)
            | Self::NotNumbers { .. }
            | Self::Model(_)
            | Self::Vocab(_) => true,
            Self::Context(error) => matches!(
                error,
                ContextError::Decode(_) | ContextError::NotGenerative { .. }
            ),
            Self::WindowTooLarge { .. } | Self::Threads(_) => false,
        }
    }
}
