//! Streaming a planned file to disk: large writes straight from the source's
//! mapping, digests computed alongside, the header last.

use std::ops::Range;
use std::path::Path;

use headshare_format::TensorInfo;
use headshare_format::alias::{Digests, format_digest};
use headshare_format::layout::{PhysicalLayout, StoredTensor};
use headshare_stitch::{AtomicFile, FileError};

use super::{ConvertError, Prepared, Replacement, UNKNOWN_DIGEST};
use crate::input::ModelFile;
use crate::plan::Plan;

/// Bytes handed to the kernel, and to the hasher, at a time.
const CHUNK: u64 = 8 << 20;

/// Writes the file that `prepared` describes to `out`; returns the source's
/// digest.
///
/// `progress` is told the bytes done so far, of [`Prepared::output_bytes`].
///
/// # Errors
/// When the output cannot be written, or the source is not the file that the
/// plan was made for; nothing is left behind then.
pub fn write(
    source: &ModelFile,
    mut prepared: Prepared,
    out: &Path,
    force: bool,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<String, ConvertError> {
    let output = AtomicFile::create(out, prepared.output_bytes, force, &[source.file.id()])?;
    let data_offset = prepared.data_offset;
    let (stored, source_digest) = rayon::join(
        || {
            let content = Content {
                source,
                replacement: &prepared.replacement,
            };
            write_stored(&content, &prepared.layout, data_offset, &output, progress)
        },
        || digest_of(source),
    );
    let stored = stored?;
    if let Some(plan) = &mut prepared.plan {
        check_source(plan, source, &source_digest)?;
        plan.source.clone_from(&source_digest);
        prepared.layout.table.provenance.plan = Some(plan.to_json());
    }
    prepared
        .layout
        .table
        .provenance
        .source_digest
        .clone_from(&source_digest);
    let infos = prepared.layout.infos();
    let header = prepared.layout.table.encode(
        &source.gguf,
        &infos,
        prepared.layout.page,
        Digests::Known(&stored),
    );
    assert!(
        header.len() as u64 <= data_offset,
        "the header's length does not depend on its digests"
    );
    output.write_at(0, &header)?;
    output.commit()?;
    Ok(source_digest)
}

/// Checks that `plan` was made for `source`, whose digest is `digest`.
///
/// # Errors
/// When it was made for another file.
pub fn check_source(plan: &Plan, source: &ModelFile, digest: &str) -> Result<(), ConvertError> {
    if plan.source == UNKNOWN_DIGEST || plan.source == digest {
        return Ok(());
    }
    Err(ConvertError::WrongSource {
        path: source.path().to_owned(),
        expected: plan.source.clone(),
        actual: digest.to_owned(),
    })
}

/// The digest of a whole file, as plans and tables state it.
pub fn digest_of(file: &ModelFile) -> String {
    let mut hasher = blake3::Hasher::new();
    for_chunks(0..file.len(), |range| {
        file.file.will_read(range.clone());
        hasher.update(file.bytes(range));
        Ok::<(), std::convert::Infallible>(())
    })
    .unwrap_or_else(|never| match never {});
    format_digest(&hasher.finalize())
}

/// The bytes that the logical tensors will have.
struct Content<'a> {
    source: &'a ModelFile,
    replacement: &'a Replacement,
}

impl Content<'_> {
    /// The bytes that stand where `range` of the source does, which lies in one
    /// tensor or in none.
    fn bytes(&self, range: Range<u64>) -> &[u8] {
        for (&tensor, data) in &self.replacement.tensors {
            let gguf = &self.source.gguf;
            let place = gguf.data_range(&gguf.tensors[tensor]);
            if place.contains(&range.start) {
                let start = (range.start - place.start) as usize;
                return &data[start..start + (range.end - range.start) as usize];
            }
        }
        self.source.file.will_read(range.clone());
        self.source.bytes(range)
    }
}

fn write_stored(
    content: &Content<'_>,
    layout: &PhysicalLayout,
    data_offset: u64,
    output: &AtomicFile,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Vec<blake3::Hash>, FileError> {
    let mut digests = Vec::with_capacity(layout.stored.len());
    for stored in &layout.stored {
        let start = data_offset + stored.info.offset;
        digests.push(write_tensor(content, stored, start, output, progress)?);
    }
    Ok(digests)
}

fn write_tensor(
    content: &Content<'_>,
    stored: &StoredTensor,
    start: u64,
    output: &AtomicFile,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<blake3::Hash, FileError> {
    let mut hasher = blake3::Hasher::new();
    let mut written = 0;
    for piece in &stored.pieces {
        hash_zeros(&mut hasher, piece.offset - written);
        for_chunks(piece.source.clone(), |range| {
            let at = start + piece.offset + (range.start - piece.source.start);
            let bytes = content.bytes(range);
            output.write_at(at, bytes)?;
            hasher.update(bytes);
            progress(at + bytes.len() as u64);
            Ok(())
        })?;
        written = piece.offset + (piece.source.end - piece.source.start);
    }
    hash_zeros(&mut hasher, stored.info.byte_len() - written);
    Ok(hasher.finalize())
}

pub(super) fn hash_zeros(hasher: &mut blake3::Hasher, len: u64) {
    for some in zeros(len) {
        hasher.update(some);
    }
}

/// As many zeros, in pieces.
pub(super) fn zeros(len: u64) -> impl Iterator<Item = &'static [u8]> {
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    let size = ZEROS.len() as u64;
    let last = (len % size) as usize;
    let whole = (0..len / size).map(|_| &ZEROS[..]);
    whole.chain((last > 0).then(|| &ZEROS[..last]))
}

/// Calls `each` with consecutive chunks of `range`.
pub(super) fn for_chunks<E>(
    range: std::ops::Range<u64>,
    mut each: impl FnMut(std::ops::Range<u64>) -> Result<(), E>,
) -> Result<(), E> {
    let mut pos = range.start;
    while pos < range.end {
        let end = range.end.min(pos + CHUNK);
        each(pos..end)?;
        pos = end;
    }
    Ok(())
}

/// The digest of a stored tensor as the file has it now.
pub(super) fn digest_stored(file: &ModelFile, info: &TensorInfo) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update_rayon(file.bytes(file.gguf.data_range(info)));
    format_digest(&hasher.finalize())
}
