//! The logical file as bytes, never materialised: a synthesised header and a
//! map from logical ranges to bytes of the physical file.
//!
//! Two layouts of the same logical model: the source's own, which `expand`
//! writes, and a page-aligned one, which the runtime maps so that an alias's
//! pages can *be* the donor's pages.

use std::ops::Range;

use crate::alias::{AliasTable, FILLER, lay_out, paged_header, source_header};
use crate::gguf::{Gguf, align_up};
use crate::{FormatError, PageSize, TensorInfo};

/// How the logical file is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum LogicalLayout {
    /// As the source was: alignment, padding, bytes at the end.
    Source,
    /// Every tensor begins on a page of this size.
    Pages(PageSize),
}

/// A run of logical bytes with one origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Extent {
    /// Offset in the logical file, in bytes.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// Where the bytes come from.
    pub source: ExtentSource,
}

/// The origin of an extent's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtentSource {
    /// The synthesised header, from its first byte.
    Header,
    /// The physical file, from this offset.
    Physical(u64),
    /// Zeros.
    Zero,
}

/// The logical view of a physical file.
#[derive(Debug, Clone)]
pub struct VirtualGguf {
    header: Vec<u8>,
    extents: Vec<Extent>,
    len: u64,
    tensors: Vec<TensorInfo>,
    data_offset: u64,
}

/// How to put the logical file together out of pages of the physical one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StitchPlan {
    /// The page size.
    pub page: PageSize,
    /// Length of the logical file in bytes.
    pub len: u64,
    /// Whole pages to map, ascending by logical offset.
    pub maps: Vec<StitchRun>,
    /// The other logical ranges, to be copied; ascending, whole pages but for
    /// the last.
    pub copies: Vec<Range<u64>>,
}

/// Consecutive pages of the logical file that are consecutive pages of the
/// physical file. All in bytes, multiples of the page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StitchRun {
    /// Offset in the logical file.
    pub logical: u64,
    /// Offset in the physical file.
    pub physical: u64,
    /// Length.
    pub len: u64,
}

impl VirtualGguf {
    /// The logical view of `physical`, whose validated alias table is `table`.
    ///
    /// # Errors
    /// When the page-aligned size overflows.
    pub fn new(
        physical: &Gguf,
        table: &AliasTable,
        layout: LogicalLayout,
    ) -> Result<Self, FormatError> {
        let mut tensors = table.tensors.clone();
        let (header, alignment) = match layout {
            LogicalLayout::Source => (
                source_header(physical, &table.source, &tensors),
                table.source.alignment,
            ),
            LogicalLayout::Pages(page) => {
                lay_out(&mut tensors, page.bytes())?;
                (
                    paged_header(physical, &table.source, &tensors, page),
                    page.bytes(),
                )
            }
        };
        let overflow = || FormatError::unsupported("header", "the logical size overflows");
        let data_offset = align_up(header.len() as u64, alignment).ok_or_else(overflow)?;
        let mut builder = ExtentBuilder::default();
        builder.push(header.len() as u64, ExtentSource::Header);

        let filler = (layout == LogicalLayout::Source)
            .then(|| physical.tensor(FILLER))
            .flatten()
            .map(|t| physical.data_range(t));
        let mut filler_pos = filler.as_ref().map(|r| r.start);
        let stored_paddings = match layout {
            LogicalLayout::Source => Vec::new(),
            LogicalLayout::Pages(_) => physical.filler_ranges(),
        };
        let mut pad = |builder: &mut ExtentBuilder, until: u64| {
            let len = until - builder.end;
            match &mut filler_pos {
                Some(pos) => {
                    builder.push(len, ExtentSource::Physical(*pos));
                    *pos += len;
                }
                None => builder.push(len, builder.padding(&stored_paddings, len)),
            }
        };
        for (index, tensor) in tensors.iter().enumerate() {
            pad(&mut builder, data_offset + tensor.offset);
            for segment in table.segments_of(index as u32) {
                let stored = &physical.tensors()[segment.stored as usize];
                let start = physical.data_range(stored).start + segment.stored_offset;
                builder.push(segment.len, ExtentSource::Physical(start));
            }
        }
        let len = match layout {
            LogicalLayout::Source => table.source.size,
            LogicalLayout::Pages(page) => page.align_up(builder.end).ok_or_else(overflow)?,
        };
        pad(&mut builder, len);
        Ok(Self {
            header,
            extents: builder.extents,
            len,
            tensors,
            data_offset,
        })
    }

    /// Length of the logical file in bytes.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// The logical header, from the magic to the end of the tensor infos.
    pub fn header(&self) -> &[u8] {
        &self.header
    }

    /// The logical tensors, with their offsets in this layout.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// Where the tensors' data begins, in bytes.
    pub fn data_offset(&self) -> u64 {
        self.data_offset
    }

    /// Where the data of `tensor`, one of [`tensors`](Self::tensors), lies in
    /// the logical file.
    pub fn data_range(&self, tensor: &TensorInfo) -> Range<u64> {
        let start = self.data_offset + tensor.offset;
        start..start + tensor.byte_len()
    }

    /// The extents, ascending and without gaps from 0 to [`len`](Self::len).
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// Where the bytes of the logical `range` begin in the physical file, if
    /// they lie there in one piece.
    pub fn physical(&self, range: Range<u64>) -> Option<u64> {
        let index = self
            .extents
            .partition_point(|e| e.offset + e.len <= range.start);
        let extent = self.extents.get(index)?;
        match extent.source {
            ExtentSource::Physical(start) if range.end <= extent.offset + extent.len => {
                Some(start + (range.start - extent.offset))
            }
            _ => None,
        }
    }

