//! The program and its library as their users meet them, in one binary: each
//! that stands alone would link llama.cpp once more.
//!
//! `cargo test --release --workspace --test it cli::` runs one module. Tests
//! here run side by side in one process, so none changes what all of it shares
//! (its environment, limits, signals, working folder): programs that are
//! started get theirs. One that measures the process as a whole does so in a
//! process of its own, see [`support::alone`].

#[macro_use]
mod support;

mod analyze;
mod bench;
mod choice;
mod cli;
#[cfg(target_os = "linux")]
mod exec;
mod matching;
mod perplexity;
mod quantize;
mod repair;
mod report;
mod run;
mod stitched;
mod train;
