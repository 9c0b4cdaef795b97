//! Perplexity of a text, and divergence from a reference model on it.
//!
//! The definition is that of llama.cpp's `llama-perplexity`
//! (`tools/perplexity/perplexity.cpp`), with which the figures agree: the text
//! is one run of tokens, with BOS before it where the vocabulary wants that,
//! cut into windows of `n_ctx`; a rest that fills no window is left out. Each
//! window is evaluated by itself, its first token replaced by BOS where the
//! vocabulary wants one. The tokens behind position `n_ctx / 2` are scored,
//! each by the logits of the one before, so that all of them have half a
//! window of context at least. Perplexity is exp of the mean negative
//! log-likelihood of the scored tokens, and its standard error follows from
//! their spread. As there, `n_batch / n_ctx` windows are evaluated side by
//! side, as sequences of one batch.
//!
//! A reference model, as for its `--kl-divergence`, goes through the same
//! batches in lockstep. Logits of both are read where llama.cpp has them, a
//! batch at a time; of all that came before, a handful of numbers a token is
//! kept.

use std::sync::Arc;

use headshare_convert::stats::{self, Comparison, Estimate, Pairs, Prediction, Sums};
use headshare_runtime::{Batch, Context, ContextParams, Model, Token};
use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

use super::EvalError;

/// The smallest window: three scored tokens.
pub const MIN_CTX: u32 = 8;
/// The largest number of windows in a batch, which is llama.cpp's.
const MAX_SEQUENCES: u32 = 256;

/// How a text is evaluated.
#[derive(Clone, Debug)]
pub struct Params {
    /// Tokens of a window.
    pub n_ctx: u32,
    /// Tokens evaluated at once: windows side by side, or parts of one.
    pub n_batch: u32,
    /// Windows to evaluate at most; `None` means all.
    pub chunks: Option<usize>,
    /// Threads; `None` means one a physical core.
    pub n_threads: Option<u32>,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            n_ctx: 512,
            n_batch: 2048,
            chunks: None,
            n_threads: None,
        }
    }
}

/// How far an evaluation is.
#[derive(Clone, Copy, Debug)]
pub struct Running {
    /// Windows that are done.
    pub chunks: usize,
    /// Windows that there are.
    pub of: usize,
    /// Perplexity of those that are done.
    pub perplexity: f64,
    /// Mean divergence from the reference, where there is one.
    pub divergence: Option<f64>,
}

/// How well a model predicts a text.
#[derive(Clone, Debug)]
pub struct Perplexity {
    /// Perplexity.
    pub perplexity: Estimate,
    /// Tokens that were scored.
    pub tokens: u64,
    /// Windows that were evaluated.
    pub chunks: usize,
    /// Windows that the text has.
    pub chunks_of_text: usize,
    /// Against the reference, where there is one.
    pub against: Option<Against>,
}

/// How far a model is from a reference, on the scored tokens.
#[derive(Clone, Debug)]
pub struct Against {
    /// The reference's perplexity.
    pub perplexity: Estimate,
    /// The model's perplexity over the reference's.
    pub ratio: Estimate,
    /// Its logarithm.
    pub ln_ratio: Estimate,
    /// Correlation of the two models' log-likelihoods; `None` where they do
    /// not vary.
    pub correlation: Option<f64>,
    /// Mean Kullback-Leibler divergence of the model from the reference.
    pub divergence: Estimate,
    /// Half of the tokens have a smaller divergence.
    pub divergence_median: f64,
    /// 99 of 100 tokens have a smaller divergence.
    pub divergence_p99: f64,
    /// The largest divergence.
    pub divergence_max: f64,
    /// The share of tokens where both find the same token most probable.
    pub same_top: Estimate,
    /// Mean change of the probability of the token that came.
    pub delta_p: Estimate,
    /// The root of its mean square.
    pub delta_p_rms: Estimate,
    /// The largest change, up or down.
    pub delta_p_max: f64,
}

