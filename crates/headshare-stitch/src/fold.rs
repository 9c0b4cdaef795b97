//! Folding: two ranges of an arena that hold equal bytes come to share their
//! physical pages.
//!
//! The arena is an unnamed file in memory, mapped in whole. To fold a page is to
//! map another page's place in that file over it and to give its own place back;
//! nothing is copied.

use std::fs::File;
use std::io;
use std::ops::Range;

use rustix::fs::{FallocateFlags, MemfdFlags};
use rustix::process::Resource;

use crate::region::{Region, page_size};

/// Zeroed memory, page-aligned, writable through its pointer until a range is
/// folded; then that range is read-only.
///
/// ```
/// use headshare_stitch::{FoldArena, page_size};
///
/// let page = page_size().to_usize();
/// let mut arena = FoldArena::new(4 * page, 100)?;
/// // SAFETY: inside the arena, which nobody else has; not written to afterwards.
/// let freed = unsafe {
///     arena.as_ptr().write_bytes(7, page);
///     arena.as_ptr().add(2 * page).write_bytes(7, page);
///     arena.fold(0..page, 2 * page..3 * page)?
/// };
/// assert_eq!(freed, page as u64);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct FoldArena {
    region: Region,
    /// What the region maps. Where the system has none to give, the error: the
    /// memory is anonymous then, and nothing can be folded.
    store: Result<File, rustix::io::Errno>,
    /// For each page its place in the store, in pages. Its own until folded.
    places: Vec<u32>,
    /// For each place whether pages other than its own are there too.
    lent: Vec<bool>,
    /// How many more mappings folding may take.
    mappings: u64,
}

/// Pages `page..` that are to move to `place..`.
#[derive(Debug, Clone, Copy)]
struct Move {
    page: usize,
    place: usize,
    count: usize,
}

impl FoldArena {
    /// An arena of `len` bytes, all zero, whose folding takes at most
    /// `max_mappings` more mappings.
    ///
    /// # Errors
    /// When the system has no memory.
    pub fn new(len: usize, max_mappings: u64) -> io::Result<Self> {
        let page = page_size().to_usize();
        let len = len.max(1).next_multiple_of(page);
        let pages = u32::try_from(len / page).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let mut region = Region::reserve(len, None)?;
        let store = memory_file(len as u64);
        match &store {
            // SAFETY: the file is the arena's own; nobody else has it.
            Ok(file) => unsafe { region.map_file_writable(file) }?,
            Err(_) => {
                region.writable(0..len)?;
            }
        }
        Ok(Self {
            region,
            store,
            places: (0..pages).collect(),
            lent: vec![false; pages as usize],
            mappings: max_mappings,
        })
    }

    /// Where the arena begins; a multiple of the page size.
    pub fn as_ptr(&self) -> *mut u8 {
        self.region.as_ptr()
    }

