//! Files as the rest of the project sees them: mapped for reading, and written
//! so that nothing half-written is ever visible.
//!
//! No ggml here, and no knowledge of tensors: what to write where is the
//! caller's.

mod atomic;
mod error;
mod map;
mod scratch;

pub use atomic::{AtomicFile, remove_temporary_files};
pub use error::FileError;
pub use map::{FileId, MappedFile};
pub use scratch::ScratchFile;
