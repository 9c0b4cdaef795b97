//! Loads the logical model of a converted file with each shared block in
//! physical memory once, and plain files without keeping what was consumed.
//!
//! llama.cpp reads the logical file's header through a stream (`stream`) and
//! gets the stitched mapping for its data (`interpose`). Weights that the CPU
//! backend uses as they lie in the file are shared by that alone. Those that it
//! repacks are folded: after repacking, equal pages become the same memory
//! (`weight_buffers`).
//!
//! The pages of the file that a weight has been copied out of are let go of
//! while loading, so that no expanded copy exists at any moment.
//!
//! All this is for 64-bit Linux; elsewhere [`SUPPORTED`] is false and converted
//! files have to be expanded.

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
mod elsewhere;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
mod load;
mod source;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
mod stream;
mod virtual_file;

pub use crate::backing::{Shared, StitchError};
pub use source::{Sharing, Source};
pub use virtual_file::VirtualFile;

/// Whether this system can load files in place.
pub const SUPPORTED: bool = cfg!(all(target_os = "linux", target_pointer_width = "64"));
