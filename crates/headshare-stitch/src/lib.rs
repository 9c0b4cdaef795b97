//! Mapping: files into memory for reading, and a converted file stitched together
//! so that shared blocks share their pages; and, for what is no file any more,
//! folding equal pages of memory into one.
//!
//! Stitching and folding are for Linux; mapping is for every Unix.
//!
//! No ggml here, and no knowledge of tensors: what to map where is the caller's.

#[cfg(target_os = "linux")]
mod fold;
mod map;
#[cfg(target_os = "linux")]
mod region;
mod sigbus;
#[cfg(target_os = "linux")]
mod stitched;

#[cfg(target_os = "linux")]
pub use fold::FoldArena;
pub use map::MappedFile;
#[cfg(target_os = "linux")]
pub use region::page_size;
#[cfg(target_os = "linux")]
pub use stitched::{HugePages, StitchedMapping, mappings, mappings_left};

/// The examples of the README are tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
