//! The stitching plan carried out: the logical file as one contiguous mapping
//! whose pages are the physical file's wherever they can be.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::ops::{Deref, Range};

use headshare_files::FileError;
use headshare_format::{StitchPlan, StitchRun, VirtualGguf};

use crate::MappedFile;
use crate::region::{HUGE_PAGE, Region, page_size};
use crate::sigbus::WatchedRange;

/// Mappings that a process needs for itself besides ours; the kernel's limit
/// counts all.
const SPARE_MAPPINGS: u64 = 4096;
/// `vm.max_map_count` where it cannot be read: the kernel's default.
const DEFAULT_MAX_MAPPINGS: u64 = 65530;

/// A logical file, mapped read-only; derefs to its bytes.
#[derive(Debug)]
pub struct StitchedMapping {
    _watch: WatchedRange,
    region: Region,
    /// Beside it, the physical file as it is.
    plain: Option<(WatchedRange, Region)>,
    mapped: Vec<StitchRun>,
    copied: Vec<Range<u64>>,
    given_up: u64,
}

impl StitchedMapping {
    /// Maps the logical file `view` of the physical `file`.
    ///
    /// Pages are mapped where logical and physical offsets agree; the others
    /// are copied. When that would take more than `max_mappings` mappings, the
    /// smallest runs are copied too ([`given_up_bytes`](Self::given_up_bytes)).
    ///
    /// # Errors
    /// When the system refuses a mapping.
    pub fn new(
        view: &VirtualGguf,
        file: &MappedFile,
        max_mappings: u64,
        huge_pages: HugePages,
    ) -> Result<Self, FileError> {
        let (plan, given_up) = within_budget(view.stitch_plan(page_size()), max_mappings);
        let mut this = Self::carry_out(plan, file, huge_pages, |offset, bytes| {
            view.read_at(file, offset, bytes);
        })?;
        this.given_up = given_up;
        Ok(this)
    }

    /// Maps a plain file as it is.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn plain(file: &MappedFile, huge_pages: HugePages) -> Result<Self, FileError> {
        let len = file.len() as u64;
        let run = StitchRun {
            logical: 0,
            physical: 0,
            len,
        };
        let plan = StitchPlan {
            page: page_size(),
            len,
            maps: vec![run],
            copies: Vec::new(),
        };
        Self::carry_out(plan, file, huge_pages, |_, _| {})
    }

    /// Where to find what lies in one piece from `physical` on in the file, and
    /// from `logical` on in this mapping, so that the processor can translate
    /// its addresses by huge pages: in a mapping of the physical file beside
    /// this one. `None` where this one does as well.
    pub fn in_own_mapping(&self, logical: u64, physical: u64) -> Option<*const u8> {
        let (_, plain) = self.plain.as_ref()?;
        let here = self.region.as_ptr() as u64 + logical;
        let agree = here % HUGE_PAGE as u64 == physical % HUGE_PAGE as u64;
        // The file was `plain.len()` bytes long.
        let offset = usize::try_from(physical).ok()?;
        (!agree && offset < plain.len()).then(|| plain.as_ptr().wrapping_add(offset).cast_const())
    }

    /// The addresses at which [`in_own_mapping`](Self::in_own_mapping) finds
    /// things.
    pub fn own_mapping(&self) -> Option<Range<u64>> {
        let (_, plain) = self.plain.as_ref()?;
        let start = plain.as_ptr() as u64;
        Some(start..start + plain.len() as u64)
    }

    fn carry_out(
        plan: StitchPlan,
        file: &MappedFile,
        huge_pages: HugePages,
        fill: impl Fn(u64, &mut [u8]),
    ) -> Result<Self, FileError> {
        let refused = || FileError::io(file.path(), "map");
        let len = usize::try_from(plan.len)
            .map_err(|_| refused()(std::io::ErrorKind::OutOfMemory.into()))?;
        let mut region = Region::reserve(len, huge_pages.skew(&plan.maps)).map_err(refused())?;
        for range in &plan.copies {
            let range = range.start as usize..range.end as usize;
            let bytes = region.writable(range.clone()).map_err(refused())?;
            fill(range.start as u64, bytes);
            region.protect(range).map_err(refused())?;
        }
        for run in &plan.maps {
            let (start, len) = (run.logical as usize, run.len as usize);
            // SAFETY: `file` is mapped already; what that asks of everybody else
            // covers these mappings of it too.
            unsafe { region.map_file(start, file.file(), run.physical, len, false) }
                .map_err(refused())?;
        }
        let moved = plan.maps.iter().any(|run| run.logical != run.physical);
        // Only for speed: without the addresses for it, it is left out.
        let plain = (huge_pages == HugePages::Aligned && moved)
            .then(|| plain_region(file).ok())
            .flatten();
        Ok(Self {
            _watch: watch(&region, file),
            plain: plain.map(|region| (watch(&region, file), region)),
            region,
            mapped: plan.maps,
            copied: plan.copies,
            given_up: 0,
        })
    }

    /// Where the mapping begins.
    pub fn as_ptr(&self) -> *const u8 {
        self.region.as_ptr()
    }

    /// The runs of pages that are the file's.
    pub fn mapped(&self) -> &[StitchRun] {
        &self.mapped
    }

    /// The logical ranges that are copies in anonymous memory.
    pub fn copied(&self) -> &[Range<u64>] {
        &self.copied
    }

    /// Bytes that are copied only because too many mappings would be needed.
    pub fn given_up_bytes(&self) -> u64 {
        self.given_up
    }

    /// Lets go of the physical memory behind the file pages that lie in
    /// `range` of the logical file. They come back from the file when touched;
    /// copies are kept.
    pub fn drop_pages(&self, range: Range<u64>) {
        let first = self
            .mapped
            .partition_point(|r| r.logical + r.len <= range.start);
        for run in self.mapped[first..]
            .iter()
            .take_while(|r| r.logical < range.end)
        {
            let start = run.logical.max(range.start);
            let end = (run.logical + run.len).min(range.end);
            // SAFETY: `mapped` holds what was mapped from the file, and only that.
            unsafe { self.region.drop_file_pages(start as usize..end as usize) };
        }
    }

    /// Releases the memory behind the whole pages in `range` of the logical file
    /// that are copies, which nobody reads any more: they are zeros from now on.
    pub fn give_up_copies(&mut self, range: Range<u64>) {
        let page = page_size().bytes();
        let range = range.start.next_multiple_of(page)..range.end / page * page;
        let first = self.copied.partition_point(|c| c.end <= range.start);
        let inside = self.copied[first..]
            .iter()
            .take_while(|c| c.start < range.end);
        for copy in inside {
            let start = copy.start.max(range.start) as usize;
            let end = copy.end.min(range.end) as usize;
            if start < end {
                self.region.drop_copies(start..end);
            }
        }
    }
}

