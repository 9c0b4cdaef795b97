//! Streaming a prepared file to disk: large writes, straight from the source's
//! mapping where the data are its own, digests computed alongside, the header
//! last.

use std::collections::BTreeMap;
use std::path::Path;

use headshare_files::{AtomicFile, FileError, ScratchFile};
use headshare_format::alias::{Digests, format_digest};
use headshare_format::layout::{PhysicalLayout, StoredTensor};

use super::check::check_source;
use super::digest::hash_zeros;
use super::error::ConvertError;
use super::record::{MadeBy, pad};
use super::variant::Variant;
use super::{Headshare, Prepared};

/// Writes the file that `prepared` describes to `out`; returns the source's
/// digest.
///
/// `progress` is told the bytes done so far, of [`Prepared::output_bytes`].
///
/// # Errors
/// When the output cannot be written, or the source is not the file that the
/// plan was made for; nothing is left behind then.
pub fn write(
    prepared: &Prepared<'_>,
    out: &Path,
    force: bool,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<String, ConvertError> {
    let source = prepared.variant.source.file.id();
    let output = AtomicFile::create(out, prepared.output_bytes, force, &[source])?;
    let digest = put(prepared, &|at, bytes| output.write_at(at, bytes), progress)?;
    output.commit()?;
    Ok(digest)
}

/// Writes the file that `prepared` describes to one that goes away with what is returned.
///
/// # Errors
/// As [`write`].
pub fn write_to_scratch(prepared: &Prepared<'_>) -> Result<ScratchFile, ConvertError> {
    let scratch = ScratchFile::create(prepared.output_bytes)?;
    put(prepared, &|at, bytes| scratch.write_at(at, bytes), &|_| {})?;
    Ok(scratch)
}

/// Writes bytes at a place of a file.
type WriteAt<'a> = dyn Fn(u64, &[u8]) -> Result<(), FileError> + Sync + 'a;

/// The file that `prepared` describes, but for padding: a new file has zeros already.
fn put(
    prepared: &Prepared<'_>,
    write_at: &WriteAt<'_>,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<String, ConvertError> {
    let variant = &prepared.variant;
    let source = variant.source;
    let digest = || match &prepared.plan {
        // It is in the header already.
        Some(plan) if plan.reshapes() => plan.source.clone(),
        _ => source.digest().to_owned(),
    };
    let Some(headshare) = &prepared.headshare else {
        put_plain(variant, prepared.made_by.as_ref(), write_at, progress)?;
        return Ok(digest());
    };
    let Headshare {
        layout,
        data_offset,
        plan_len,
    } = headshare;
    let data_offset = *data_offset;
    let (stored, source_digest) = rayon::join(
        || write_stored(variant, layout, data_offset, write_at, progress),
        digest,
    );
    let stored = stored?;
    let mut table = layout.table.clone();
    if let Some(plan) = &prepared.plan {
        // What reshapes its source was held against it when its header was made.
        if !plan.reshapes() {
            check_source(plan, source)?;
        }
        let mut plan = plan.clone();
        plan.source.clone_from(&source_digest);
        let mut json = plan.to_json();
        pad(&mut json, *plan_len);
        table.provenance.plan = Some(json);
    }
    table.provenance.source_digest.clone_from(&source_digest);
    let header = table.encode(
        variant.gguf(),
        &layout.infos(),
        layout.page,
        Digests::Known(&stored),
    );
    assert!(
        header.len() as u64 <= data_offset,
        "the header's length does not depend on its digests"
    );
    write_at(0, &header)?;
    Ok(source_digest)
}

/// Writes `variant` to `out` as a plain GGUF.
///
/// `progress` is told the bytes done so far, of [`Variant::len`].
///
/// # Errors
/// When weights cannot be encoded or the output cannot be written; nothing is
/// left behind then.
pub fn write_plain(
    variant: &Variant<'_>,
    out: &Path,
    force: bool,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<(), ConvertError> {
    let output = AtomicFile::create(out, variant.len(), force, &[variant.source.file.id()])?;
    put_plain(
        variant,
        None,
        &|at, bytes| output.write_at(at, bytes),
        progress,
    )?;
    output.commit()?;
    Ok(())
}

/// Writes `variant` as a plain GGUF to a file that goes away with what is returned.
///
/// # Errors
/// When weights cannot be encoded, or there is no room for it.
pub fn write_plain_to_scratch(variant: &Variant<'_>) -> Result<ScratchFile, ConvertError> {
    let scratch = ScratchFile::create(variant.len())?;
    put_plain(
        variant,
        None,
        &|at, bytes| scratch.write_at(at, bytes),
        &|_| {},
    )?;
    Ok(scratch)
}

/// The variant as a plain file, but for padding: a new file has zeros already.
/// `made_by` is what it says about itself, with the digests of what was computed.
fn put_plain(
    variant: &Variant<'_>,
    made_by: Option<&MadeBy>,
    write_at: &WriteAt<'_>,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<(), ConvertError> {
    let gguf = variant.gguf();
    let named = made_by.map_or(&[][..], |made_by| &made_by.tensors);
    let mut digests = BTreeMap::new();
    for info in gguf.tensors() {
        let place = gguf.data_range(info);
        let mut at = place.start;
        let mut hasher = named.contains(&info.name).then(blake3::Hasher::new);
        variant.stream::<ConvertError>(place, |bytes| {
            write_at(at, bytes)?;
            if let Some(hasher) = &mut hasher {
                hasher.update(bytes);
            }
            at += bytes.len() as u64;
            progress(at);
            Ok(())
        })?;
        if let Some(hasher) = hasher {
            digests.insert(info.name.clone(), format_digest(&hasher.finalize()));
        }
    }
    let header = match made_by {
        Some(made_by) => variant.header_saying(&made_by.json(&digests)),
        None => gguf.header_bytes().to_vec(),
    };
    assert_eq!(
        header.len(),
        gguf.header_bytes().len(),
        "the header's length does not depend on its digests"
    );
    write_at(0, &header)?;
    Ok(())
}

fn write_stored(
    variant: &Variant<'_>,
    layout: &PhysicalLayout,
    data_offset: u64,
    write_at: &WriteAt<'_>,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Vec<blake3::Hash>, ConvertError> {
    let mut digests = Vec::with_capacity(layout.stored.len());
    for stored in &layout.stored {
        let start = data_offset + stored.info.offset;
        digests.push(write_tensor(variant, stored, start, write_at, progress)?);
    }
    Ok(digests)
}

fn write_tensor(
    variant: &Variant<'_>,
    stored: &StoredTensor,
    start: u64,
    write_at: &WriteAt<'_>,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<blake3::Hash, ConvertError> {
    let mut hasher = blake3::Hasher::new();
    let mut written = 0;
    for piece in &stored.pieces {
        hash_zeros(&mut hasher, piece.offset - written);
        let mut at = start + piece.offset;
        variant.stream::<ConvertError>(piece.source.clone(), |bytes| {
            write_at(at, bytes)?;
            hasher.update(bytes);
            at += bytes.len() as u64;
            progress(at);
            Ok(())
        })?;
        written = piece.offset + (piece.source.end - piece.source.start);
    }
    hash_zeros(&mut hasher, stored.info.byte_len() - written);
    Ok(hasher.finalize())
}