    /// Its length in bytes.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.region.len()
    }

    /// Makes those whole pages of `alias` that are equal to the pages of
    /// `donor` at the same distance the same physical memory; returns the
    /// bytes that this freed. Nothing happens to pages that differ, or when
    /// the two lie differently relative to pages.
    ///
    /// # Errors
    /// When the system refuses (no memfd, too many mappings); the bytes stay
    /// as they are then.
    ///
    /// # Safety
    /// Whatever was to be written to the two ranges has been, by this thread or
    /// before it was told so, and nobody writes to them again: folded pages are
    /// read-only.
    pub unsafe fn fold(&mut self, donor: Range<usize>, alias: Range<usize>) -> io::Result<u64> {
        let page = page_size().to_usize();
        self.check(&donor, &alias);
        if donor.start % page != alias.start % page {
            return Ok(0);
        }
        let first = donor.start.div_ceil(page);
        let last = donor.end / page;
        let others = alias.start.div_ceil(page);
        let mut freed = 0;
        let mut run: Option<Move> = None;
        for (a, b) in (first..last).zip(others..) {
            // The one that moves is nobody else's, and at its own place still.
            let (kept, moved) = match (self.may_move(b), self.may_move(a)) {
                _ if self.places[a] == self.places[b] => continue,
                (true, _) => (a, b),
                (_, true) => (b, a),
                _ => continue,
            };
            // SAFETY: all of an arena is mapped, and the caller promises that
            // nobody writes to these two pages.
            let differ = unsafe {
                self.region.readable(a * page..(a + 1) * page)
                    != self.region.readable(b * page..(b + 1) * page)
            };
            if differ {
                continue;
            }
            let place = self.places[kept] as usize;
            match &mut run {
                Some(r) if r.page + r.count == moved && r.place + r.count == place => r.count += 1,
                _ => {
                    let next = Move {
                        page: moved,
                        place,
                        count: 1,
                    };
                    if let Some(done) = run.replace(next) {
                        freed += self.carry_out_freeing(done)?;
                    }
                }
            }
        }
        if let Some(done) = run {
            freed += self.carry_out_freeing(done)?;
        }
        Ok(freed)
    }

    /// Makes the pages of `to`, which nobody has written to yet, the pages of
    /// `from`; both are ranges of whole pages. False, and nothing is done, when
    /// the pages of `from` are not side by side in memory, or those of `to` are
    /// shared already.
    ///
    /// # Errors
    /// As [`fold`](Self::fold); `to` can still be written to.
    ///
    /// # Safety
    /// Nobody has borrowed the bytes of `to` or is writing to them, and nobody
    /// writes to either range again once this has returned true.
    pub unsafe fn repeat(&mut self, from: Range<usize>, to: Range<usize>) -> io::Result<bool> {
        let page = page_size().to_usize();
        self.check(&from, &to);
        assert!(
            [from.start, to.start, from.len()]
                .iter()
                .all(|n| n.is_multiple_of(page)),
            "ranges of whole pages"
        );
        let places = &self.places[from.start / page..from.end / page];
        let Some(&place) = places.first() else {
            return Ok(true);
        };
        let side_by_side = places.iter().zip(place..).all(|(a, b)| *a == b);
        let free = (to.start / page..to.end / page).all(|page| self.may_move(page));
        if !side_by_side || !free {
            return Ok(false);
        }
        self.carry_out(Move {
            page: to.start / page,
            place: place as usize,
            count: places.len(),
        })?;
        Ok(true)
    }

    /// Makes everything read-only: nothing more is written or folded.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn seal(&mut self) -> io::Result<()> {
        self.places = Vec::new();
        self.lent = Vec::new();
        self.region.protect(0..self.region.len())
    }

    fn check(&self, a: &Range<usize>, b: &Range<usize>) {
        let end = self.places.len() * page_size().to_usize();
        assert!(
            a.len() == b.len() && a.end <= end && b.end <= end,
            "ranges of one length inside an arena that is not sealed"
        );
        // What moves away would be looked at again as if it were there still.
        assert!(
            a.end <= b.start || b.end <= a.start,
            "ranges that do not overlap"
        );
    }

    fn may_move(&self, page: usize) -> bool {
        self.places[page] as usize == page && !self.lent[page]
    }

    /// Maps the places over the pages.
    fn carry_out(&mut self, run: Move) -> io::Result<()> {
        let page = page_size().bytes();
        let store = match &self.store {
            Ok(store) => store,
            Err(errno) => return Err((*errno).into()),
        };
        // A run is cut out of a mapping: what was one can be three then.
        self.mappings = self.mappings.checked_sub(2).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::OutOfMemory,
                "the process may not have more mappings (vm.max_map_count)",
            )
        })?;
        let start = run.page * page as usize;
        let len = run.count * page as usize;
        // Populated: memory that is there should be seen to be there.
        // SAFETY: the file is the arena's own. Its owner has promised that nobody
        // writes to these places through the pages that are there already.
        unsafe {
            self.region
                .map_file(start, store, run.place as u64 * page, len, true)
        }?;
        for i in 0..run.count {
            self.places[run.page + i] = (run.place + i) as u32;
            self.lent[run.place + i] = true;
        }
        Ok(())
    }

    /// The same, and gives the memory at the pages' own places back; returns
    /// how much.
    fn carry_out_freeing(&mut self, run: Move) -> io::Result<u64> {
        self.carry_out(run)?;
        let page = page_size().bytes();
        let len = run.count as u64 * page;
        if let Ok(store) = &self.store {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(store, flags, run.page as u64 * page, len)?;
        }
        Ok(len)
    }
}

