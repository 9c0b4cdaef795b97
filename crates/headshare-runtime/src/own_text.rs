//! Text that a model writes itself: windows of tokens, sampled side by side.
//!
//! After Liu and others: "LLM-QAT: Data-Free Quantization Aware Training for Large
//! Language Models" (2023): the first token is any of the vocabulary, and the model
//! goes on from there.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::batch::Batch;
use crate::context::{Context, ContextError, ContextParams};
use crate::model::Model;
use crate::sampler::{Sampler, SamplerError, SamplerParams};
use crate::vocab::{Token, Vocab};

/// Why a model writes no text.
#[derive(Debug, thiserror::Error)]
pub enum OwnTextError {
    /// It cannot be run.
    #[error(transparent)]
    Context(#[from] ContextError),
    /// No token can be picked.
    #[error(transparent)]
    Sampler(#[from] SamplerError),
    /// There is nothing to begin with.
    #[error("the model's vocabulary has no token of text")]
    NoText,
    /// llama.cpp gives no logits.
    #[error("llama.cpp gave no logits")]
    NoLogits,
}

/// `windows` windows of `window` tokens each, one after the other. Each begins with the
/// token that begins a text, if the model has one and uses it. The same model, numbers
/// and threads give the same tokens. `progress` goes from 0 to 1.
///
/// # Errors
/// When the model cannot be run, or computes no numbers.
pub fn write_windows(
    model: &Arc<Model>,
    windows: u32,
    window: u32,
    n_threads: Option<u32>,
    stop: &Arc<AtomicBool>,
    progress: &dyn Fn(f64),
) -> Result<Vec<Token>, OwnTextError> {
    let params = ContextParams {
        n_ctx: Some(windows.saturating_mul(window)),
        n_batch: windows.max(1),
        n_ubatch: windows.max(1),
        n_seq_max: windows,
        n_threads,
        reproducible: true,
        stop: Arc::clone(stop),
        ..ContextParams::default()
    };
    let mut context = Context::new(model, &params)?;
    context.check_generative()?;
    let first = first_tokens(model.vocab(), windows as usize).ok_or(OwnTextError::NoText)?;
    let begin = model.vocab().leading_bos();
    let mut samplers = (0..windows)
        .map(|seed| {
            let params = SamplerParams {
                temp: 1.0,
                top_k: 0,
                top_p: 1.0,
                min_p: 0.05,
                seed: Some(seed),
                ..SamplerParams::default()
            };
            Sampler::new(model, &params)
        })
        .collect::<Result<Vec<_>, _>>()?;
    let mut written: Vec<Vec<Token>> = (first.into_iter())
        .map(|first| begin.into_iter().chain([first]).collect())
        .collect();
    let mut batch = Batch::new();
    for position in 0..window.saturating_sub(1) {
        let at = position as usize;
        batch.clear();
        let mut asked = Vec::new();
        for (i, tokens) in written.iter().enumerate() {
            let is_last = at + 1 == tokens.len();
            batch.add(tokens[at], position, &[i as u32], is_last);
            if is_last {
                asked.push(i);
            }
        }
        context.decode_batch(&batch)?;
        for (output, &i) in asked.iter().enumerate() {
            let logits = context.logits_at(output).ok_or(OwnTextError::NoLogits)?;
            let token = samplers[i].sample(logits)?;
            samplers[i].accept(token, true)?;
            written[i].push(token);
        }
        progress(f64::from(position + 1) / f64::from(window - 1));
    }
    let whole = written.into_iter().flat_map(|mut tokens| {
        tokens.truncate(window as usize);
        tokens
    });
    Ok(whole.collect())
}

/// So many tokens of text, all over the vocabulary.
fn first_tokens(vocab: Vocab<'_>, n: usize) -> Option<Vec<Token>> {
    let is_text = |token: &Token| {
        let piece = vocab.token_to_piece(*token, false);
        !vocab.is_eog(*token) && piece.is_ok_and(|piece| !piece.is_empty())
    };
    let all: Vec<Token> = (0..vocab.n_tokens()).filter(is_text).collect();
    // Steps of the golden ratio are spread evenly whatever their number.
    let place = |i: usize| {
        let turn = (i as f64 * 0.618_033_988_749_894_9).fract();
        (turn * all.len() as f64) as usize
    };
    (!all.is_empty()).then(|| (0..n).map(|i| all[place(i)]).collect())
}
