//! headshare-gguf: attention heads of a GGUF model share their Q/K/V weights,
//! each distinct block is stored once, and memory holds it once.
//!
//! The library behind the command line. Data flows one way: [`model`] says
//! where the heads are, [`matching`] which of them are alike, a [`plan`] which
//! share, [`convert`] writes the file, [`eval`] measures what became of it,
//! [`analyze`] looks into it, [`report`] puts it next to what else could be done
//! and [`chat`] talks with it.
#![forbid(unsafe_code)]

pub mod analyze;
pub mod chat;
pub mod cli;
pub mod convert;
pub mod eval;
#[cfg(target_os = "linux")]
pub mod exec;
pub mod input;
pub mod inspect;
pub mod matching;
pub mod model;
pub mod plan;
pub mod quantize;
pub mod repair;
pub mod report;

/// The name and version that converted files carry.
pub const TOOL: &str = concat!("headshare-gguf ", env!("CARGO_PKG_VERSION"));
