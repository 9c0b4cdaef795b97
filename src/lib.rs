//! headshare-gguf: attention heads of a GGUF model share their Q/K/V weights,
//! each distinct block is stored once, and memory holds it once.
//!
//! The library behind the command line, and a facade over the crates that do the
//! work: `headshare-convert` makes a smaller model ([`model`], [`matching`],
//! [`plan`], [`repair`], [`convert`]), `headshare-eval` measures what became of it
//! ([`eval`], [`analyze`], [`report`]), and [`chat`] talks with it. [`jobs`] has all that
//! the program does as values.
#![forbid(unsafe_code)]

pub mod chat;
pub mod cli;
#[cfg(target_os = "linux")]
pub mod exec;
mod process;
mod render;
mod spelling;

pub use headshare_convert::{
    TOOL, baseline, convert, encode, engine, input, matching, model, plan, quantize, repair, stats,
};
pub use headshare_eval::{analyze, eval, inspect, report};
pub use headshare_jobs as jobs;
