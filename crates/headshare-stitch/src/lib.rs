//! Files as the rest of the project sees them: mapped for reading, written so
//! that nothing half-written is ever visible, and, for a converted file, stitched
//! together so that shared blocks share their pages.
//!
//! Stitching is for Linux; the rest is for every Unix.
//!
//! No ggml here, and no knowledge of tensors: what to write where is the
//! caller's.

mod atomic;
mod error;
#[cfg(target_os = "linux")]
mod fold;
mod map;
#[cfg(target_os = "linux")]
mod region;
mod scratch;
mod sigbus;
#[cfg(target_os = "linux")]
mod stitched;
mod unnamed;

pub use atomic::{AtomicFile, end_process};
pub use error::FileError;
#[cfg(target_os = "linux")]
pub use fold::FoldArena;
pub use map::{FileId, MappedFile};
#[cfg(target_os = "linux")]
pub use region::page_size;
pub use scratch::ScratchFile;
#[cfg(target_os = "linux")]
pub use stitched::{Steps, StitchedMapping, mappings, mappings_left};