/// Evaluates `model` on `text`, against `base` where there is one. `progress`
/// is told before the first batch and after each.
///
/// # Errors
/// [`EvalError`]: a text that fills no window, a model that does not predict
/// text, a reference with another vocabulary, and what llama.cpp fails at.
pub fn perplexity(
    model: &Arc<Model>,
    base: Option<&Arc<Model>>,
    text: &str,
    params: &Params,
    progress: &mut dyn FnMut(Running),
) -> Result<Perplexity, EvalError> {
    let n_ctx = params.n_ctx.max(MIN_CTX);
    let tokens = tokens_for(model, text, n_ctx)?;
    let windows: Vec<&[Token]> = tokens.chunks_exact(n_ctx as usize).collect();
    let chunks_of_text = windows.len();
    let chunks = params.chunks.unwrap_or(usize::MAX).clamp(1, chunks_of_text);
    let windows = &windows[..chunks];

    let shape = Shape::new(n_ctx, params.n_batch, chunks);
    let mut context = shape.context(model, params.n_threads)?;
    let mut base_context = match base {
        Some(base) => {
            let base_context = shape.context(base, params.n_threads)?;
            same_vocabulary(model, base)?;
            same_tokens(&tokens, &tokenize(base, text)?)?;
            Some(base_context)
        }
        None => None,
    };
    let pool = ThreadPoolBuilder::new()
        .num_threads(context.n_threads() as usize)
        .build()
        .map_err(|e| EvalError::Threads(e.to_string()))?;
    let vocab = model.vocab();
    let bos = vocab.leading_bos();

    let mut tally = Tally::default();
    let against = base.is_some();
    let mut tell = |chunks: usize, tally: &Tally| {
        progress(Running {
            chunks,
            of: windows.len(),
            perplexity: tally.nll.first.mean().exp(),
            divergence: against.then(|| tally.divergence.mean()),
        });
    };
    tell(0, &tally);
    for (i, group) in windows.chunks(shape.n_seq as usize).enumerate() {
        context.clear();
        if let Some(base) = &mut base_context {
            base.clear();
        }
        for part in shape.parts() {
            let (batch, scored) = part_of_windows(group, part, &shape, bos);
            context.decode_batch(&batch)?;
            if let Some(base) = &mut base_context {
                base.decode_batch(&batch)?;
            }
            let window = i * shape.n_seq as usize;
            tally.score(&pool, &context, base_context.as_ref(), &scored, window)?;
        }
        tell(i * shape.n_seq as usize + group.len(), &tally);
    }
    Ok(tally.result(chunks, chunks_of_text, against))
}

/// The tokens of a text, at least one window of them.
fn tokens_for(model: &Model, text: &str, n_ctx: u32) -> Result<Vec<Token>, EvalError> {
    if text.is_empty() {
        return Err(EvalError::EmptyText);
    }
    let tokens = tokenize(model, text)?;
    if tokens.len() < n_ctx as usize {
        return Err(EvalError::TextTooShort {
            n_tokens: tokens.len(),
            n_ctx,
            at_least: MIN_CTX,
        });
    }
    Ok(tokens)
}

/// Checks that `model` can be evaluated on `text`, without evaluating it.
///
/// # Errors
/// As [`perplexity`], but for what only evaluating shows.
pub fn check(model: &Model, text: &str, n_ctx: u32) -> Result<(), EvalError> {
    let n_ctx = n_ctx.max(MIN_CTX);
    tokens_for(model, text, n_ctx)?;
    check_positions(model, n_ctx)
}

fn check_positions(model: &Model, n_ctx: u32) -> Result<(), EvalError> {
    match model.n_positions().filter(|&n| n < n_ctx) {
        Some(n_positions) => Err(EvalError::WindowTooLarge {
            architecture: model.architecture(),
            n_positions,
            n_ctx,
        }),
        None => Ok(()),
    }
}

/// How windows go into batches.
struct Shape {
    n_ctx: u32,
    /// Tokens of one window in a batch.
    n_part: u32,
    /// Windows in a batch.
    n_seq: u32,
}

