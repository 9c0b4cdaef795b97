//! One loaded model run once unmeasured and once measured.

use std::time::{Duration, Instant};

use headshare_convert::random::SplitMix64;
use headshare_runtime::threads::processor_time;
use headshare_runtime::{Context, ContextError, Token, Vocab};
use serde::{Deserialize, Serialize};

/// What is run, in tokens; the same for all that is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpeedTest {
    /// Of the prompt; 0 leaves prefill out.
    pub n_prompt: u32,
    /// Generated; 0 leaves decode out.
    pub n_gen: u32,
    /// Handed to llama.cpp at once.
    pub n_batch: u32,
    /// Computed at once.
    pub n_ubatch: u32,
}

/// Time by the clock, and of all processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Elapsed {
    /// By the clock.
    pub ns: u64,
    /// Of all processors; null where the system does not tell.
    pub cpu_ns: Option<u64>,
}

impl Elapsed {
    /// By the clock, in ms.
    pub fn ms(self) -> f64 {
        self.ns as f64 / 1e6
    }
}

/// Measures how long something takes.
#[derive(Debug)]
pub struct Clock {
    started: Instant,
    cpu: Option<Duration>,
}

impl Clock {
    /// Begins now.
    pub fn start() -> Self {
        Self {
            cpu: processor_time(),
            started: Instant::now(),
        }
    }

    /// Since it began.
    pub fn elapsed(&self) -> Elapsed {
        let ns = self.started.elapsed().as_nanos() as u64;
        let cpu = processor_time().zip(self.cpu);
        Elapsed {
            ns,
            cpu_ns: cpu.map(|(now, then)| now.saturating_sub(then).as_nanos() as u64),
        }
    }
}

/// How long a test took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timed {
    /// The prompt; `None` where it was left out.
    pub prefill: Option<Elapsed>,
    /// Generating; `None` where it was left out.
    pub decode: Option<Elapsed>,
}

impl SpeedTest {
    /// Runs a part of it unmeasured, so that every weight is touched and every
    /// buffer is there, and then all of it.
    ///
    /// # Errors
    /// When llama.cpp cannot evaluate the tokens.
    pub fn run(
        &self,
        context: &mut Context,
        tokens: &mut RandomTokens,
    ) -> Result<Timed, ContextError> {
        prefill(context, tokens, self.n_prompt.min(self.n_ubatch))?;
        decode(context, tokens, self.n_gen.min(1))?;
        let prefill = (self.n_prompt > 0).then(|| prefill(context, tokens, self.n_prompt));
        let prefill = prefill.transpose()?;
        let decode = (self.n_gen > 0).then(|| decode(context, tokens, self.n_gen));
        Ok(Timed {
            prefill,
            decode: decode.transpose()?,
        })
    }
}

/// Evaluates a prompt of `count` tokens in an empty context.
fn prefill(
    context: &mut Context,
    tokens: &mut RandomTokens,
    count: u32,
) -> Result<Elapsed, ContextError> {
    let prompt = tokens.text(count);
    context.clear();
    let clock = Clock::start();
    let part = context.n_batch().min(context.n_ubatch());
    for batch in prompt.chunks(part as usize) {
        context.decode(batch)?;
    }
    Ok(clock.elapsed())
}

/// Evaluates `count` tokens one after the other in an empty context.
fn decode(
    context: &mut Context,
    tokens: &mut RandomTokens,
    count: u32,
) -> Result<Elapsed, ContextError> {
    let text = tokens.text(count);
    context.clear();
    let clock = Clock::start();
    for token in text {
        context.decode(&[token])?;
    }
    Ok(clock.elapsed())
}

/// Random tokens, the same in every process; a text begins with BOS where the
/// model adds one.
#[derive(Debug)]
pub struct RandomTokens {
    bos: Option<Token>,
    n_tokens: u64,
    numbers: SplitMix64,
}

impl RandomTokens {
    /// Of `vocab`; `None` where it has no tokens.
    pub fn of(vocab: Vocab<'_>) -> Option<Self> {
        let n_tokens = u64::try_from(vocab.n_tokens()).ok().filter(|n| *n > 0)?;
        Some(Self {
            bos: vocab.leading_bos(),
            n_tokens,
            numbers: SplitMix64::new(1, 0),
        })
    }

    fn text(&mut self, len: u32) -> Vec<Token> {
        (0..len)
            .map(|i| match self.bos {
                Some(bos) if i == 0 => bos,
                _ => self.numbers.below(self.n_tokens) as Token,
            })
            .collect()
    }
}
