//! One file loaded in one way and run once, by a process that does nothing else:
//! its memory is nobody else's.

use std::path::PathBuf;
use std::sync::Arc;

use headshare_eval::bench::{Clock, Elapsed, RandomTokens, SpeedTest};
use headshare_runtime::threads::physical_cores;
use headshare_runtime::{Context, ContextParams, Model, ModelParams, preflight};
use serde::{Deserialize, Serialize};

use crate::load::{self, Loaded, Memory, Resolve, Resolved};
use crate::{Advice, Error, Ui};

/// How a file is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoadMode {
    /// llama.cpp's own loading, which maps the file.
    StockMmap,
    /// llama.cpp's own loading, which reads the file.
    StockRead,
    /// As the program loads it to run it.
    Resolve(Resolve),
}

impl LoadMode {
    /// Whether llama.cpp loads the file by itself.
    pub fn is_stock(self) -> bool {
        self.stock_name().is_some()
    }

    /// What it is called where llama.cpp loads the file by itself.
    pub fn stock_name(self) -> Option<&'static str> {
        match self {
            Self::StockMmap => Some("stock, mmap"),
            Self::StockRead => Some("stock, no mmap"),
            Self::Resolve(_) => None,
        }
    }
}

/// Loads one file in one way and runs it once unmeasured and once measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measure {
    /// The file, plain or converted.
    #[serde(with = "crate::path")]
    pub file: PathBuf,
    /// How it is loaded.
    pub load_mode: LoadMode,
    /// Threads; null leaves it to the runtime.
    pub threads: Option<u32>,
    /// What is run.
    pub test: SpeedTest,
}

/// What was measured of one file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// The model, once it was loaded.
    pub loaded: LoadedModel,
    /// Evaluating the prompt; null where it was left out.
    pub prefill: Option<Elapsed>,
    /// Generating; null where it was left out.
    pub decode: Option<Elapsed>,
    /// After generating.
    pub memory: Memory,
}

/// A model that is loaded, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoadedModel {
    /// What loading took, with the context.
    pub load: Elapsed,
    /// How shared blocks were brought into memory.
    pub resolve: Resolved,
    /// After loading.
    pub memory: Memory,
    /// llama.cpp's description.
    pub model_type: String,
    /// Bytes of its tensors.
    pub model_size: u64,
    /// Its weights.
    pub model_n_params: u64,
    /// Threads that it is run with.
    pub n_threads: u32,
}

/// Whether `model` has room for what is measured.
pub(crate) fn check_room(test: &SpeedTest, model: &Model) -> Result<(), Error> {
    let wanted = test.n_prompt.max(test.n_gen);
    match model.n_positions().filter(|&room| room < wanted) {
        Some(room) => Err(Error::usage(format!(
            "the speed of {wanted} tokens at once cannot be measured: the model has {room} positions"
        ))
        .advise(Advice::Words(format!("-p {room} and -n {room} are the most")))),
        None => Ok(()),
    }
}

impl Measure {
    /// Does it.
    ///
    /// # Errors
    /// When the file is bad, or does not generate.
    pub fn run(&self, ui: &dyn Ui) -> Result<Measured, Error> {
        if self.load_mode.is_stock() {
            let checked = preflight::check_file(&self.file);
            checked.map_err(|e| Error::bad_input(format!("{}: {e}", self.file.display())))?;
        }
        let clock = Clock::start();
        let loaded = self.load(ui)?;
        let (resolve, shared, weights) = (loaded.resolved, loaded.shared, loaded.weights);
        let _scratch = loaded.scratch;
        let model = Arc::new(loaded.model);
        model.check_generative()?;
        check_room(&self.test, &model)?;
        let params = ContextParams {
            n_ctx: Some(self.test.n_prompt.max(self.test.n_gen)),
            // What llama.cpp loads by itself also runs as llama.cpp does it.
            n_threads: match self.load_mode.is_stock() {
                true => Some(self.threads.unwrap_or_else(physical_cores)),
                false => self.threads,
            },
            n_batch: self.test.n_batch,
            n_ubatch: self.test.n_ubatch,
            ..ContextParams::default()
        };
        let mut context = Context::new(&model, &params).map_err(Error::failed)?;
        let load = clock.elapsed();
        context.check_generative().map_err(Error::bad_input)?;
        let memory = || load::measure(&model, &weights, &shared);
        let loaded = LoadedModel {
            load,
            resolve,
            memory: memory(),
            model_type: model.description(),
            model_size: model.size_bytes(),
            model_n_params: model.n_params(),
            n_threads: context.n_threads(),
        };
        let tokens = RandomTokens::of(model.vocab());
        let mut tokens = tokens.ok_or_else(|| Error::bad_input("the model has no vocabulary"))?;
        let timed = self.test.run(&mut context, &mut tokens);
        let timed = timed.map_err(Error::failed)?;
        Ok(Measured {
            loaded,
            prefill: timed.prefill,
            decode: timed.decode,
            memory: memory(),
        })
    }

    fn load(&self, ui: &dyn Ui) -> Result<Loaded, Error> {
        if let LoadMode::Resolve(resolve) = self.load_mode {
            return load::load(&self.file, resolve, true, &mut |_| true, ui);
        }
        let params = ModelParams {
            use_mmap: self.load_mode == LoadMode::StockMmap,
            // Done before: stock llama.cpp does not.
            check_metadata: false,
            ..ModelParams::default()
        };
        Ok(Loaded::stock(Model::load(&self.file, &params, None)?))
    }
}
