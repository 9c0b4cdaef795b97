//! Generates text: evaluates a prompt in batches, then picks and evaluates
//! token by token until something ends it.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::context::{Context, ContextError};
use crate::model::ModelError;
use crate::sampler::{Sampler, SamplerError};
use crate::stop::StopStrings;
use crate::utf8::Utf8Stream;
use crate::vocab::{Token, VocabError};

/// Why generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StopReason {
    /// The model ended its text (or turn).
    #[serde(rename = "eog")]
    EndOfGeneration,
    /// As many tokens as were asked for.
    Limit,
    /// A stop string came.
    #[serde(rename = "string")]
    StopString,
    /// No room for another token in the context.
    #[serde(rename = "context")]
    ContextFull,
    /// The context's stop flag was set.
    Interrupted,
}

/// Why text could not be generated.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// There is nothing to start from.
    #[error("the prompt is empty and the model adds no BOS token to begin with")]
    EmptyPrompt,
    /// The prompt leaves no room for an answer.
    #[error("the prompt has {n_prompt} tokens and the context holds {n_ctx}")]
    PromptTooLong {
        /// Tokens of the prompt.
        n_prompt: usize,
        /// Tokens of context.
        n_ctx: u32,
    },
    /// The model is not one that generates.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Evaluation failed.
    #[error(transparent)]
    Context(#[from] ContextError),
    /// Picking a token failed.
    #[error(transparent)]
    Sampler(#[from] SamplerError),
    /// A token could not be turned into text.
    #[error(transparent)]
    Vocab(#[from] VocabError),
    /// The text could not be shown.
    #[error("cannot write the text")]
    Show(#[source] std::io::Error),
}

/// A text that was generated to its end.
#[derive(Clone, Debug)]
pub struct Generated {
    /// The text, up to the stop string if one came.
    pub text: String,
    /// The tokens, those of a stop string too.
    pub tokens: Vec<Token>,
    /// Why it ended.
    pub stop: StopReason,
    /// How long the parts took.
    pub timings: Timings,
}

/// How long the parts took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timings {
    /// Tokens of the prompt that were evaluated.
    pub n_prefill: usize,
    /// Time that took.
    pub prefill: Duration,
    /// Generated tokens that were evaluated (the last one mostly is not).
    pub n_decode: usize,
    /// Time that took, without picking tokens.
    pub decode: Duration,
    /// Tokens picked.
    pub n_sample: usize,
    /// Time that took.
    pub sample: Duration,
}

impl std::ops::AddAssign for Timings {
    fn add_assign(&mut self, other: Self) {
        self.n_prefill += other.n_prefill;
        self.prefill += other.prefill;
        self.n_decode += other.n_decode;
        self.decode += other.decode;
        self.n_sample += other.n_sample;
        self.sample += other.sample;
    }
}

impl Timings {
    /// Prompt tokens a second; 0 before any.
    pub fn prefill_tps(&self) -> f64 {
        per_second(self.n_prefill, self.prefill)
    }

    /// Generated tokens a second; 0 before any.
    pub fn decode_tps(&self) -> f64 {
        per_second(self.n_decode, self.decode)
    }
}

fn per_second(count: usize, time: Duration) -> f64 {
    if count == 0 || time.is_zero() {
        0.0
    } else {
        count as f64 / time.as_secs_f64()
    }
}

/// One generation in progress.
pub struct Generator<'a> {
    context: &'a mut Context,
    sampler: &'a mut Sampler,
    /// Tokens still to give; `None` means until something else ends it.
    left: Option<usize>,
    /// Picked, given out, and not yet evaluated.
    pending: Option<Token>,
    stop_reason: Option<StopReason>,
    timings: Timings,
}

impl<'a> Generator<'a> {
    /// Evaluates a prompt. `n_predict` bounds the tokens to generate; `None`
    /// goes on until the model, the context or the stop flag ends it.
    pub fn new(
        context: &'a mut Context,
        sampler: &'a mut Sampler,
        prompt: &[Token],
        n_predict: Option<usize>,
    ) -> Result<Self, GenerateError> {
        context.model().check_generative()?;
        context.check_generative()?;
        if prompt.is_empty() {
            return Err(GenerateError::EmptyPrompt);
        }
        let room = context.n_ctx_seq().saturating_sub(context.n_past()) as usize;
        // One token must fit behind it, or there is nothing to generate.
        if prompt.len() >= room {
            return Err(GenerateError::PromptTooLong {
                n_prompt: prompt.len(),
                n_ctx: context.n_ctx_seq(),
            });
        }
        let mut generator = Self {
            context,
            sampler,
            left: n_predict,
            pending: None,
            stop_reason: None,
            timings: Timings::default(),
        };
        generator.prefill(prompt)?;
        Ok(generator)
    }

    fn prefill(&mut self, prompt: &[Token]) -> Result<(), GenerateError> {
        let started = Instant::now();
        // What is computed at once is handed over at once, so that the number of
        // threads is chosen anew for each part.
        let part = self.context.n_batch().min(self.context.n_ubatch()).max(1);
        for batch in prompt.chunks(part as usize) {
            if !self.evaluate(batch)? {
                break;
            }
            self.timings.n_prefill += batch.len();
            for &token in batch {
                self.sampler.accept(token, false)?;
            }
        }
        self.timings.prefill = started.elapsed();
        Ok(())
    }

    /// Evaluates tokens; false when that was interrupted.
    fn evaluate(&mut self, tokens: &[Token]) -> Result<bool, GenerateError> {
        if !self.context.is_stopped() {
            match self.context.decode(tokens) {
                Ok(()) => return Ok(true),
                Err(ContextError::Interrupted) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.stop_reason = Some(StopReason::Interrupted);
        Ok(false)
    }

    /// The next token; `None` at the end, for which [`Generator::stop_reason`]
    /// then has the reason. The token that ends a text is not given.
    pub fn next_token(&mut self) -> Result<Option<Token>, GenerateError> {
        if self.stop_reason.is_some() {
            return Ok(None);
        }
        if self.left == Some(0) {
            return Ok(self.end(StopReason::Limit));
        }
        if let Some(token) = self.pending.take() {
            if self.context.n_past() >= self.context.n_ctx_seq() {
                return Ok(self.end(StopReason::ContextFull));
            }
            let started = Instant::now();
            match self.evaluate(&[token]) {
                Ok(true) => {}
                Ok(false) => return Ok(None),
                // Some models' memory is full earlier than the context.
                Err(GenerateError::Context(ContextError::Full { .. })) => {
                    return Ok(self.end(StopReason::ContextFull));
                }
                Err(error) => return Err(error),
            }
            self.timings.decode += started.elapsed();
            self.timings.n_decode += 1;
        }
        if self.context.is_stopped() {
            return Ok(self.end(StopReason::Interrupted));
        }
        let started = Instant::now();
        let logits = self
            .context
            .logits()
            .ok_or_else(|| ContextError::Decode("it gave no logits".into()))?;
        let token = self.sampler.sample(logits)?;
        self.sampler.accept(token, true)?;
        self.timings.sample += started.elapsed();
        self.timings.n_sample += 1;
        if self.context.model().vocab().is_eog(token) {
            return Ok(self.end(StopReason::EndOfGeneration));
        }
        self.pending = Some(token);
        if let Some(left) = &mut self.left {
            *left -= 1;
        }
        Ok(Some(token))
    }

    fn end(&mut self, reason: StopReason) -> Option<Token> {
        self.stop_reason = Some(reason);
        None
    }

    /// The bytes of a token, as [`crate::Utf8Stream`] takes them.
    pub fn piece(&self, token: Token) -> Result<Vec<u8>, GenerateError> {
        let vocab = self.context.model().vocab();
        Ok(vocab.token_to_piece(token, false)?)
    }

    /// Generates until something ends it, and hands the text to `show` as it
    /// comes. What could still become one of the `stops` is held back, and they
    /// themselves are not shown. `show` returns false when nobody looks any
    /// longer, which ends it too.
    pub fn write_text(
        mut self,
        stops: &[String],
        mut show: impl FnMut(&str) -> std::io::Result<bool>,
    ) -> Result<Generated, GenerateError> {
        let mut utf8 = Utf8Stream::new();
        let mut stops = StopStrings::new(stops);
        let (mut tokens, mut text) = (Vec::new(), String::new());
        let mut give = |piece: &str, text: &mut String| {
            text.push_str(piece);
            if piece.is_empty() {
                return Ok(true);
            }
            show(piece).map_err(GenerateError::Show)
        };
        let mut stop = None;
        while stop.is_none()
            && let Some(token) = self.next_token()?
        {
            tokens.push(token);
            let piece = stops.push(&utf8.push(&self.piece(token)?));
            if !give(&piece, &mut text)? {
                stop = Some(StopReason::Interrupted);
            } else if stops.is_hit() {
                stop = Some(StopReason::StopString);
            }
        }
        let stop = stop.or(self.stop_reason).unwrap_or(StopReason::Interrupted);
        if stop != StopReason::StopString {
            let rest = stops.push(&utf8.finish()) + &stops.finish();
            give(&rest, &mut text)?;
        }
        Ok(Generated {
            text,
            tokens,
            stop,
            timings: self.timings,
        })
    }

    /// Why generation ended; `None` while it goes on.
    pub fn stop_reason(&self) -> Option<StopReason> {
        self.stop_reason
    }

    /// How long the parts have taken so far.
    pub fn timings(&self) -> Timings {
        self.timings
    }
}