    /// Fills `buf` from the logical offset `offset`, given the bytes of the
    /// physical file; returns the number of bytes, fewer than asked only at
    /// the end.
    pub fn read_at(&self, physical: &[u8], offset: u64, buf: &mut [u8]) -> usize {
        let end = self.len.min(offset.saturating_add(buf.len() as u64));
        let mut pos = offset;
        let mut index = self.extents.partition_point(|e| e.offset + e.len <= offset);
        while pos < end {
            let extent = &self.extents[index];
            let skip = pos - extent.offset;
            let n = (extent.len - skip).min(end - pos) as usize;
            let at = (pos - offset) as usize;
            self.copy(physical, extent, skip, &mut buf[at..at + n]);
            pos += n as u64;
            index += 1;
        }
        end.saturating_sub(offset) as usize
    }

    fn copy(&self, physical: &[u8], extent: &Extent, skip: u64, out: &mut [u8]) {
        let range = |start: u64| start as usize..start as usize + out.len();
        match extent.source {
            ExtentSource::Header => out.copy_from_slice(&self.header[range(skip)]),
            ExtentSource::Physical(start) => out.copy_from_slice(&physical[range(start + skip)]),
            ExtentSource::Zero => out.fill(0),
        }
    }

    /// The stitching plan for pages of `page`.
    ///
    /// A page is mapped where its logical and physical offsets agree modulo
    /// the page and it lies within one extent; everything else is copied.
    pub fn stitch_plan(&self, page: PageSize) -> StitchPlan {
        let mut plan = StitchPlan {
            page,
            len: self.len,
            maps: Vec::new(),
            copies: Vec::new(),
        };
        let mut pos = 0;
        for extent in &self.extents {
            let ExtentSource::Physical(physical) = extent.source else {
                continue;
            };
            if page.residue(physical) != page.residue(extent.offset) {
                continue;
            }
            let Some(start) = page.align_up(extent.offset) else {
                continue;
            };
            let end = page.align_down(extent.offset + extent.len);
            if start >= end {
                continue;
            }
            if pos < start {
                plan.copies.push(pos..start);
            }
            plan.maps.push(StitchRun {
                logical: start,
                physical: physical + (start - extent.offset),
                len: end - start,
            });
            pos = end;
        }
        if pos < self.len {
            plan.copies.push(pos..self.len);
        }
        plan
    }

    /// Bytes of tensors that are in memory once instead of several times when
    /// the stitching plan for pages of `page` is carried out.
    pub fn resident_saving(&self, page: PageSize) -> u64 {
        let tensors: Vec<Range<u64>> = self.tensors.iter().map(|t| self.data_range(t)).collect();
        bytes_mapped_again(&self.stitch_plan(page).maps, &tensors)
    }
}

/// Bytes of the logical `ranges` that `runs` map to where they have mapped
/// others before: what mapping saves over one copy for each place. Both are
/// ascending, and apart from each other.
pub fn bytes_mapped_again(runs: &[StitchRun], ranges: &[Range<u64>]) -> u64 {
    let mut physical: Vec<Range<u64>> = Vec::new();
    let mut rest = ranges;
    for run in runs {
        let run_end = run.logical + run.len;
        rest = &rest[rest.partition_point(|range| range.end <= run.logical)..];
        for range in rest.iter().take_while(|range| range.start < run_end) {
            let start = run.logical.max(range.start);
            let end = run_end.min(range.end);
            if start < end {
                let at = run.physical + (start - run.logical);
                physical.push(at..at + (end - start));
            }
        }
    }
    physical.sort_by_key(|r| (r.start, r.end));
    let mut end = 0;
    let mut shared = 0;
    for range in physical {
        let fresh = range.end.saturating_sub(range.start.max(end));
        shared += (range.end - range.start) - fresh;
        end = end.max(range.end);
    }
    shared
}

/// Collects extents, merging neighbours that continue each other.
#[derive(Default)]
struct ExtentBuilder {
    extents: Vec<Extent>,
    end: u64,
}

impl ExtentBuilder {
    /// Where `len` bytes of padding may come from: what comes next in the
    /// physical file if that is one of its `paddings` (ascending), so that a
    /// tensor's last page can be mapped as well.
    fn padding(&self, paddings: &[Range<u64>], len: u64) -> ExtentSource {
        let Some(Extent {
            source: ExtentSource::Physical(start),
            len: last_len,
            ..
        }) = self.extents.last()
        else {
            return ExtentSource::Zero;
        };
        let next = start + last_len;
        let padding = paddings
            .binary_search_by_key(&next, |padding| padding.start)
            .ok()
            .map(|index| &paddings[index]);
        match padding {
            Some(padding) if padding.end - padding.start >= len => ExtentSource::Physical(next),
            _ => ExtentSource::Zero,
        }
    }

    fn push(&mut self, len: u64, source: ExtentSource) {
        if len == 0 {
            return;
        }
        let offset = self.end;
        self.end += len;
        if let Some(last) = self.extents.last_mut() {
            let continues = match (last.source, source) {
                (ExtentSource::Physical(a), ExtentSource::Physical(b)) => a + last.len == b,
                (ExtentSource::Zero, ExtentSource::Zero) => true,
                _ => false,
            };
            if continues {
                last.len += len;
                return;
            }
        }
        self.extents.push(Extent {
            offset,
            len,
            source,
        });
    }
}
