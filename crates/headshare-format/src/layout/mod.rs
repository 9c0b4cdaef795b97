//! From "these rows are those rows" to a physical file: which bytes are
//! stored, where, and which segments the logical tensors are made of.
//!
//! [`plan`] decides; writing the bytes is the caller's ([`StoredTensor::pieces`]
//! says what goes where).

mod pool;
mod sharing;

use std::ops::Range;

pub use sharing::SharedRows;

use crate::alias::{
    AliasTable, FILLER, PAGE_SIZES, POOL, Provenance, RESERVED_PREFIX, Segment, SourceLayout,
};
use crate::gguf::{Gguf, align_up};
use crate::{Advice, ErrorKind, FormatError, GgmlType, PageSize, Rule, TensorInfo};
use pool::{Pool, PoolItem};
use sharing::Ownership;

/// A tensor of the physical file.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoredTensor {
    /// Name, type, shape, and offset from the start of the data section.
    pub info: TensorInfo,
    /// What it holds, ascending and without overlap; bytes between pieces are
    /// zero.
    pub pieces: Vec<Piece>,
}

/// Bytes of the source that a stored tensor holds.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Piece {
    /// Offset in the stored tensor's data, in bytes.
    pub offset: u64,
    /// The range of the source file.
    pub source: Range<u64>,
}

/// A planned physical file.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PhysicalLayout {
    /// The stored tensors, in file order.
    pub stored: Vec<StoredTensor>,
    /// The alias table.
    pub table: AliasTable,
    /// The page size that the file is laid out for.
    pub page: PageSize,
}

impl PhysicalLayout {
    /// The stored tensors' infos.
    pub fn infos(&self) -> Vec<TensorInfo> {
        self.stored.iter().map(|t| t.info.clone()).collect()
    }

    /// Bytes of the data section: to the end of the last stored tensor.
    pub fn data_len(&self) -> u64 {
        self.stored
            .last()
            .map_or(0, |t| t.info.offset + t.info.byte_len())
    }
}

/// Plans the physical file of `source`, laid out for pages of `page`, in
/// which `shared` rows are stored only at their donor's place.
///
/// `is_zero` says whether the source has nothing but zeros in a range that lies
/// between its tensors.
///
/// # Errors
/// When the source uses names that the format reserves, or `shared` is not
/// what [`SharedRows`] asks for.
pub fn plan(
    source: &Gguf,
    is_zero: &dyn Fn(Range<u64>) -> bool,
    shared: &[SharedRows],
    page: PageSize,
    provenance: Provenance,
) -> Result<PhysicalLayout, FormatError> {
    if !PAGE_SIZES.contains(&page) {
        return Err(FormatError::unsupported(
            "page size",
            format!("{page} is no page size of the format ({PAGE_SIZES:?})"),
        ));
    }
    refuse_reserved(source)?;
    let ownership =
        Ownership::resolve(source, shared).map_err(|error| error.breaking(Rule::Sharing))?;
    let mut layout = Placement::new(source, page);
    for index in 0..source.tensors().len() {
        layout.place(&ownership, index);
    }
    layout.finish_pool(&ownership);
    let segments = layout.segments(&ownership);
    let mut stored = layout.stored;
    if let Some(filler) = filler_tensor(source, is_zero) {
        stored.push(filler);
    }
    let mut offset = 0;
    for tensor in &mut stored {
        tensor.info.offset = offset;
        offset = page
            .align_up(offset + tensor.info.byte_len())
            .ok_or_else(|| FormatError::unsupported("output", "its size overflows"))?;
    }
    Ok(PhysicalLayout {
        stored,
        table: AliasTable {
            source: SourceLayout::of(source)?,
            provenance,
            tensors: source.tensors().to_vec(),
            segments,
        },
        page,
    })
}

