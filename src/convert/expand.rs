//! From a converted file back to a plain GGUF that stock llama.cpp loads.

use std::path::Path;

use headshare_format::alias::AliasTable;
use headshare_format::{ExtentSource, LogicalLayout, VirtualGguf};
use headshare_stitch::AtomicFile;

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
    for extent in view.extents() {
        match extent.source {
            ExtentSource::Header => output.write_at(extent.offset, view.header())?,
            ExtentSource::Zero => {} // a new file's bytes are zero
            ExtentSource::Physical(start) => for_chunks(start..start + extent.len, |range| {
                let at = extent.offset + (range.start - start);
                file.file.will_read(range.clone());
                output.write_at(at, file.bytes(range))?;
                progress(at);
                Ok::<(), ConvertError>(())
            })?,
        }
    }
    output.commit()?;
    Ok(view.len())
}
