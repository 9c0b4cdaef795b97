//! Picks the next token from logits: llama.cpp's sampler chain in llama-cli's
//! order, with an optional grammar.

use std::ffi::CString;
use std::ptr::NonNull;

use ggml_sys as sys;
use serde::{Deserialize, Serialize};

use crate::guard;
use crate::model::Model;
use crate::vocab::{Token, Vocab};

/// How tokens are picked; llama.cpp's names and llama-cli's defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SamplerParams {
    /// Softens (above 1) or sharpens the distribution. 0 or less takes the
    /// most probable token, always.
    pub temp: f32,
    /// Keep this many of the most probable tokens; 0 or less keeps all.
    pub top_k: i32,
    /// Keep the tokens whose information is closest to the distribution's, up to
    /// this summed probability; 1 keeps all.
    pub typical_p: f32,
    /// Keep the most probable tokens up to this summed probability; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least this probable relative to the most probable; 0
    /// keeps all.
    pub min_p: f32,
    /// How many of the last tokens the penalties look at.
    pub penalty_last_n: i32,
    /// Makes recent tokens less probable; 1 changes nothing.
    pub penalty_repeat: f32,
    /// Lowers the logits of recent tokens by this much for each time that they
    /// came; 0 changes nothing.
    pub penalty_freq: f32,
    /// Lowers the logits of recent tokens by this much; 0 changes nothing.
    pub penalty_present: f32,
    /// Never picks a token that ends the text, unless a grammar leaves nothing
    /// else.
    pub ignore_eos: bool,
    /// Seed of the random numbers; `None` takes a fresh one.
    pub seed: Option<u32>,
    /// Only texts of this grammar (GBNF, start symbol `root`).
    pub grammar: Option<String>,
}

impl Default for SamplerParams {
    fn default() -> Self {
        Self {
            temp: 0.8,
            top_k: 40,
            typical_p: 1.0,
            top_p: 0.95,
            min_p: 0.05,
            penalty_last_n: 64,
            penalty_repeat: 1.0,
            penalty_freq: 0.0,
            penalty_present: 0.0,
            ignore_eos: false,
            seed: None,
            grammar: None,
        }
    }
}

/// Why a sampler could not be made or found no token.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SamplerError {
    /// A parameter outside its range.
    #[error("{name} must be {range}, not {value}")]
    Parameter {
        /// llama.cpp's name of it.
        name: &'static str,
        /// What is allowed.
        range: &'static str,
        /// What was given.
        value: f32,
    },
    /// The grammar is not GBNF, has no `root`, or is left-recursive.
    #[error("invalid grammar: {0}")]
    Grammar(String),
    /// No token of the vocabulary continues the text as the grammar demands.
    #[error("no token of the model's vocabulary fits the grammar here")]
    GrammarStuck,
    /// The model has produced infinities or not-a-numbers.
    #[error("the model's output is not a number (are its weights damaged?)")]
    NotANumber,
    /// llama.cpp failed inside a sampler.
    #[error("llama.cpp failed to sample: {0}")]
    Failed(String),
}

/// Owner of one `llama_sampler`.
struct Raw(NonNull<sys::llama_sampler>);

// SAFETY: llama.cpp ties samplers to no thread.
unsafe impl Send for Raw {}

impl Drop for Raw {
    fn drop(&mut self) {
        // SAFETY: ours alone, and in no chain.
        unsafe { sys::llama_sampler_free(self.0.as_ptr()) };
    }
}

/// A sampler chain and, with a grammar, the grammar's state.
pub struct Sampler {
    chain: Raw,
    grammar: Option<Raw>,
    /// Kept alive for the vocabulary that the grammar reads.
    model: std::sync::Arc<Model>,
    seed: u32,
    /// Tokens that are picked only where there is no other.
    avoided: Vec<Token>,
    candidates: Vec<sys::llama_token_data>,
}

