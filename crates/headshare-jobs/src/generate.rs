//! Text that a model generates, and the model and context that a chat needs, too.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use headshare_files::ScratchFile;
use headshare_runtime::memory::WeightRegions;
use headshare_runtime::stitched::Shared;
use headshare_runtime::{
    Context, ContextParams, GenerateError, Generator, Model, ModelError, Sampler, SamplerError,
    SamplerParams, StopReason, ThreadUse, Timings, Token,
};
use serde::{Deserialize, Serialize};

use crate::context::own_if_0;
use crate::error::Context as _;
use crate::expand::cannot_write;
use crate::load::{Memory, Resolve, Resolved, load_generative, measure};
use crate::{Error, Ui};

/// Tokens that are generated of a text when nothing is said.
const N_PREDICT: u32 = 128;

/// How a model is loaded and run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setup {
    /// The model, plain or converted.
    #[serde(with = "crate::path")]
    pub file: PathBuf,
    /// How shared blocks are brought into memory.
    pub resolve: Resolve,
    /// Keeps the file's pages in memory after their content was copied elsewhere.
    pub keep_pages: bool,
    /// Tokens of context; 0 takes what the model was trained with. By default 4096,
    /// or what the model was trained with if that is less.
    pub ctx_size: Option<u32>,
    /// Tokens of a prompt that are handed to llama.cpp at once.
    pub batch_size: u32,
    /// Tokens of a prompt that are computed at once.
    pub ubatch_size: u32,
    /// Threads; by default one a physical core, fewer while other programs are
    /// busy.
    pub threads: Option<u32>,
    /// Threads while a prompt is evaluated; by default as many.
    pub threads_batch: Option<u32>,
}

/// Generates text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Generate {
    /// The model, and how it is run.
    #[serde(flatten)]
    pub setup: Setup,
    /// The text to go on from.
    pub prompt: String,
    /// Tokens to generate at most; null goes on until something else ends the text.
    pub n_predict: Option<u32>,
    /// Texts that end it, and are not part of it.
    pub stops: Vec<String>,
    /// How tokens are picked. Penalties that look at -1 tokens look at the whole
    /// context.
    pub sampling: SamplerParams,
}

/// What a model wrote after a prompt.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Continuation {
    /// The text, without the prompt.
    pub text: String,
    /// Its tokens, those of a stop string, too.
    pub tokens: Vec<Token>,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Why it ended.
    pub stop: StopReason,
    /// Seed of the random numbers.
    pub seed: u32,
    /// Time until the model and its context were there, in ms.
    pub load_ms: f64,
    /// Tokens of the prompt that were evaluated in a second.
    pub prefill_tps: f64,
    /// Generated tokens that were evaluated in a second.
    pub decode_tps: f64,
    /// Numbers of threads, ascending.
    pub threads: Vec<ThreadTokens>,
    /// How shared blocks were brought into memory.
    pub resolve: Resolved,
    /// What the model takes of memory.
    pub memory: Memory,
    /// What JSON does not say.
    #[serde(skip)]
    pub details: Details,
}

/// Tokens that a number of threads evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThreadTokens {
    /// Threads.
    pub n_threads: u32,
    /// Tokens.
    pub tokens: u64,
}

/// More of how a text came to be.
#[derive(Debug, Clone, Default)]
pub struct Details {
    /// How long the parts took.
    pub timings: Timings,
    /// How many threads there were, and why not all always.
    pub threads: ThreadUse,
    /// What became of the shared weights.
    pub shared: Shared,
    /// Tokens that the context has.
    pub n_ctx: u32,
    /// Positions that the model has, where that limits its context.
    pub n_positions: Option<u32>,
}

/// A model in memory.
pub struct ModelInMemory {
    /// It.
    pub model: Arc<Model>,
    /// Time until it and its context were there, in ms.
    pub load_ms: f64,
    /// How shared blocks were brought into memory.
    pub resolved: Resolved,
    /// What became of them.
    pub shared: Shared,
    weights: WeightRegions,
    /// Keeps the expanded copy alive.
    _scratch: Option<ScratchFile>,
}

impl ModelInMemory {
    /// What it takes of memory now.
    pub fn memory(&self) -> Memory {
        measure(&self.model, &self.weights, &self.shared)
    }
}

impl Setup {
    /// For `file`, as llama-cli runs a model when nothing else is said.
    pub fn new(file: impl Into<PathBuf>) -> Self {
        let defaults = ContextParams::default();
        Self {
            file: file.into(),
            resolve: Resolve::Auto,
            keep_pages: false,
            ctx_size: None,
            batch_size: defaults.n_batch,
            ubatch_size: defaults.n_ubatch,
            threads: None,
            threads_batch: None,
        }
    }

