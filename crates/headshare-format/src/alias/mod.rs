//! The alias table: which stored bytes each logical tensor is made of.
//!
//! [`AliasTable::read`] validates a table completely before anything uses it;
//! [`AliasTable::encode`] writes the header of a physical file around it. The
//! rules are numbered in `docs/FORMAT.md`.

mod encode;
mod fields;
mod read;
mod source;

pub use encode::{Digests, METADATA_DIGEST_HEX_LEN, format_digest};
pub use read::{metadata_is_intact, stored_digests};
pub(crate) use source::{lay_out, paged_header, source_header};

use std::collections::{BTreeMap, HashMap};

use crate::gguf::{Gguf, KEY_ARCHITECTURE, Value};
use crate::{Advice, FormatError, PageSize, TensorInfo};

/// `general.architecture` of a physical file: a program that does not know the
/// format refuses it by this name.
pub const ARCHITECTURE: &str = "headshare";
/// The version of the format that this crate reads and writes.
pub const VERSION: u32 = 1;
/// Every key and stored tensor that the format adds begins with this.
pub const RESERVED_PREFIX: &str = "headshare.";
/// The tensor that holds parts of tensors, and tensors smaller than a page.
pub const POOL: &str = "headshare.pool";
/// The tensor that holds the source's bytes between and after its tensors,
/// present only where they are not the zeros that writers put there.
pub const FILLER: &str = "headshare.filler";
/// The page sizes a file can be laid out for.
pub const PAGE_SIZES: [PageSize; 3] = [PageSize::KIB_4, PageSize::KIB_16, PageSize::KIB_64];

/// What is wrong with a file whose header differs from its digest.
pub const HEADER_CHANGED: &str = "its header was changed after it was written";

/// The keys of the format.
pub mod keys {
    #![allow(missing_docs)]
    pub const VERSION: &str = "headshare.version";
    pub const ARCHITECTURE: &str = "headshare.architecture";
    pub const LOSSLESS: &str = "headshare.lossless";
    pub const TOOL: &str = "headshare.tool";
    pub const PLAN: &str = "headshare.plan";
    pub const REPLACED_BY: &str = "headshare.replaced.by";
    pub const REPLACED_TENSORS: &str = "headshare.replaced.tensors";
    pub const SOURCE_VERSION: &str = "headshare.source.version";
    pub const SOURCE_ALIGNMENT: &str = "headshare.source.alignment";
    pub const SOURCE_HAS_ALIGNMENT_KEY: &str = "headshare.source.has_alignment_key";
    pub const SOURCE_SIZE: &str = "headshare.source.size";
    pub const SOURCE_DIGEST: &str = "headshare.source.digest";
    pub const TENSOR_NAMES: &str = "headshare.tensor.names";
    pub const TENSOR_TYPES: &str = "headshare.tensor.types";
    pub const TENSOR_N_DIMS: &str = "headshare.tensor.n_dims";
    pub const TENSOR_DIMS: &str = "headshare.tensor.dims";
    pub const SEGMENT_TENSORS: &str = "headshare.segment.tensors";
    pub const SEGMENT_OFFSETS: &str = "headshare.segment.offsets";
    pub const SEGMENT_LENGTHS: &str = "headshare.segment.lengths";
    pub const SEGMENT_STORED: &str = "headshare.segment.stored";
    pub const SEGMENT_STORED_OFFSETS: &str = "headshare.segment.stored_offsets";
    pub const DIGEST_STORED: &str = "headshare.digest.stored";
    pub const DIGEST_METADATA: &str = "headshare.digest.metadata";
}

/// A run of whole rows of a logical tensor and where it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Segment {
    /// Index of the logical tensor.
    pub tensor: u32,
    /// Offset in the logical tensor's data, in bytes.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// Index of the stored tensor.
    pub stored: u32,
    /// Offset in the stored tensor's data, in bytes.
    pub stored_offset: u64,
}

/// What it takes to lay the source file out again.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SourceLayout {
    /// GGUF version, 2 or 3.
    pub version: u32,
    /// `general.architecture`, if the source states one.
    pub architecture: Option<String>,
    /// Alignment of its tensor data in bytes.
    pub alignment: u64,
    /// Whether it states that alignment.
    pub has_alignment_key: bool,
    /// Its size in bytes.
    pub size: u64,
}

impl SourceLayout {
    /// The layout of `source`.
    ///
    /// # Errors
    /// When its architecture is no UTF-8 string.
    pub fn of(source: &Gguf) -> Result<Self, FormatError> {
        Ok(Self {
            version: source.version(),
            architecture: source.architecture()?.map(str::to_owned),
            alignment: source.alignment(),
            has_alignment_key: source.kv(crate::gguf::KEY_ALIGNMENT).is_some(),
            size: source.file_len(),
        })
    }
}