impl Sampler {
    /// Makes a sampler for a model's vocabulary.
    pub fn new(
        model: &std::sync::Arc<Model>,
        params: &SamplerParams,
    ) -> Result<Self, SamplerError> {
        check(params)?;
        let vocab = model.vocab();
        let seed = params.seed.unwrap_or_else(fresh_seed);
        // SAFETY: returns a plain struct, which the next call takes; the chain
        // is ours.
        let chain =
            unsafe { sys::llama_sampler_chain_init(sys::llama_sampler_chain_default_params()) };
        let chain = Raw(NonNull::new(chain).ok_or_else(no_memory)?);
        let add = |link: *mut sys::llama_sampler| {
            let link = NonNull::new(link).ok_or_else(no_memory)?;
            // SAFETY: the chain lives and takes over the link.
            unsafe { sys::llama_sampler_chain_add(chain.0.as_ptr(), link.as_ptr()) };
            Ok(())
        };
        if !vocab.suppressed().is_empty() {
            add(suppress(vocab))?;
        }
        // SAFETY: the parameters are in the ranges that llama.cpp documents.
        unsafe {
            add(sys::llama_sampler_init_penalties(
                vocab.n_tokens(),
                params.penalty_last_n,
                params.penalty_repeat,
                params.penalty_freq,
                params.penalty_present,
            ))?;
            if params.temp <= 0.0 {
                add(sys::llama_sampler_init_greedy())?;
            } else {
                add(sys::llama_sampler_init_top_k(params.top_k))?;
                add(sys::llama_sampler_init_typical(params.typical_p, 1))?;
                add(sys::llama_sampler_init_top_p(params.top_p, 1))?;
                add(sys::llama_sampler_init_min_p(params.min_p, 1))?;
                add(sys::llama_sampler_init_temp(params.temp))?;
                add(sys::llama_sampler_init_dist(seed))?;
            }
        }
        let grammar = params
            .grammar
            .as_deref()
            .map(|grammar| compile(vocab, grammar))
            .transpose()?;
        let avoided = if params.ignore_eos {
            vocab.eog_tokens()
        } else {
            Vec::new()
        };
        Ok(Self {
            chain,
            grammar,
            model: std::sync::Arc::clone(model),
            seed,
            avoided,
            candidates: Vec::new(),
        })
    }

    /// The seed in use, whether given or fresh.
    pub fn seed(&self) -> u32 {
        self.seed
    }

    /// Picks a token from logits, one for each token of the vocabulary.
    pub fn sample(&mut self, logits: &[f32]) -> Result<Token, SamplerError> {
        if logits.iter().any(|l| l.is_nan() || *l == f32::INFINITY) {
            return Err(SamplerError::NotANumber);
        }
        // As llama-cli does: pick freely, and only when the grammar rejects the
        // pick, rule out in the whole vocabulary and pick again.
        self.load(logits);
        self.avoid();
        let token = self.pick()?;
        if self.fits(token)? {
            return Ok(token);
        }
        self.load(logits);
        self.avoid();
        let mut possible = self.apply_grammar()?;
        if !possible && !self.avoided.is_empty() {
            // The grammar has come to its end, and so does the text.
            self.load(logits);
            possible = self.apply_grammar()?;
        }
        if !possible {
            return Err(SamplerError::GrammarStuck);
        }
        let token = self.pick()?;
        if self.fits(token)? {
            Ok(token)
        } else {
            Err(SamplerError::GrammarStuck)
        }
    }

    /// Tells the sampler that a token follows. `generated` is false for tokens
    /// of the prompt, which the grammar does not cover.
    pub fn accept(&mut self, token: Token, generated: bool) -> Result<(), SamplerError> {
        let known = (0..self.model.vocab().n_tokens()).contains(&token);
        if !known {
            return Err(SamplerError::Failed(format!("no token {token}")));
        }
        let ends = self.model.vocab().is_eog(token);
        let grammar = self.grammar.as_ref().filter(|_| generated && !ends);
        for sampler in std::iter::once(&self.chain).chain(grammar) {
            guard::call(self.model.path(), |error, error_size| {
                // SAFETY: the sampler lives, the token is in the vocabulary.
                unsafe {
                    guard::headshare_sampler_accept(sampler.0.as_ptr(), token, error, error_size)
                }
            })
            .map_err(SamplerError::Failed)?;
        }
        Ok(())
    }

    fn load(&mut self, logits: &[f32]) {
        self.candidates.clear();
        self.candidates
            .extend((0..).zip(logits).map(|(id, &logit)| sys::llama_token_data {
                id,
                logit,
                p: 0.0,
            }));
    }

    /// Rules out the tokens that are to be avoided; right after
    /// [`load`](Self::load), while each token is at its own number.
    fn avoid(&mut self) {
        for &token in &self.avoided {
            if let Some(candidate) = usize::try_from(token)
                .ok()
                .and_then(|token| self.candidates.get_mut(token))
            {
                candidate.logit = f32::NEG_INFINITY;
            }
        }
    }

    /// Rules out what the grammar does not allow; false when nothing is left.
    fn apply_grammar(&mut self) -> Result<bool, SamplerError> {
        if let Some(grammar) = &self.grammar {
            apply(&self.model, grammar, &mut self.candidates)?;
        }
        Ok(self
            .candidates
            .iter()
            .any(|candidate| candidate.logit > f32::NEG_INFINITY))
    }

    fn pick(&mut self) -> Result<Token, SamplerError> {
        match apply(&self.model, &self.chain, &mut self.candidates)? {
            Some(token) => Ok(token),
            None => Err(SamplerError::Failed("no token was selected".into())),
        }
    }