/// An unnamed file in memory.
fn memory_file(len: u64) -> Result<File, rustix::io::Errno> {
    // The kernel would end the process, not refuse.
    if rustix::process::getrlimit(Resource::Fsize)
        .current
        .is_some_and(|limit| len > limit)
    {
        return Err(rustix::io::Errno::FBIG);
    }
    let fd = rustix::fs::memfd_create("headshare-folded", MemfdFlags::CLOEXEC)?;
    rustix::fs::ftruncate(&fd, len)?;
    Ok(File::from(fd))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(arena: &FoldArena, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= arena.len());
        // SAFETY: inside the arena, which the test owns and has not folded there.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), arena.as_ptr().add(at), bytes.len());
        }
    }

    /// What the arena holds at `range`.
    fn bytes(arena: &FoldArena, range: Range<usize>) -> &[u8] {
        // SAFETY: the test, which is all there is, writes before it reads.
        unsafe { arena.region.readable(range) }
    }

    /// Folds what the test has written and does not write to again.
    fn fold(arena: &mut FoldArena, donor: Range<usize>, alias: Range<usize>) -> io::Result<u64> {
        // SAFETY: as just said.
        unsafe { arena.fold(donor, alias) }
    }

    /// Repeats what the test has written where it has not, nor will.
    fn repeat(arena: &mut FoldArena, from: Range<usize>, to: Range<usize>) -> bool {
        // SAFETY: as just said.
        unsafe { arena.repeat(from, to) }.unwrap()
    }

    /// Pages of the arena that are distinct in physical memory, as far as they
    /// hold something.
    fn distinct(arena: &FoldArena) -> usize {
        let mut places = arena.places.clone();
        places.sort_unstable();
        places.dedup();
        places.len()
    }

    /// Bytes of memory that the kernel counts for the arena.
    fn held(arena: &FoldArena) -> u64 {
        let stat = rustix::fs::fstat(arena.store.as_ref().unwrap()).unwrap();
        stat.st_blocks as u64 * 512
    }

    fn pattern(seed: usize, len: usize) -> Vec<u8> {
        (0..len)
            .map(|i| ((i * 31 + seed * 7) % 251) as u8)
            .collect()
    }

    #[test]
    fn equal_congruent_ranges_share_their_whole_pages() {
        let page = page_size().to_usize();
        let mut arena = FoldArena::new(16 * page, 99).unwrap();
        let block = pattern(1, 3 * page + 100);
        write(&arena, page - 50, &block);
        write(&arena, 9 * page - 50, &block);
        let donor = page - 50..page - 50 + block.len();
        let alias = 9 * page - 50..9 * page - 50 + block.len();
        assert_eq!(fold(&mut arena, donor, alias).unwrap(), 3 * page as u64);
        assert_eq!(distinct(&arena), 13);
        // The five pages that the donor touches, and the edges of the alias.
        assert_eq!(held(&arena), 7 * page as u64);
        assert_eq!(
            bytes(&arena, 9 * page - 50..9 * page - 50 + block.len()),
            block
        );
        assert_eq!(bytes(&arena, page - 50..page - 50 + block.len()), block);
    }

    #[test]
    fn several_aliases_of_one_donor_and_overlapping_donors_share_one_copy() {
        let page = page_size().to_usize();
        let mut arena = FoldArena::new(16 * page, 99).unwrap();
        let block = pattern(2, 4 * page);
        write(&arena, 0, &block);
        write(&arena, 6 * page, &block);
        write(&arena, 12 * page, &block[page..3 * page]);
        assert_eq!(
            fold(&mut arena, page..3 * page, 12 * page..14 * page).unwrap(),
            2 * page as u64
        );
        assert_eq!(
            fold(&mut arena, 0..4 * page, 6 * page..10 * page).unwrap(),
            4 * page as u64
        );
        // Folding again frees nothing.
        assert_eq!(
            fold(&mut arena, 0..4 * page, 6 * page..10 * page).unwrap(),
            0
        );
        assert_eq!(distinct(&arena), 10);
        assert_eq!(bytes(&arena, 6 * page..10 * page), block);
        assert_eq!(bytes(&arena, 12 * page..14 * page), &block[page..3 * page]);
    }

    #[test]
    fn pages_that_differ_and_ranges_that_lie_differently_are_left_alone() {
        let page = page_size().to_usize();
        let mut arena = FoldArena::new(12 * page, 99).unwrap();
        let block = pattern(3, 3 * page);
        write(&arena, 0, &block);
        write(&arena, 6 * page, &block);
        write(&arena, 7 * page + 5, &[255]);
        assert_eq!(
            fold(&mut arena, 0..3 * page, 6 * page..9 * page).unwrap(),
            2 * page as u64
        );
        assert_eq!(bytes(&arena, 7 * page + 5..7 * page + 6), [255]);
        assert_eq!(
            fold(&mut arena, 0..page, 10 * page + 1..11 * page + 1).unwrap(),
            0
        );
    }

    #[test]
    fn an_alias_that_others_use_stays_where_it_is() {
        let page = page_size().to_usize();
        let mut arena = FoldArena::new(8 * page, 99).unwrap();
        let block = pattern(4, 2 * page);
        for at in [0, 2 * page, 4 * page, 6 * page] {
            write(&arena, at, &block);
        }
        let range = |i: usize| 2 * i * page..2 * (i + 1) * page;
        assert_eq!(
            fold(&mut arena, range(1), range(2)).unwrap(),
            2 * page as u64
        );
        // The second is the third's donor: the first moves to it.
        assert_eq!(
            fold(&mut arena, range(0), range(1)).unwrap(),
            2 * page as u64
        );
        assert_eq!(fold(&mut arena, range(0), range(2)).unwrap(), 0);
        assert_eq!(
            fold(&mut arena, range(2), range(3)).unwrap(),
            2 * page as u64
        );
        assert_eq!(distinct(&arena), 2);
        assert_eq!(held(&arena), 2 * page as u64);
        for i in 0..4 {
            assert_eq!(bytes(&arena, range(i)), block);
        }
    }

    #[test]
    fn without_mappings_left_the_rest_stays_as_it_is() {
        let page = page_size().to_usize();
        let mut arena = FoldArena::new(8 * page, 3).unwrap();
        let block = pattern(6, 2 * page);
        for at in [0, 3 * page, 6 * page] {
            write(&arena, at, &block);
        }
        let range = |at: usize| at * page..(at + 2) * page;
        assert_eq!(
            fold(&mut arena, range(0), range(3)).unwrap(),
            2 * page as u64
        );
        let error = fold(&mut arena, range(0), range(6)).unwrap_err();
        assert!(error.to_string().contains("max_map_count"), "{error}");
        assert_eq!(distinct(&arena), 6);
        for at in [0, 3, 6] {
            assert_eq!(bytes(&arena, range(at)), block);
        }
    }

    #[test]
    fn a_range_not_written_repeats_another() {
        let page = page_size().to_usize();
        let mut arena = FoldArena::new(9 * page, 99).unwrap();
        let block = pattern(5, 3 * page);
        write(&arena, 0, &block);
        assert!(repeat(&mut arena, 0..3 * page, 6 * page..9 * page));
        assert!(repeat(&mut arena, 6 * page..9 * page, 3 * page..6 * page));
        assert_eq!(bytes(&arena, 6 * page..9 * page), block);
        assert_eq!(bytes(&arena, 3 * page..6 * page), block);
        assert_eq!(held(&arena), 3 * page as u64);
        assert!(!repeat(&mut arena, 0..page, 3 * page..4 * page));
        arena.seal().unwrap();
        assert_eq!(bytes(&arena, 0..3 * page), block);
    }
}
