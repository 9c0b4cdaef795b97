//! From a converted file back to a plain GGUF that stock llama.cpp loads.
//!
//! A file that leaves here under a name was held against the digests that the
//! converted one carries: a lossless one against the source's, any other's
//! stored tensors and header each against its own.

use std::convert::Infallible;
use std::io::{self, Write};
use std::path::Path;

use headshare_files::{AtomicFile, ScratchFile};
use headshare_format::alias::{AliasTable, format_digest};
use headshare_format::{ExtentSource, LogicalLayout, VirtualGguf};

use super::damage::{Damage, differing};
use super::digest::{for_chunks, hash_zeros, zeros};
use super::error::ConvertError;
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
/// When the output cannot be written, or what was written is not what the
/// digests say; nothing is left behind then, and what was there stays.
pub fn expand(
    file: &ModelFile,
    table: &AliasTable,
    out: &Path,
    force: bool,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<u64, ConvertError> {
    let view = source_view(file, table)?;
    let output = AtomicFile::create(out, view.len(), force, &[file.file.id()])?;
    // While the pages are in memory, they are hashed: all that is written of a
    // lossless file, what it was made of otherwise.
    let lossless = table.provenance.lossless;
    let (written, differing) = rayon::join(
        || {
            let mut hasher = blake3::Hasher::new();
            for_pieces(file, &view, |at, piece| {
                progress(at);
                if lossless {
                    piece.hash(&mut hasher);
                }
                match piece {
                    Piece::Bytes(bytes) => output.write_at(at, bytes),
                    // A new file has those already.
                    Piece::Zeros(_) => Ok(()),
                }
            })?;
            Ok::<_, ConvertError>(format_digest(&hasher.finalize()))
        },
        || {
            if lossless {
                Ok(Vec::new())
            } else {
                differing(file)
            }
        },
    );
    let written = written?;
    if lossless && written != table.provenance.source_digest {
        return Err(not_the_source(file));
    }
    Damage::found(file, differing?)?;
    output.commit()?;
    Ok(view.len())
}

/// Writes the same to `out`, from the first byte to the last.
///
/// Nothing can be taken back from a stream, so everything is held against its
/// digest before the first byte is written.
///
/// # Errors
/// As [`expand`].
pub fn expand_to_stream(
    file: &ModelFile,
    table: &AliasTable,
    out: &mut dyn Write,
    progress: &dyn Fn(u64),
) -> Result<u64, StreamError> {
    let view = source_view(file, table).map_err(ConvertError::from)?;
    if table.provenance.lossless {
        if digest_of_view(file, &view) != table.provenance.source_digest {
            return Err(not_the_source(file).into());
        }
    } else {
        let differing = differing(file).map_err(ConvertError::from)?;
        Damage::found(file, differing).map_err(ConvertError::from)?;
    }
    for_pieces(file, &view, |at, piece| {
        progress(at);
        piece.write(out)
    })?;
    out.flush()?;
    Ok(view.len())
}

/// Why a stream did not get everything.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// There is nothing to write.
    #[error(transparent)]
    Convert(#[from] ConvertError),
    /// The stream takes no more.
    #[error(transparent)]
    Write(#[from] io::Error),
}

/// Writes the same to a file without a name, for a program to load. It is not
/// held against any digest, as nothing is that is run from a converted file.
///
/// # Errors
/// When the folder for temporary files cannot take it.
pub fn expand_to_scratch(
    file: &ModelFile,
    table: &AliasTable,
) -> Result<ScratchFile, ConvertError> {
    let view = source_view(file, table)?;
    let scratch = ScratchFile::create(view.len())?;
    for_pieces(file, &view, |at, piece| match piece {
        Piece::Bytes(bytes) => scratch.write_at(at, bytes),
        Piece::Zeros(_) => Ok(()),
    })?;
    Ok(scratch)
}

/// What differs in a lossless file that does not give its source back.
fn not_the_source(file: &ModelFile) -> ConvertError {
    match differing(file) {
        Ok(found) if found.is_empty() => Damage::of_the_whole(file).into(),
        Ok(found) => Damage::new(file, found).into(),
        Err(error) => error.into(),
    }
}

/// The digest of what `view` stands for.
pub(super) fn digest_of_view(file: &ModelFile, view: &VirtualGguf) -> String {
    let mut hasher = blake3::Hasher::new();
    for_pieces(file, view, |_, piece| {
        piece.hash(&mut hasher);
        Ok::<(), Infallible>(())
    })
    .unwrap_or_else(|never| match never {});
    format_digest(&hasher.finalize())
}

/// Bytes of a logical file.
enum Piece<'a> {
    Bytes(&'a [u8]),
    /// As many zeros.
    Zeros(u64),
}

impl Piece<'_> {
    fn hash(&self, hasher: &mut blake3::Hasher) {
        match self {
            Self::Bytes(bytes) => {
                hasher.update_rayon(bytes);
            }
            Self::Zeros(len) => hash_zeros(hasher, *len),
        }
    }

    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        match self {
            Self::Bytes(bytes) => out.write_all(bytes),
            Self::Zeros(len) => zeros(*len).try_for_each(|some| out.write_all(some)),
        }
    }
}

/// Hands the bytes of `view` to `each`, in order and with their offsets.
fn for_pieces<E>(
    file: &ModelFile,
    view: &VirtualGguf,
    mut each: impl FnMut(u64, Piece<'_>) -> Result<(), E>,
) -> Result<(), E> {
    for extent in view.extents() {
        match extent.source {
            ExtentSource::Header => each(extent.offset, Piece::Bytes(view.header()))?,
            ExtentSource::Zero => each(extent.offset, Piece::Zeros(extent.len))?,
            ExtentSource::Physical(start) => for_chunks(start..start + extent.len, |range| {
                file.file.will_read(range.clone());
                let at = extent.offset + (range.start - start);
                each(at, Piece::Bytes(file.bytes(range)))
            })?,
        }
    }
    Ok(())
}