impl Deref for StitchedMapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: a plan's runs and copies cover all of the logical file, and all
        // of them were mapped. Copies are written to through `&mut self` only; the
        // file's bytes are those of a `MappedFile`, with what it asks.
        unsafe { self.region.readable(0..self.region.len()) }
    }
}

fn watch(region: &Region, file: &MappedFile) -> WatchedRange {
    let start = region.as_ptr() as usize;
    WatchedRange::new(start..start + region.len(), file.path())
}

/// The physical file, its large pages at those of memory.
fn plain_region(file: &MappedFile) -> std::io::Result<Region> {
    let mut region = Region::reserve(file.len(), Some(0))?;
    // SAFETY: as for the stitched mapping's own.
    unsafe { region.map_file(0, file.file(), 0, file.len(), false) }?;
    Ok(region)
}

/// How many more mappings this process can have: the kernel's limit less those
/// there are, less some to spare.
pub fn mappings_left() -> u64 {
    let limit = std::fs::read_to_string("/proc/sys/vm/max_map_count")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(DEFAULT_MAX_MAPPINGS);
    let used = mappings().unwrap_or(0);
    // A tiny limit still leaves a few.
    let spare = SPARE_MAPPINGS.min(limit / 4);
    limit.saturating_sub(used + spare)
}

/// Mappings that this process has; `None` where the system does not tell.
pub fn mappings() -> Option<u64> {
    // Bytes: a mapped file's name can be any.
    let maps = std::fs::read("/proc/self/maps").ok()?;
    Some(maps.iter().filter(|&&byte| byte == b'\n').count() as u64)
}

/// Whether a mapping is placed so that the kernel can use huge pages for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HugePages {
    /// At any page. Touching one brings in a few of its neighbours: for weights
    /// that are copied elsewhere.
    Any,
    /// As far after the beginning of a huge page as in the file, as llama.cpp's own
    /// mapping is: where the file lies in huge pages in memory, they are mapped as
    /// such, and touching one byte counts as all of one. For weights that are
    /// multiplied with where they lie, which can be a tenth faster.
    Aligned,
}

impl HugePages {
    /// How far after the beginning of a large page the mapping is to begin, so
    /// that as many bytes as possible lie relative to large pages as they do in
    /// the file.
    fn skew(self, runs: &[StitchRun]) -> Option<usize> {
        if self == Self::Any {
            return None;
        }
        let mut bytes: BTreeMap<u64, u64> = BTreeMap::new();
        for run in runs.iter().filter(|run| run.len >= HUGE_PAGE as u64) {
            let skew = run.physical.wrapping_sub(run.logical) % HUGE_PAGE as u64;
            *bytes.entry(skew).or_default() += run.len;
        }
        let most = bytes.into_iter().max_by_key(|&(_, len)| len);
        most.map(|(skew, _)| skew as usize)
    }
}

