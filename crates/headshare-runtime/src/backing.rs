//! What a model's weights lie in where that is not llama.cpp's own memory: the
//! model keeps it, and knows no more of it than is here.

use std::ops::Range;

use headshare_files::FileError;
use headshare_format::FormatError;

/// Memory behind a model's weights; dropped after the model.
pub(crate) trait Backing: Send + Sync {
    /// What became of the weights that are used more than once.
    fn shared(&self) -> &Shared;

    /// The addresses that hold weights.
    fn ranges(&self) -> Vec<Range<u64>>;
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