/// How a physical file came about.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Provenance {
    /// Name and version of the program that wrote it.
    pub tool: String,
    /// Whether expanding it gives the source back byte for byte.
    pub lossless: bool,
    /// `blake3:` and 64 hexadecimal digits: the digest of the source file.
    pub source_digest: String,
    /// The plan it was made by, as JSON; absent for lossless files.
    pub plan: Option<String>,
    /// The logical tensors whose data is not the source's.
    pub replaced: Option<Replaced>,
}

impl Provenance {
    /// That of a file that `tool` (name and version) writes without loss from the
    /// source whose digest is `source_digest`, and without a plan.
    pub fn lossless(tool: impl Into<String>, source_digest: impl Into<String>) -> Self {
        Self {
            tool: tool.into(),
            lossless: true,
            source_digest: source_digest.into(),
            plan: None,
            replaced: None,
        }
    }
}

/// Logical tensors that were computed anew, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replaced {
    /// What they were computed by, as JSON: the program's settings and the
    /// digest of the text they depend on.
    pub by: String,
    /// Their indices, ascending; at least one.
    pub tensors: Vec<u32>,
}

/// A validated alias table.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct AliasTable {
    /// Layout of the source.
    pub source: SourceLayout,
    /// How the file came about.
    pub provenance: Provenance,
    /// The logical tensors in the source's order, with the source's offsets.
    pub tensors: Vec<TensorInfo>,
    /// The segments, ascending by (tensor, offset); those of a tensor cover
    /// each of its bytes once.
    pub segments: Vec<Segment>,
}

impl AliasTable {
    /// The segments of logical tensor `tensor`, ascending by offset.
    pub fn segments_of(&self, tensor: u32) -> &[Segment] {
        let start = self.segments.partition_point(|s| s.tensor < tensor);
        let end = self.segments.partition_point(|s| s.tensor <= tensor);
        &self.segments[start..end]
    }

    /// The logical ranges that are stored where bytes of a tensor that is
    /// earlier in `order` (or earlier bytes of the same tensor) are; in that
    /// order, each with the earlier range. That one is never an alias itself.
    ///
    /// # Errors
    /// When there are many more of them than segments: no writer makes segments
    /// that overlap in so many ways.
    pub fn shared_ranges(
        &self,
        order: impl IntoIterator<Item = u32>,
    ) -> Result<Vec<SharedRange>, FormatError> {
        let most = 4 * self.segments.len() + 4096;
        // Ranges that go on are one in the end, but each is walked over.
        let mut steps = 64 * most;
        let mut shared: Vec<SharedRange> = Vec::new();
        // Per stored tensor: disjoint ranges by their start, with their end and
        // the logical bytes that came first.
        let mut owned: HashMap<u32, BTreeMap<u64, (u64, LogicalPlace)>> = HashMap::new();
        for s in order.into_iter().flat_map(|t| self.segments_of(t)) {
            let owners = owned.entry(s.stored).or_default();
            let place = |at: u64| LogicalPlace {
                tensor: s.tensor,
                offset: s.offset + (at - s.stored_offset),
            };
            let end = s.stored_offset + s.len;
            let before = owners.range(..=s.stored_offset).next_back();
            let first = before.map_or(s.stored_offset, |(&start, _)| start);
            let mut at = s.stored_offset;
            let mut new = Vec::new();
            for (&start, &(owner_end, owner)) in owners.range(first..end) {
                if owner_end <= at {
                    continue;
                }
                if at < start {
                    new.push((at, (start, place(at))));
                    at = start;
                }
                let until = owner_end.min(end);
                let next = SharedRange {
                    alias: place(at),
                    donor: LogicalPlace {
                        tensor: owner.tensor,
                        offset: owner.offset + (at - start),
                    },
                    len: until - at,
                };
                at = until;
                steps = steps.saturating_sub(1);
                let full = shared.len() == most || steps == 0;
                match shared.last_mut() {
                    Some(last) if steps > 0 && last.is_continued_by(&next) => last.len += next.len,
                    _ if full => {
                        let problem = format!("segments overlap in more than {most} places");
                        return Err(
                            FormatError::unsupported("alias table", problem).advise(Advice::Expand)
                        );
                    }
                    _ => shared.push(next),
                }
            }
            if at < end {
                new.push((at, (end, place(at))));
            }
            owners.extend(new);
        }
        Ok(shared)
    }