    /// Loads the model and makes a context of it; both loading and evaluating end
    /// when `stop` is set.
    ///
    /// # Errors
    /// When the file is bad, does not generate text, or does not fit in memory.
    pub fn load(
        &self,
        stop: &Arc<AtomicBool>,
        ui: &dyn Ui,
    ) -> Result<(ModelInMemory, Context), Error> {
        let started = Instant::now();
        let loaded = load_generative(&self.file, self.resolve, !self.keep_pages, stop, ui)?;
        let model = Arc::new(loaded.model);
        let params = ContextParams {
            n_ctx: self.ctx_size.map(|n_ctx| own_if_0(n_ctx, &model)),
            n_batch: self.batch_size,
            n_ubatch: self.ubatch_size,
            n_threads: self.threads,
            n_threads_batch: self.threads_batch,
            stop: Arc::clone(stop),
            ..ContextParams::default()
        };
        let context = Context::new(&model, &params).and_then(|context| {
            context.check_generative()?;
            Ok(context)
        });
        let context = context.about(|| model.file().display())?;
        let load_ms = started.elapsed().as_secs_f64() * 1000.0;
        let trained = model.n_ctx_train();
        let beyond = |n_ctx| trained > 0 && n_ctx > trained && model.n_positions().is_none();
        if self.ctx_size.is_some_and(beyond) {
            ui.warning(&format!(
                "the model was trained with {trained} tokens of context; beyond that text degrades"
            ));
        }
        let in_memory = ModelInMemory {
            model,
            load_ms,
            resolved: loaded.resolved,
            shared: loaded.shared,
            weights: loaded.weights,
            _scratch: loaded.scratch,
        };
        Ok((in_memory, context))
    }
}

impl Generate {
    /// Has `file` go on from `prompt`, as llama-cli does when nothing else is said.
    pub fn new(file: impl Into<PathBuf>, prompt: impl Into<String>) -> Self {
        Self {
            setup: Setup::new(file),
            prompt: prompt.into(),
            n_predict: Some(N_PREDICT),
            stops: Vec::new(),
            sampling: SamplerParams::default(),
        }
    }

    /// Does it; the text goes to [`Ui::text`] as it comes.
    ///
    /// # Errors
    /// When the file is bad, a parameter or the grammar is wrong, the prompt leaves
    /// no room, or the model fails.
    pub fn run(&self, ui: &dyn Ui) -> Result<Continuation, Error> {
        let (loaded, mut context) = self.setup.load(&ui.stop(), ui)?;
        let model = &loaded.model;
        let of_model = |problem: String| {
            let path = model.file().display();
            Error::bad_input(format!("{path}: {problem}"))
        };
        let prompt = (model.vocab().tokenize(&self.prompt, true, true))
            .map_err(|error| of_model(error.to_string()))?;
        if prompt.is_empty() && !self.prompt.is_empty() {
            let nothing = "its tokenizer makes no tokens of the prompt";
            return Err(of_model(nothing.to_owned()));
        }
        let sampling = sampling_in(&context, &self.sampling);
        let sampler = Sampler::new(model, &sampling);
        let mut sampler = sampler.map_err(|error| said_of(model, error))?;
        let n_predict = self.n_predict.map(|n| n as usize);
        let generated = Generator::new(&mut context, &mut sampler, &prompt, n_predict)
            .and_then(|generator| generator.write_text(&self.stops, |piece| ui.text(piece)))
            .map_err(|error| said_of(model, error))?;
        let threads = context.thread_use();
        Ok(Continuation {
            text: generated.text,
            tokens: generated.tokens,
            prompt_tokens: prompt.len(),
            stop: generated.stop,
            seed: sampler.seed(),
            load_ms: loaded.load_ms,
            prefill_tps: generated.timings.prefill_tps(),
            decode_tps: generated.timings.decode_tps(),
            threads: (threads.tokens.iter())
                .map(|&(n_threads, tokens)| ThreadTokens { n_threads, tokens })
                .collect(),
            resolve: loaded.resolved,
            memory: loaded.memory(),
            details: Details {
                timings: generated.timings,
                threads,
                n_ctx: context.n_ctx_seq(),
                n_positions: model.n_positions(),
                shared: loaded.shared,
            },
        })
    }
}

/// The same way to pick tokens, with penalties that look at -1 tokens looking at
/// all that `context` has.
pub fn sampling_in(context: &Context, sampling: &SamplerParams) -> SamplerParams {
    let mut sampling = sampling.clone();
    if sampling.penalty_last_n < 0 {
        sampling.penalty_last_n = i32::try_from(context.n_ctx()).unwrap_or(i32::MAX);
    }
    sampling
}

/// An error of generating with `model`, said of its file where that may be to
/// blame.
pub fn said_of(model: &Model, error: impl Into<GenerateError>) -> Error {
    let of_model = match error.into() {
        GenerateError::Show(error) => return cannot_write(error),
        error @ (GenerateError::Context(_)
        | GenerateError::Vocab(_)
        | GenerateError::Model(ModelError::NotGenerative { .. })
        | GenerateError::Sampler(SamplerError::NotANumber | SamplerError::Failed(_))) => error,
        other => return other.into(),
    };
    Error::from(of_model).about(model.file().display())
}
