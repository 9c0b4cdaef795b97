//! What goes wrong in `run`, with its exit status and what to do about it.

use headshare_runtime::{ContextError, GenerateError, Model, ModelError, SamplerError};

use super::super::Exit;
use crate::chat::ChatError;

/// A mistake in how `run` was used, or in the model that it was given.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(in crate::cli) struct RunError {
    message: String,
    hint: Option<&'static str>,
    exit: Exit,
}

impl RunError {
    pub(in crate::cli) fn usage(message: impl ToString, hint: Option<&'static str>) -> Self {
        Self {
            message: message.to_string(),
            hint,
            exit: Exit::Usage,
        }
    }

    pub(in crate::cli) fn bad_input(message: impl ToString) -> Self {
        Self {
            message: message.to_string(),
            hint: None,
            exit: Exit::BadInput,
        }
    }

    pub(super) fn with_hint(self, hint: &'static str) -> Self {
        Self {
            hint: Some(hint),
            ..self
        }
    }

    pub(in crate::cli) fn hint(&self) -> Option<&str> {
        self.hint
    }

    pub(in crate::cli) fn exit(&self) -> Exit {
        self.exit
    }
}

/// An error that the model's file is to blame for.
pub(super) fn of_model(model: &Model, error: impl ToString) -> anyhow::Error {
    let path = model.file().display();
    RunError::bad_input(format!("{path}: {}", error.to_string())).into()
}

/// An error of a context; what is not for lack of room is the model's.
pub(super) fn from_context(model: &Model, error: ContextError) -> anyhow::Error {
    match error {
        ContextError::Decode(_) | ContextError::NotGenerative { .. } => of_model(model, error),
        other => anyhow::Error::new(other).context(model.file().display().to_string()),
    }
}

pub(super) fn from_sampler(model: &Model, error: SamplerError) -> anyhow::Error {
    let message = match &error {
        SamplerError::Parameter { name, range, value } => {
            let flag = match *name {
                "temp" => "--temp",
                "typical_p" => "--typical",
                "top_p" => "--top-p",
                "min_p" => "--min-p",
                "penalty_repeat" => "--repeat-penalty",
                "penalty_freq" => "--frequency-penalty",
                "penalty_present" => "--presence-penalty",
                other => other,
            };
            format!("{flag} must be {range}, not {value}")
        }
        SamplerError::Grammar(_) => error.to_string(),
        SamplerError::NotANumber | SamplerError::Failed(_) => return of_model(model, error),
        _ => return error.into(),
    };
    RunError::usage(message, None).into()
}

pub(super) fn from_generate(model: &Model, error: GenerateError) -> anyhow::Error {
    match error {
        GenerateError::EmptyPrompt => RunError::usage(
            error,
            Some("give it something to go on from: -p \"Once upon a time\""),
        )
        .into(),
        GenerateError::PromptTooLong { .. } => RunError::usage(error, Some(TOO_LONG)).into(),
        GenerateError::Model(ModelError::NotGenerative { .. }) | GenerateError::Vocab(_) => {
            of_model(model, error)
        }
        GenerateError::Context(error) => from_context(model, error),
        GenerateError::Sampler(error) => from_sampler(model, error),
        GenerateError::Show(error) => {
            anyhow::Error::new(error).context("standard output: cannot write")
        }
        other => other.into(),
    }
}

pub(super) fn from_chat(model: &Model, error: ChatError) -> anyhow::Error {
    match error {
        ChatError::Template(_) => RunError::bad_input(error)
            .with_hint("--chat-template-file FILE gives another template")
            .into(),
        ChatError::TooLong { .. } => RunError::usage(error, Some(TOO_LONG)).into(),
        ChatError::Generate(error) => from_generate(model, error),
        ChatError::Sampler(error) => from_sampler(model, error),
        ChatError::Vocab(error) => of_model(model, error),
    }
}

const TOO_LONG: &str = "-c TOKENS makes the context larger, or shorten the prompt";