    /// For each logical tensor, how many of its bytes are in
    /// [`shared_ranges`](Self::shared_ranges).
    pub fn shared_bytes(&self, order: impl IntoIterator<Item = u32>) -> Vec<u64> {
        let mut shared = vec![0; self.tensors.len()];
        // Without the list, which can be too long. Per stored tensor: what
        // earlier segments cover, by start, with the end; apart from each other.
        let mut covered: HashMap<u32, BTreeMap<u64, u64>> = HashMap::new();
        for s in order.into_iter().flat_map(|t| self.segments_of(t)) {
            let covered = covered.entry(s.stored).or_default();
            let (mut start, mut end) = (s.stored_offset, s.stored_offset + s.len);
            let before = covered.range(..start).next_back();
            let first = before.map_or(start, |(&first, _)| first);
            let touching: Vec<(u64, u64)> = covered
                .range(first..=end)
                .map(|(&from, &to)| (from, to))
                .filter(|&(_, to)| to >= start)
                .collect();
            for (from, to) in touching {
                let within = to.min(s.stored_offset + s.len) - from.max(s.stored_offset);
                shared[s.tensor as usize] += within;
                start = start.min(from);
                end = end.max(to);
                covered.remove(&from);
            }
            covered.insert(start, end);
        }
        shared
    }
}

/// Bytes of one logical tensor that are the same stored bytes as those of
/// another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct SharedRange {
    /// Where the bytes are used again.
    pub alias: LogicalPlace,
    /// Where they were used first.
    pub donor: LogicalPlace,
    /// Length in bytes.
    pub len: u64,
}

impl SharedRange {
    fn is_continued_by(&self, next: &Self) -> bool {
        let follows = |a: LogicalPlace, b: LogicalPlace| {
            a.tensor == b.tensor && a.offset + self.len == b.offset
        };
        follows(self.alias, next.alias) && follows(self.donor, next.donor)
    }
}

/// A place in a logical tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogicalPlace {
    /// Index of the tensor.
    pub tensor: u32,
    /// Offset in its data, in bytes.
    pub offset: u64,
}

/// Whether `gguf` is a physical file of this format (its table may still turn
/// out to be malformed).
pub fn is_converted(gguf: &Gguf) -> bool {
    gguf.value(KEY_ARCHITECTURE) == Some(Value::String(ARCHITECTURE.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::GgmlType;

    /// Tensor 0 has `rows` rows of one byte, stored backwards; each of `users`
    /// others is all of what is stored, in the stored order.
    fn table(rows: u64, users: u32) -> AliasTable {
        let tensor = |index: u32| TensorInfo {
            name: format!("t{index}"),
            ggml_type: GgmlType::I8,
            dims: vec![1, rows],
            offset: 0,
        };
        let backwards = (0..rows).map(|row| Segment {
            tensor: 0,
            offset: row,
            len: 1,
            stored: 0,
            stored_offset: rows - 1 - row,
        });
        let whole = (1..=users).map(|tensor| Segment {
            tensor,
            offset: 0,
            len: rows,
            stored: 0,
            stored_offset: 0,
        });
        AliasTable {
            source: SourceLayout {
                version: 3,
                architecture: None,
                alignment: 32,
                has_alignment_key: false,
                size: 0,
            },
            provenance: Provenance {
                tool: String::new(),
                lossless: true,
                source_digest: String::new(),
                plan: None,
                replaced: None,
            },
            tensors: (0..=users).map(tensor).collect(),
            segments: backwards.chain(whole).collect(),
        }
    }

    #[test]
    fn bytes_are_counted_where_a_list_of_ranges_would_be_too_long() {
        let table = table(3000, 3000);
        let shared = table.shared_bytes(0..=3000);
        assert_eq!(shared[0], 0);
        assert!(shared[1..].iter().all(|&bytes| bytes == 3000));
        let error = table.shared_ranges(0..=3000).unwrap_err().to_string();
        assert!(error.contains("overlap in more than"), "{error}");
    }

    #[test]
    fn ranges_that_go_on_are_not_walked_over_without_end() {
        let mut table = table(3000, 3000);
        for segment in &mut table.segments[..3000] {
            segment.stored_offset = segment.offset;
        }
        let error = table.shared_ranges(0..=3000).unwrap_err().to_string();
        assert!(error.contains("overlap in more than"), "{error}");
        // As few as writers make are.
        table.segments.truncate(3003);
        table.tensors.truncate(4);
        assert_eq!(table.shared_ranges(0..=3).unwrap().len(), 3);
    }

    #[test]
    fn ranges_that_go_on_are_one() {
        let table = table(5, 2);
        // The first user's bytes come first, in one piece; so do the second's.
        let ranges = table.shared_ranges([1, 2, 0]).unwrap();
        assert_eq!(ranges.len(), 1 + 5);
        assert_eq!((ranges[0].alias.tensor, ranges[0].donor.tensor), (2, 1));
        assert_eq!(ranges[0].len, 5);
        assert_eq!(table.shared_bytes([1, 2, 0]), [5, 0, 5]);
        // In the other order, the second tensor's go on where the first's do not.
        assert_eq!(table.shared_ranges([0, 1, 2]).unwrap().len(), 10);
    }
}