impl Shape {
    fn new(n_ctx: u32, n_batch: u32, chunks: usize) -> Self {
        let side_by_side = (n_batch / n_ctx).clamp(1, MAX_SEQUENCES);
        let chunks = u32::try_from(chunks).unwrap_or(u32::MAX);
        Self {
            n_ctx,
            n_part: n_batch.clamp(1, n_ctx),
            n_seq: side_by_side.min(chunks),
        }
    }

    fn context(&self, model: &Arc<Model>, n_threads: Option<u32>) -> Result<Context, EvalError> {
        model.check_generative()?;
        check_positions(model, self.n_ctx)?;
        let context = Context::new(
            model,
            &ContextParams {
                n_ctx: Some(self.n_ctx.saturating_mul(self.n_seq)),
                n_batch: self.n_part.saturating_mul(self.n_seq),
                n_seq_max: self.n_seq,
                n_threads,
                reproducible: true,
                ..ContextParams::default()
            },
        )?;
        context.check_generative()?;
        Ok(context)
    }

    /// Positions of a window that go into one batch, batch after batch.
    fn parts(&self) -> impl Iterator<Item = std::ops::Range<u32>> + use<> {
        let (n_ctx, n_part) = (self.n_ctx, self.n_part);
        (0..n_ctx)
            .step_by(n_part as usize)
            .map(move |first| first..first.saturating_add(n_part).min(n_ctx))
    }
}

/// The token that an output of a batch is to predict.
#[derive(Clone, Copy, Debug)]
struct Scored {
    /// Which output of the batch.
    output: usize,
    /// The window, counted from the batch's first.
    window: usize,
    /// The token's position in it.
    position: u32,
    token: Token,
}

/// The batch of the positions `part` of some windows, and what is scored of it.
fn part_of_windows(
    windows: &[&[Token]],
    part: std::ops::Range<u32>,
    shape: &Shape,
    bos: Option<Token>,
) -> (Batch, Vec<Scored>) {
    let (mut batch, mut scored, mut outputs) = (Batch::new(), Vec::new(), 0);
    let first = shape.n_ctx / 2;
    for (sequence, window) in (0u32..).zip(windows) {
        for position in part.clone() {
            let token = match (position, bos) {
                (0, Some(bos)) => bos,
                _ => window[position as usize],
            };
            let wanted = position >= first;
            batch.add(token, position, &[sequence], wanted);
            if !wanted {
                continue;
            }
            // The last token's logits are about the next window's first.
            if let Some(&token) = window.get(position as usize + 1) {
                scored.push(Scored {
                    output: outputs,
                    window: sequence as usize,
                    position: position + 1,
                    token,
                });
            }
            outputs += 1;
        }
    }
    (batch, scored)
}

/// What is kept of the scored tokens.
#[derive(Default)]
struct Tally {
    /// Negative log-likelihoods: the model's and the reference's (0 without).
    nll: Pairs,
    divergence: Sums,
    divergences: Vec<f64>,
    delta_p: Sums,
    delta_p_squared: Sums,
    delta_p_max: f64,
    same_top: u64,
}

impl Tally {
    /// Scores the outputs of one batch, in parallel, and adds them up in their
    /// order: the result does not depend on the number of threads.
    fn score(
        &mut self,
        pool: &ThreadPool,
        context: &Context,
        base: Option<&Context>,
        scored: &[Scored],
        first_window: usize,
    ) -> Result<(), EvalError> {
        let read: Vec<_> = scored
            .iter()
            .map(|scored| Read {
                target: usize::try_from(scored.token).unwrap_or(usize::MAX),
                logits: context.logits_at(scored.output).unwrap_or(&[]),
                base: base.map(|base| base.logits_at(scored.output).unwrap_or(&[])),
            })
            .collect();
        let found: Vec<Option<Found>> = pool.install(|| read.par_iter().map(Read::find).collect());
        for (scored, found) in scored.iter().zip(found) {
            match found.ok_or(EvalError::NotNumbers {
                which: if base.is_some() {
                    "model or its reference"
                } else {
                    "model"
                },
                window: first_window + scored.window,
                token: scored.position,
            })? {
                Found::Alone(prediction) => self.nll.add(prediction.nll, 0.0),
                Found::Against(comparison) => self.add(comparison),
            }
        }
        Ok(())
    }