fn refuse_reserved(source: &Gguf) -> Result<(), FormatError> {
    if crate::alias::is_converted(source) {
        return Err(FormatError::key(
            crate::gguf::KEY_ARCHITECTURE,
            "this file is converted already",
        )
        .of(ErrorKind::Unsupported)
        .advise(Advice::StartFromExpanded));
    }
    if let Some(kv) = source
        .kvs()
        .iter()
        .find(|kv| kv.key.starts_with(RESERVED_PREFIX))
    {
        return Err(FormatError::key(
            &kv.key,
            format!("keys beginning with {RESERVED_PREFIX:?} are reserved for converted files"),
        )
        .of(ErrorKind::Unsupported));
    }
    if let Some(tensor) = source
        .tensors()
        .iter()
        .find(|t| t.name.starts_with(RESERVED_PREFIX))
    {
        return Err(FormatError::tensor(
            &tensor.name,
            format!("names beginning with {RESERVED_PREFIX:?} are reserved for converted files"),
        )
        .of(ErrorKind::Unsupported));
    }
    Ok(())
}

/// The filler tensor, when the source's filler is more than zero padding.
fn filler_tensor(source: &Gguf, is_zero: &dyn Fn(Range<u64>) -> bool) -> Option<StoredTensor> {
    let ranges = source.filler_ranges();
    let padded_end = align_up(source.data_end(), source.alignment())?;
    let plain =
        source.file_len() <= padded_end && ranges.iter().all(|range| is_zero(range.clone()));
    if plain {
        return None;
    }
    let mut offset = 0;
    let mut pieces = Vec::new();
    for source in ranges {
        let len = source.end - source.start;
        pieces.push(Piece { offset, source });
        offset += len;
    }
    Some(StoredTensor {
        info: byte_tensor(FILLER, offset),
        pieces,
    })
}

fn byte_tensor(name: &str, len: u64) -> TensorInfo {
    TensorInfo {
        name: name.to_owned(),
        ggml_type: GgmlType::I8,
        dims: vec![len],
        offset: 0,
    }
}

/// Where a run of a source tensor's own bytes is stored.
#[derive(Debug, Clone)]
struct Placed {
    range: Range<u64>,
    stored: u32,
    stored_offset: u64,
}

struct Placement<'a> {
    source: &'a Gguf,
    page: PageSize,
    stored: Vec<StoredTensor>,
    items: Vec<PoolItem>,
    /// Per source tensor: its own runs, ascending.
    placed: Vec<Vec<Placed>>,
}

impl<'a> Placement<'a> {
    fn new(source: &'a Gguf, page: PageSize) -> Self {
        Self {
            source,
            page,
            stored: Vec::new(),
            items: Vec::new(),
            placed: vec![Vec::new(); source.tensors().len()],
        }
    }

    /// Decides where the own bytes of tensor `index` go: under its name, into
    /// the pool, or both.
    fn place(&mut self, ownership: &Ownership, index: usize) {
        let own = ownership.own_runs(index);
        let info = &self.source.tensors()[index];
        let donated = ownership.donated_parts(index);
        let (pooled, kept): (Vec<Range<u64>>, Vec<Range<u64>>) =
            split_by(&own, &donated).into_iter().fold(
                (Vec::new(), Vec::new()),
                |(mut pooled, mut kept), (range, is_donated)| {
                    if is_donated {
                        pooled.push(range)
                    } else {
                        kept.push(range)
                    }
                    (pooled, kept)
                },
            );
        // What would lie at another page residue than in the logical tensor
        // could not be mapped there: the pool can put it at its own.
        let mut kept_len = 0;
        let (mut kept, mut pooled_too) = kept.into_iter().partition::<Vec<_>, _>(|range| {
            let agrees = self.page.residue(range.start) == self.page.residue(kept_len);
            if agrees {
                kept_len += range.end - range.start;
            }
            agrees
        });
        if kept_len < self.page.bytes() {
            pooled_too.append(&mut kept);
            pooled_too.sort_by_key(|range| range.start);
        }
        for range in pooled.into_iter().chain(pooled_too) {
            self.items.push(PoolItem {
                tensor: index,
                range,
            });
        }
        if kept.is_empty() {
            return;
        }
        let data = self.source.data_range(info);
        let mut pieces = Vec::new();
        let mut offset = 0;
        for range in kept {
            pieces.push(Piece {
                offset,
                source: data.start + range.start..data.start + range.end,
            });
            let len = range.end - range.start;
            self.placed[index].push(Placed {
                range,
                stored: self.stored.len() as u32,
                stored_offset: offset,
            });
            offset += len;
        }
        let dims = if offset == info.byte_len() {
            info.dims.clone()
        } else {
            vec![info.row_elems(), offset / info.row_bytes()]
        };
        self.stored.push(StoredTensor {
            info: TensorInfo {
                dims,
                offset: 0,
                ..info.clone()
            },
            pieces,
        });
    }

