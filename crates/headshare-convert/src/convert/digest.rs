//! Digests of files and of what they store, and bytes in chunks.

use headshare_format::TensorInfo;
use headshare_format::alias::format_digest;

use crate::input::ModelFile;

/// Stands, in a plan that was made a moment ago, for the source's digest,
/// which is not known yet; as long as any digest.
pub const UNKNOWN_DIGEST: &str =
    "blake3:0000000000000000000000000000000000000000000000000000000000000000";

/// Bytes handed to the kernel, and to the hasher, at a time.
pub(super) const CHUNK: u64 = 8 << 20;

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