    /// Whether the grammar, if there is one, allows a token here.
    fn fits(&self, token: Token) -> Result<bool, SamplerError> {
        let Some(grammar) = &self.grammar else {
            return Ok(true);
        };
        let mut alone = vec![sys::llama_token_data {
            id: token,
            logit: 1.0,
            p: 0.0,
        }];
        apply(&self.model, grammar, &mut alone)?;
        Ok(alone[0].logit > f32::NEG_INFINITY)
    }
}

/// Applies a sampler to candidates and returns the token that it selected, if
/// it is one that selects.
fn apply(
    model: &Model,
    sampler: &Raw,
    candidates: &mut [sys::llama_token_data],
) -> Result<Option<Token>, SamplerError> {
    let mut array = sys::llama_token_data_array {
        data: candidates.as_mut_ptr(),
        size: candidates.len(),
        selected: -1,
        sorted: false,
    };
    guard::call(model.path(), |error, error_size| {
        // SAFETY: the sampler lives; the array describes our candidates, which
        // llama.cpp reorders, shortens or replaces by its own, but never frees.
        unsafe { guard::headshare_sampler_apply(sampler.0.as_ptr(), &mut array, error, error_size) }
    })
    .map_err(SamplerError::Failed)?;
    let Ok(selected) = usize::try_from(array.selected) else {
        return Ok(None);
    };
    if selected >= array.size {
        return Ok(None);
    }
    // SAFETY: `data` holds `size` candidates, and `selected` is one of them.
    Ok(Some(unsafe { (*array.data.add(selected)).id }))
}

/// Biases away the tokens that the model's file says must not be generated.
fn suppress(vocab: Vocab<'_>) -> *mut sys::llama_sampler {
    let biases: Vec<_> = vocab
        .suppressed()
        .iter()
        .map(|&token| sys::llama_logit_bias {
            token,
            bias: f32::NEG_INFINITY,
        })
        .collect();
    let len = i32::try_from(biases.len()).unwrap_or(0);
    // SAFETY: llama.cpp copies the `len` biases.
    unsafe { sys::llama_sampler_init_logit_bias(vocab.n_tokens(), len, biases.as_ptr()) }
}

fn compile(vocab: Vocab<'_>, grammar: &str) -> Result<Raw, SamplerError> {
    if grammar.trim().is_empty() {
        return Err(SamplerError::Grammar("it is empty".into()));
    }
    if !vocab.exists() {
        return Err(SamplerError::Grammar("the model has no vocabulary".into()));
    }
    let text = CString::new(grammar)
        .map_err(|_| SamplerError::Grammar("it contains a NUL character".into()))?;
    let mark = crate::log::mark();
    let mut raw = std::ptr::null_mut();
    guard::call(vocab.file(), |error, error_size| {
        // SAFETY: the vocabulary lives, both strings are NUL-terminated.
        unsafe {
            guard::headshare_grammar_init(
                vocab.as_ptr(),
                text.as_ptr(),
                c"root".as_ptr(),
                &mut raw,
                error,
                error_size,
            )
        }
    })
    .map_err(SamplerError::Grammar)?;
    NonNull::new(raw).map(Raw).ok_or_else(|| {
        SamplerError::Grammar(
            crate::log::reason_since(mark).unwrap_or_else(|| "llama.cpp gives no reason".into()),
        )
    })
}

fn check(params: &SamplerParams) -> Result<(), SamplerError> {
    let fraction = 0.0..=1.0;
    let rules = [
        (
            "temp",
            params.temp,
            params.temp.is_finite(),
            "a finite number",
        ),
        (
            "typical_p",
            params.typical_p,
            fraction.contains(&params.typical_p),
            "between 0 and 1",
        ),
        (
            "top_p",
            params.top_p,
            fraction.contains(&params.top_p),
            "between 0 and 1",
        ),
        (
            "min_p",
            params.min_p,
            fraction.contains(&params.min_p),
            "between 0 and 1",
        ),
        (
            "penalty_repeat",
            params.penalty_repeat,
            params.penalty_repeat.is_normal() && params.penalty_repeat > 0.0,
            "a number above 0",
        ),
        (
            "penalty_freq",
            params.penalty_freq,
            params.penalty_freq.is_finite(),
            "a finite number",
        ),
        (
            "penalty_present",
            params.penalty_present,
            params.penalty_present.is_finite(),
            "a finite number",
        ),
    ];
    for (name, value, holds, range) in rules {
        if !holds {
            return Err(SamplerError::Parameter { name, range, value });
        }
    }
    Ok(())
}

fn fresh_seed() -> u32 {
    use std::hash::{BuildHasher, RandomState};
    // The standard library's hasher is keyed at random.
    let seed = RandomState::new().hash_one(std::process::id()) as u32;
    // llama.cpp takes its default seed as "choose one".
    if seed == sys::LLAMA_DEFAULT_SEED {
        0
    } else {
        seed
    }
}

fn no_memory() -> SamplerError {
    SamplerError::Failed("out of memory".into())
}
