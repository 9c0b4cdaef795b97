//! Runs GGUF and headshare files through llama.cpp.
//!
//! The small crate that links ggml: safe owners for llama.cpp's model, context
//! and samplers, batches of several texts, text generation, ggml's quantized types, and
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
//!
//! # What it takes over from the process
//!
//! On 64-bit Linux this crate defines functions of the C library, in its module
//! `interpose`. llama.cpp offers no other way to say where a file's bytes are, or
//! to ask where its weights went.
//!
//! | function | why | what changes |
//! |---|---|---|
//! | `fileno` | llama.cpp maps the file behind the stream that it reads a converted file's header from | our streams have a descriptor |
//! | `mmap`, `mmap64` | that mapping has to be the stitched one; what a load maps is a model's weights | mapping such a descriptor gives the mapping that is there already: whole and read-only, else `EINVAL` |
//! | `munmap` | llama.cpp gives back parts of the file that it does not use itself | within such a mapping nothing is unmapped until its model is dropped |
//! | `posix_memalign` | what a load allocates through it is a model's weights | nothing |
//!
//! Every other call goes on: those of `fileno` and `posix_memalign` to the C
//! library (as `fileno_unlocked` and `memalign`), those of `mmap` and `munmap` to
//! the kernel.
//!
//! What a program that links this crate should know:
//!
//! - The functions are the whole process's. Definitions in the executable come
//!   before those of every shared library, also of preloaded ones, whose own
//!   `mmap` is then not called. Calls within the C library, such as `malloc`'s,
//!   do not pass here.
//! - Nothing else in the executable may define these names. An allocator that
//!   defines `posix_memalign` cannot be linked as well; one that is preloaded keeps
//!   its say through `memalign`.
//! - In a shared library the C library's functions come first. Plain models load
//!   there, with no [weight regions](Model::weight_regions); llama.cpp refuses
//!   converted files.
//! - Two more things belong to the process and are taken only when asked for:
//!   [`abort::on_abort`] sets ggml's abort callback and [`memory::on_shortage`]
//!   C++'s new handler. llama.cpp's log goes to [`log`] from the first call on, and
//!   `headshare-stitch` handles `SIGBUS` for the files that it maps.

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
pub mod mixture;
pub mod model;
pub mod own_text;
pub mod preflight;
pub mod quants;
pub mod sampler;
pub mod sequences;
pub mod stitched;
pub mod stop;
pub mod threads;
pub mod utf8;
pub mod vocab;

mod backing;
mod end;
mod guard;
mod interpose;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
mod weight_buffers;

pub use backend::llama_cpp_revision;
pub use batch::{Batch, BatchError, SeqId};
pub use context::{CacheType, Context, ContextError, ContextParams, FlashAttention};
pub use end::end_process;
pub use generate::{GenerateError, Generated, Generator, StopReason, Timings};
pub use model::{Model, ModelError, ModelParams};
pub use sampler::{Sampler, SamplerError, SamplerParams};
pub use stop::StopStrings;
pub use threads::ThreadUse;
pub use utf8::Utf8Stream;
pub use vocab::{Token, Vocab, VocabError};
