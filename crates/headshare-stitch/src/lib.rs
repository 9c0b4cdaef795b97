//! Files as the rest of the project sees them: mapped for reading, written so
//! that nothing half-written is ever visible, and, for a converted file, stitched
//! together so that shared blocks share their pages.
//!
//! No ggml here, and no knowledge of tensors: what to write where is the
//! caller's.

mod atomic;
mod error;
mod fold;
mod map;
mod region;
mod scratch;
mod sigbus;
mod stitched;

pub use atomic::{AtomicFile, remove_temporary_files};
pub use error::FileError;
pub use fold::FoldArena;
pub use map::{FileId, MappedFile};
pub use region::page_size;
pub use scratch::ScratchFile;
pub use stitched::{StitchedMapping, mappings_left};
