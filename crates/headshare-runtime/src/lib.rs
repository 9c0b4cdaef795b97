//! Runs GGUF and headshare files through llama.cpp.
//!
//! The small crate that links ggml: safe owners for llama.cpp's model, context
//! and samplers, batches of several texts, text generation, ggml's quantised types, and
//! what all of it costs in memory. Other crates reach llama.cpp through it.
//!
//! ```no_run
//! use std::sync::Arc;
//! use headshare_runtime::*;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let model = Arc::new(Model::load("model.gguf".as_ref(), &ModelParams::default(), None)?);
//! let mut context = Context::new(&model, &ContextParams::default())?;
//! let mut sampler = Sampler::new(&model, &SamplerParams::default())?;
//! let prompt = model.vocab().tokenize("Once upon a time", true, true)?;
//! let generator = Generator::new(&mut context, &mut sampler, &prompt, Some(32))?;
//! generator.write_text(&[], |piece| {
//!     print!("{piece}");
//!     Ok(true)
//! })?;
//! # Ok(())
//! # }
//! ```

pub mod abort;
pub mod backend;
pub mod batch;
pub mod calibrate;
pub mod callbacks;
pub mod chat;
pub mod context;
pub mod generate;
pub mod log;
pub mod memory;
pub mod model;
pub mod preflight;
pub mod quants;
pub mod sampler;
pub mod sequences;
pub mod stitched;
pub mod stop;
pub mod threads;
pub mod utf8;
pub mod vocab;

mod guard;
mod recorder;

pub use backend::llama_cpp_revision;
pub use batch::{Batch, BatchError, SeqId};
pub use context::{Context, ContextError, ContextParams, FlashAttention};
pub use generate::{GenerateError, Generated, Generator, StopReason, Timings};
pub use model::{Model, ModelError, ModelParams};
pub use sampler::{Sampler, SamplerError, SamplerParams};
pub use stop::StopStrings;
pub use threads::ThreadUse;
pub use utf8::Utf8Stream;
pub use vocab::{Token, Vocab, VocabError};