    fn finish_pool(&mut self, ownership: &Ownership) {
        let pool = Pool::pack(std::mem::take(&mut self.items), ownership, self.page);
        if pool.len == 0 {
            return;
        }
        let stored = self.stored.len() as u32;
        let mut pieces = Vec::new();
        for (item, offset) in pool.items {
            let data = self.source.data_range(&self.source.tensors()[item.tensor]);
            pieces.push(Piece {
                offset,
                source: data.start + item.range.start..data.start + item.range.end,
            });
            self.placed[item.tensor].push(Placed {
                range: item.range,
                stored,
                stored_offset: offset,
            });
        }
        pieces.sort_by_key(|p| p.offset);
        self.stored.push(StoredTensor {
            info: byte_tensor(POOL, pool.len),
            pieces,
        });
        for placed in &mut self.placed {
            placed.sort_by_key(|p| p.range.start);
        }
    }

    fn segments(&self, ownership: &Ownership) -> Vec<Segment> {
        let mut segments: Vec<Segment> = Vec::new();
        for index in 0..self.source.tensors().len() {
            for (range, owner) in ownership.runs(index) {
                let mut offset = range.start;
                let owned = owner.offset..owner.offset + (range.end - range.start);
                for (stored, stored_offset, len) in self.locate(owner.tensor, owned) {
                    let next = Segment {
                        tensor: index as u32,
                        offset,
                        len,
                        stored,
                        stored_offset,
                    };
                    offset += len;
                    match segments.last_mut() {
                        Some(last)
                            if last.tensor == next.tensor
                                && last.stored == next.stored
                                && last.stored_offset + last.len == next.stored_offset =>
                        {
                            last.len += next.len;
                        }
                        _ => segments.push(next),
                    }
                }
            }
        }
        segments
    }

    /// The stored places `(tensor, offset, length)` of own bytes `range` of
    /// source tensor `tensor`, in order.
    fn locate(&self, tensor: usize, range: Range<u64>) -> Vec<(u32, u64, u64)> {
        let placed = &self.placed[tensor];
        let first = placed.partition_point(|p| p.range.end <= range.start);
        let mut places = Vec::new();
        for p in placed[first..]
            .iter()
            .take_while(|p| p.range.start < range.end)
        {
            let start = p.range.start.max(range.start);
            let end = p.range.end.min(range.end);
            places.push((
                p.stored,
                p.stored_offset + (start - p.range.start),
                end - start,
            ));
        }
        debug_assert_eq!(
            places.iter().map(|p| p.2).sum::<u64>(),
            range.end - range.start,
            "own bytes are placed somewhere"
        );
        places
    }
}

/// Cuts `runs` at the boundaries of `marks` (both ascending, disjoint); says
/// for each part whether it lies in a mark. Parts of different marks stay
/// apart.
fn split_by(runs: &[Range<u64>], marks: &[Range<u64>]) -> Vec<(Range<u64>, bool)> {
    let mut parts = Vec::new();
    for run in runs {
        let mut pos = run.start;
        let first = marks.partition_point(|m| m.end <= run.start);
        for mark in marks[first..].iter().take_while(|m| m.start < run.end) {
            let start = mark.start.max(run.start);
            let end = mark.end.min(run.end);
            if pos < start {
                parts.push((pos..start, false));
            }
            parts.push((start..end, true));
            pos = end;
        }
        if pos < run.end {
            parts.push((pos..run.end, false));
        }
    }
    parts
}
