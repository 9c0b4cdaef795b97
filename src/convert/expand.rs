//! From a converted file back to a plain GGUF that stock llama.cpp loads.

use std::path::Path;

use headshare_format::alias::AliasTable;
use headshare_format::{ExtentSource, LogicalLayout, VirtualGguf};
use headshare_stitch::{AtomicFile, FileError, ScratchFile};

use super::ConvertError;
use super::write::for_chunks;
use crate::input::{InputError, ModelFile};

/// The logical view of `file` in the source's own layout.
///
/// # Errors
/// When its sizes overflow.
pub fn source_view(file: &ModelFile, table: &AliasTable) -> Result<VirtualGguf, InputError> {
    VirtualGguf::new(&file.gguf, table, LogicalLayout::Source)
        .map_err(InputError::content(file.path()))
}

/// Writes the plain GGUF that the converted `file` stands for to `out`;
/// returns its size. For a lossless file these are the source's bytes.
///
/// `progress` is told the bytes done so far.
///
/// # Errors
/// When the output cannot be written; nothing is left behind then.
pub fn expand(
    file: &ModelFile,
    table: &AliasTable,
    out: &Path,
    force: bool,
    progress: &dyn Fn(u64),
) -> Result<u64, ConvertError> {
    let view = source_view(file, table)?;
    let output = AtomicFile::create(out, view.len(), force, &[file.file.id()])?;
    write_view(file, &view, |at, bytes| {
        progress(at);
        output.write_at(at, bytes)
    })?;
    output.commit()?;
    Ok(view.len())
}

/// Writes the same to a file without a name, for a program to load.
///
/// # Errors
/// When the folder for temporary files cannot take it.
pub fn expand_to_scratch(
    file: &ModelFile,
    table: &AliasTable,
) -> Result<ScratchFile, ConvertError> {
    let view = source_view(file, table)?;
    let scratch = ScratchFile::create(view.len())?;
    write_view(file, &view, |at, bytes| scratch.write_at(at, bytes))?;
    Ok(scratch)
}

/// Hands the bytes of `view` to `write`, with their offsets, but for zeros: a
/// new file has those already.
fn write_view(
    file: &ModelFile,
    view: &VirtualGguf,
    mut write: impl FnMut(u64, &[u8]) -> Result<(), FileError>,
) -> Result<(), FileError> {
    for extent in view.extents() {
        match extent.source {
            ExtentSource::Header => write(extent.offset, view.header())?,
            ExtentSource::Zero => {}
            ExtentSource::Physical(start) => for_chunks(start..start + extent.len, |range| {
                file.file.will_read(range.clone());
                write(extent.offset + (range.start - start), file.bytes(range))
            })?,
        }
    }
    Ok(())
}
