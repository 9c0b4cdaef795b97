//! What is to be loaded, and how.

use headshare_format::Gguf;
use headshare_format::alias::AliasTable;
use headshare_stitch::MappedFile;

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

/// The file to load.
pub struct Source<'a> {
    /// The mapped file.
    pub file: &'a MappedFile,
    /// Its header.
    pub gguf: &'a Gguf,
    /// Its alias table, when it is a converted one.
    pub table: Option<&'a AliasTable>,
}
