//! Writing the header of a physical file.

use super::{ARCHITECTURE, AliasTable, VERSION, keys};
use crate::gguf::{Gguf, HeaderBuilder, KEY_ALIGNMENT, KEY_ARCHITECTURE};
use crate::{PageSize, TensorInfo};

/// Hexadecimal digits of a digest.
pub const METADATA_DIGEST_HEX_LEN: usize = 64;

/// What is known of the stored tensors' content.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Digests<'a> {
    /// Not known yet: the header gets its final size, with zeros for digests.
    Unknown,
    /// The digest of each stored tensor's data, in order.
    Known(&'a [blake3::Hash]),
}

impl AliasTable {
    /// The header of the physical file: the source's records in their order,
    /// with the architecture and alignment replaced, then this table.
    ///
    /// `stored` are the stored tensors with their offsets; `page` is the page
    /// size the file is laid out for. Its length does not depend on `digests`.
    pub fn encode(
        &self,
        source: &Gguf,
        stored: &[TensorInfo],
        page: PageSize,
        digests: Digests<'_>,
    ) -> Vec<u8> {
        let page = page.to_u32();
        let mut header = HeaderBuilder::new(3);
        if self.source.architecture.is_none() {
            header.str(KEY_ARCHITECTURE, ARCHITECTURE);
        }
        for kv in source.kvs() {
            match kv.key.as_str() {
                KEY_ARCHITECTURE => header.str(KEY_ARCHITECTURE, ARCHITECTURE),
                KEY_ALIGNMENT => header.u32(KEY_ALIGNMENT, page),
                _ => header.record(source.record(kv)),
            }
        }
        if !self.source.has_alignment_key {
            header.u32(KEY_ALIGNMENT, page);
        }
        self.encode_provenance(&mut header);
        self.encode_tensors(&mut header);
        self.encode_segments(&mut header);

        let zero = blake3::Hash::from_bytes([0; 32]);
        let hex: Vec<String> = match digests {
            Digests::Unknown => stored.iter().map(|_| format_digest(&zero)).collect(),
            Digests::Known(hashes) => hashes.iter().map(format_digest).collect(),
        };
        assert_eq!(hex.len(), stored.len(), "one digest per stored tensor");
        header.strs(keys::DIGEST_STORED, hex.iter().map(String::as_str));
        // The last record, so that its place in the bytes is known.
        header.str(keys::DIGEST_METADATA, &format_digest(&zero));
        let kvs_end = header.kvs_end();
        for tensor in stored {
            header.tensor(tensor);
        }
        let mut bytes = header.finish();
        if matches!(digests, Digests::Known(_)) {
            let digits = kvs_end - METADATA_DIGEST_HEX_LEN..kvs_end;
            let digest = metadata_digest(&bytes, digits.clone());
            bytes[digits].copy_from_slice(digest.to_hex().as_bytes());
        }
        bytes
    }

    fn encode_provenance(&self, header: &mut HeaderBuilder) {
        header.u32(keys::VERSION, VERSION);
        if let Some(architecture) = &self.source.architecture {
            header.str(keys::ARCHITECTURE, architecture);
        }
        header.str(keys::TOOL, &self.provenance.tool);
        header.bool(keys::LOSSLESS, self.provenance.lossless);
        if let Some(plan) = &self.provenance.plan {
            header.str(keys::PLAN, plan);
        }
        if let Some(replaced) = &self.provenance.replaced {
            header.str(keys::REPLACED_BY, &replaced.by);
            let names = replaced.tensors.iter();
            let names = names.map(|&i| self.tensors[i as usize].name.as_str());
            header.strs(keys::REPLACED_TENSORS, names);
        }
        header.u32(keys::SOURCE_VERSION, self.source.version);
        header.u32(
            keys::SOURCE_ALIGNMENT,
            u32::try_from(self.source.alignment).expect("alignments are bounded"),
        );
        header.bool(
            keys::SOURCE_HAS_ALIGNMENT_KEY,
            self.source.has_alignment_key,
        );
        header.u64(keys::SOURCE_SIZE, self.source.size);
        header.str(keys::SOURCE_DIGEST, &self.provenance.source_digest);
    }

    fn encode_tensors(&self, header: &mut HeaderBuilder) {
        let tensors = &self.tensors;
        header.strs(keys::TENSOR_NAMES, tensors.iter().map(|t| t.name.as_str()));
        header.u32s(keys::TENSOR_TYPES, tensors.iter().map(|t| t.ggml_type.id()));
        header.u32s(
            keys::TENSOR_N_DIMS,
            tensors.iter().map(|t| t.dims.len() as u32),
        );
        let dims: Vec<u64> = tensors.iter().flat_map(|t| t.dims.clone()).collect();
        header.u64s(keys::TENSOR_DIMS, dims.into_iter());
    }

    fn encode_segments(&self, header: &mut HeaderBuilder) {
        let segments = &self.segments;
        header.u32s(keys::SEGMENT_TENSORS, segments.iter().map(|s| s.tensor));
        header.u64s(keys::SEGMENT_OFFSETS, segments.iter().map(|s| s.offset));
        header.u64s(keys::SEGMENT_LENGTHS, segments.iter().map(|s| s.len));
        header.u32s(keys::SEGMENT_STORED, segments.iter().map(|s| s.stored));
        header.u64s(
            keys::SEGMENT_STORED_OFFSETS,
            segments.iter().map(|s| s.stored_offset),
        );
    }
}

/// `blake3:` and the digest's 64 hexadecimal digits.
pub fn format_digest(hash: &blake3::Hash) -> String {
    format!("blake3:{}", hash.to_hex())
}

/// The digest of a header whose own 64 digits lie at `digits`: blake3 of its
/// bytes with zeros (`0`, the digit) there.
pub(super) fn metadata_digest(header: &[u8], digits: std::ops::Range<usize>) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&header[..digits.start]);
    hasher.update(&[b'0'; METADATA_DIGEST_HEX_LEN]);
    hasher.update(&header[digits.end..]);
    hasher.finalize()
}