    fn add(&mut self, both: Comparison) {
        self.nll.add(both.model.nll, both.base.nll);
        self.divergence.add(both.divergence);
        self.divergences.push(both.divergence);
        self.same_top += u64::from(both.model.top == both.base.top);
        let delta_p = (-both.model.nll).exp() - (-both.base.nll).exp();
        self.delta_p.add(delta_p);
        self.delta_p_squared.add(delta_p * delta_p);
        self.delta_p_max = self.delta_p_max.max(delta_p.abs());
    }

    fn result(mut self, chunks: usize, chunks_of_text: usize, against: bool) -> Perplexity {
        let exp = |ln: Estimate| ln.map(ln.value.exp(), ln.value.exp());
        let tokens = self.nll.first.count();
        let perplexity = exp(self.nll.first.estimate());
        let against = against.then(|| {
            stats::sort(&mut self.divergences);
            let squared = self.delta_p_squared.estimate();
            let rms = squared.value.sqrt();
            let slope = if rms > 0.0 { 0.5 / rms } else { 0.0 };
            let ln_ratio = self.nll.difference();
            Against {
                perplexity: exp(self.nll.second.estimate()),
                ratio: exp(ln_ratio),
                ln_ratio,
                correlation: self.nll.correlation(),
                divergence: self.divergence.estimate(),
                divergence_median: stats::quantile(&self.divergences, 0.5),
                divergence_p99: stats::quantile(&self.divergences, 0.99),
                divergence_max: stats::quantile(&self.divergences, 1.0),
                same_top: stats::share(self.same_top, tokens),
                delta_p: self.delta_p.estimate(),
                delta_p_rms: squared.map(rms, slope),
                delta_p_max: self.delta_p_max,
            }
        });
        Perplexity {
            perplexity,
            tokens,
            chunks,
            chunks_of_text,
            against,
        }
    }
}

/// One output to read.
struct Read<'a> {
    target: usize,
    logits: &'a [f32],
    base: Option<&'a [f32]>,
}

/// What one output says.
enum Found {
    Alone(Prediction),
    Against(Comparison),
}

impl Read<'_> {
    fn find(&self) -> Option<Found> {
        match self.base {
            None => stats::predict(self.logits, self.target).map(Found::Alone),
            Some(base) => stats::compare(self.logits, base, self.target).map(Found::Against),
        }
    }
}

fn tokenize(model: &Model, text: &str) -> Result<Vec<Token>, EvalError> {
    model.check_generative()?;
    // As llama-perplexity: what looks like a control token is plain text.
    Ok(model.vocab().tokenize(text, true, false)?)
}

/// Logits of two models can be compared when each stands for the same token.
fn same_vocabulary(model: &Model, base: &Model) -> Result<(), EvalError> {
    let differ = |what: String| Err(EvalError::Vocabularies(what));
    let (model, base) = (model.vocab(), base.vocab());
    let (n, n_base) = (model.n_tokens(), base.n_tokens());
    if n != n_base {
        return differ(format!("{n} tokens, and {n_base} in the reference"));
    }
    for token in 0..n {
        let (text, text_base) = (
            model.token_to_piece(token, true)?,
            base.token_to_piece(token, true)?,
        );
        if text != text_base {
            let show = |text: &[u8]| format!("{:?}", String::from_utf8_lossy(text));
            return differ(format!(
                "token {token} is {}, and {} in the reference",
                show(&text),
                show(&text_base)
            ));
        }
    }
    if model.leading_bos() != base.leading_bos() {
        return differ("one begins texts with another BOS token, or with none".to_owned());
    }
    Ok(())
}

fn same_tokens(tokens: &[Token], base: &[Token]) -> Result<(), EvalError> {
    if tokens == base {
        return Ok(());
    }
    let same = tokens.iter().zip(base).take_while(|(a, b)| a == b).count();
    Err(EvalError::Vocabularies(format!(
        "the text's tokens are others in the reference, from number {same} on"
    )))
}
