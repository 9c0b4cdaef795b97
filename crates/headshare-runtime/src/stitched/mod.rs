//! Loads the logical model of a converted file with each shared block in
//! physical memory once, and plain files without keeping what was consumed.
//!
//! llama.cpp reads the logical file's header through a stream (`stream`) and
//! gets the stitched mapping for its data (`hooks`). Weights that the CPU
//! backend uses as they lie in the file are shared by that alone. Those that it
//! repacks are folded: after repacking, equal pages become the same memory
//! (`buffers`).
//!
//! The pages of the file that a weight has been copied out of are let go of
//! while loading, so that no expanded copy exists at any moment.
//!
//! All this is for 64-bit Linux; elsewhere [`SUPPORTED`] is false and converted
//! files have to be expanded.

#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
mod buffers;
#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
mod elsewhere;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
mod hooks;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
mod load;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
mod stream;

use headshare_format::alias::AliasTable;
use headshare_format::{FormatError, Gguf};
use headshare_stitch::{FileError, MappedFile};

#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
pub(crate) use buffers::register_devices;
#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
pub(crate) use elsewhere::{Backing, register_devices};
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
pub(crate) use load::Backing;

/// Whether this system can load files in place.
pub const SUPPORTED: bool = cfg!(all(target_os = "linux", target_pointer_width = "64"));

/// How weights that are used more than once come to be in memory once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// What is repacked is folded; the rest is mapped.
    Auto,
    /// As `Auto`, and it is an error when a shared weight that llama.cpp
    /// repacks cannot be folded.
    Fold,
    /// Shared weights are mapped as they lie in the file, unpacked.
    Map,
}

/// What a load made of the shared weights.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shared {
    /// Tensors with shared rows that were folded.
    pub folded_tensors: usize,
    /// Tensors with shared rows that are used from the mapped file.
    pub mapped_tensors: usize,
    /// Bytes that are in memory once although they are used twice or more.
    pub shared_bytes: u64,
    /// Bytes of shared rows that are in memory more than once: pages that
    /// only partly belong to a shared block, or that lie differently.
    pub copied_bytes: u64,
    /// Bytes copied because the process may not have more mappings.
    pub given_up_bytes: u64,
    /// Mappings of the stitched file.
    pub mappings: usize,
    /// Why folding did not go through, if so.
    pub trouble: Option<String>,
}

/// The file to load.
pub struct Source<'a> {
    /// The mapped file.
    pub file: &'a MappedFile,
    /// Its header.
    pub gguf: &'a Gguf,
    /// Its alias table, when it is a converted one.
    pub table: Option<&'a AliasTable>,
}

/// Why a converted file could not be loaded in place.
#[derive(Debug, thiserror::Error)]
pub enum StitchError {
    /// The logical size overflows.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// A mapping was refused.
    #[error(transparent)]
    File(#[from] FileError),
    /// The stream could not be opened.
    #[error("cannot open a stream over the file: {0}")]
    Stream(std::io::Error),
    /// Too many models are loaded.
    #[error("too many models are loaded at a time")]
    TooMany,
    /// This system has no way to.
    #[error("on this system, converted files are loaded only with --resolve expand")]
    Unsupported,
    /// Folding was asked for and is not possible.
    #[error("the shared weights cannot be folded: {0}")]
    CannotFold(String),
}