/// Turns the smallest runs of `plan` into copies until it takes at most
/// `budget` mappings; returns their bytes too.
fn within_budget(plan: StitchPlan, budget: u64) -> (StitchPlan, u64) {
    // Each run can have a copy before and after it.
    let keep = (budget.saturating_sub(1) / 2) as usize;
    if (plan.maps.len() + plan.copies.len()) as u64 <= budget || plan.maps.len() <= keep {
        return (plan, 0);
    }
    // The largest runs, ties to the first: a heap whose root is the smallest kept.
    let mut kept: BinaryHeap<Reverse<(u64, Reverse<usize>)>> = BinaryHeap::new();
    for (i, run) in plan.maps.iter().enumerate() {
        kept.push(Reverse((run.len, Reverse(i))));
        if kept.len() > keep {
            kept.pop();
        }
    }
    let mut indices: Vec<usize> = kept.into_iter().map(|Reverse((_, Reverse(i)))| i).collect();
    indices.sort_unstable();
    let total: u64 = plan.maps.iter().map(|r| r.len).sum();
    let maps: Vec<StitchRun> = indices.into_iter().map(|i| plan.maps[i]).collect();
    let given_up = total - maps.iter().map(|r| r.len).sum::<u64>();
    let mut copies = Vec::new();
    let mut pos = 0;
    for run in &maps {
        if pos < run.logical {
            copies.push(pos..run.logical);
        }
        pos = run.logical + run.len;
    }
    if pos < plan.len {
        copies.push(pos..plan.len);
    }
    (
        StitchPlan {
            maps,
            copies,
            ..plan
        },
        given_up,
    )
}

#[cfg(test)]
mod tests {
    use headshare_format::PageSize;

    use super::*;

    fn run(logical: u64, len: u64) -> StitchRun {
        StitchRun {
            logical,
            physical: logical + (1 << 20),
            len,
        }
    }

    #[test]
    fn the_smallest_runs_are_given_up_first() {
        let page = 4096;
        let plan = StitchPlan {
            page: PageSize::KIB_4,
            len: 20 * page,
            maps: vec![
                run(page, 3 * page),
                run(5 * page, page),
                run(8 * page, 6 * page),
                run(15 * page, page),
            ],
            copies: vec![
                0..page,
                4 * page..5 * page,
                6 * page..8 * page,
                14 * page..15 * page,
                16 * page..20 * page,
            ],
        };
        assert_eq!(within_budget(plan.clone(), 9), (plan.clone(), 0));
        let (less, given_up) = within_budget(plan.clone(), 5);
        assert_eq!(given_up, 2 * page);
        assert_eq!(less.maps, [plan.maps[0], plan.maps[2]]);
        assert_eq!(
            less.copies,
            [0..page, 4 * page..8 * page, 14 * page..20 * page]
        );
        let (none, given_up) = within_budget(plan, 1);
        assert_eq!(given_up, 11 * page);
        assert_eq!((none.maps.len(), none.copies.len()), (0, 1));
        assert_eq!(none.copies[0], 0..20 * page);
    }

    #[test]
    fn most_bytes_lie_as_they_do_in_the_file() {
        let huge = HUGE_PAGE as u64;
        let at = |logical, physical, len| StitchRun {
            logical,
            physical,
            len,
        };
        let skew = |runs: &[StitchRun]| HugePages::Aligned.skew(runs);
        assert_eq!(skew(&[]), None);
        assert_eq!(skew(&[at(4096, 8192, huge - 4096)]), None);
        let runs = [
            at(8192, 4096, 5 * huge),
            at(6 * huge, 3 * huge + 4096, 3 * huge),
            at(9 * huge, 4096, 3 * huge),
        ];
        assert_eq!(skew(&runs), Some(4096));
        assert_eq!(HugePages::Any.skew(&runs), None);
        assert_eq!(skew(&runs[..1]), Some(HUGE_PAGE - 4096));
    }

    #[test]
    fn there_are_mappings_left() {
        assert!(mappings_left() > 0);
    }

    #[test]
    fn mappings_are_counted_whatever_their_files_are_called() {
        use std::os::unix::ffi::OsStrExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder
            .path()
            .join(std::ffi::OsStr::from_bytes(b"not \xff UTF-8"));
        std::fs::write(&path, b"some bytes").unwrap();
        let _mapped = MappedFile::open(&path).unwrap();
        assert!(mappings().unwrap() > 10);
    }
}
