//! Folding: two ranges of an arena that hold equal bytes come to share their
//! physical pages.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use rustix::fs::MemfdFlags;

use crate::region::{Region, page_size};

/// Anonymous memory, page-aligned, writable through its pointer until a range
/// is folded; then that range is read-only.
#[derive(Debug)]
pub struct FoldArena {
    region: Region,
    /// Holds each folded page once; created by the first fold.
    store: Option<File>,
    store_len: u64,
    /// Folded pages: page number in the arena -> offset in the store.
    folded: BTreeMap<usize, u64>,
}

impl FoldArena {
    /// An arena of `len` bytes, all zero.
    ///
    /// # Errors
    /// When the system has no memory.
    pub fn new(len: usize) -> io::Result<Self> {
        let len = len.max(1).next_multiple_of(page_size() as usize);
        let mut region = Region::reserve(len)?;
        region.writable(0..len)?;
        Ok(Self {
            region,
            store: None,
            store_len: 0,
            folded: BTreeMap::new(),
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
    /// The caller has written both ranges and lets nobody write to them again:
    /// folded pages are read-only.
    ///
    /// # Errors
    /// When the system refuses (no memfd, too many mappings); the bytes stay
    /// as they are then.
    pub fn fold(&mut self, donor: Range<usize>, alias: Range<usize>) -> io::Result<u64> {
        let page = page_size() as usize;
        assert!(
            donor.len() == alias.len()
                && donor.end <= self.region.len()
                && alias.end <= self.region.len(),
            "ranges of one length inside the arena"
        );
        if donor.start % page != alias.start % page {
            return Ok(0);
        }
        let first = donor.start.next_multiple_of(page);
        let last = donor.end / page * page;
        let distance = alias.start as isize - donor.start as isize;
        let mut freed = 0;
        let mut run: Option<Range<usize>> = None;
        for start in (first..last.max(first)).step_by(page) {
            let other = start.wrapping_add_signed(distance);
            let bytes = self.region.readable();
            let foldable = bytes[start..start + page] == bytes[other..other + page]
                && !self.folded.contains_key(&(other / page));
            match &mut run {
                Some(run) if foldable => run.end = start + page,
                _ if foldable => run = Some(start..start + page),
                _ => {
                    if let Some(run) = run.take() {
                        freed += self.fold_pages(run, distance)?;
                    }
                }
            }
        }
        if let Some(run) = run {
            freed += self.fold_pages(run, distance)?;
        }
        Ok(freed)
    }

    /// Folds the equal pages `donor` and those `distance` bytes further.
    fn fold_pages(&mut self, donor: Range<usize>, distance: isize) -> io::Result<u64> {
        self.store_pages(donor.clone())?;
        let page = page_size() as usize;
        let mut start = donor.start;
        while start < donor.end {
            let offset = self.folded[&(start / page)];
            let mut end = start + page;
            while end < donor.end && self.folded[&(end / page)] == offset + (end - start) as u64 {
                end += page;
            }
            let other = start.wrapping_add_signed(distance);
            let store = self.store.as_ref().expect("pages were stored in it");
            // Populated: memory that is there should be seen to be there.
            self.region
                .map_file(other, store, offset, end - start, true)?;
            for at in (0..end - start).step_by(page) {
                self.folded.insert((other + at) / page, offset + at as u64);
            }
            start = end;
        }
        Ok(donor.len() as u64)
    }

    /// Moves those pages of `range` that are not in the store into it.
    fn store_pages(&mut self, range: Range<usize>) -> io::Result<()> {
        let page = page_size() as usize;
        if self.store.is_none() {
            let fd = rustix::fs::memfd_create("headshare-folded", MemfdFlags::CLOEXEC)?;
            self.store = Some(File::from(fd));
        }
        let store = self.store.as_ref().expect("created above");
        let mut start = range.start;
        while start < range.end {
            if self.folded.contains_key(&(start / page)) {
                start += page;
                continue;
            }
            let mut end = start + page;
            while end < range.end && !self.folded.contains_key(&(end / page)) {
                end += page;
            }
            let offset = self.store_len;
            store.write_all_at(&self.region.readable()[start..end], offset)?;
            self.region
                .map_file(start, store, offset, end - start, true)?;
            self.store_len += (end - start) as u64;
            for at in (0..end - start).step_by(page) {
                self.folded.insert((start + at) / page, offset + at as u64);
            }
            start = end;
        }
        Ok(())
    }
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

    /// Pages of the arena that are distinct in physical memory, by their
    /// frames' identity: the store's offset, or the page itself.
    fn distinct(arena: &FoldArena) -> usize {
        let page = page_size() as usize;
        let mut stored: Vec<u64> = arena.folded.values().copied().collect();
        stored.sort_unstable();
        stored.dedup();
        arena.len() / page - arena.folded.len() + stored.len()
    }

    fn pattern(seed: usize, len: usize) -> Vec<u8> {
        (0..len)
            .map(|i| ((i * 31 + seed * 7) % 251) as u8)
            .collect()
    }

    #[test]
    fn equal_congruent_ranges_share_their_whole_pages() {
        let page = page_size() as usize;
        let mut arena = FoldArena::new(16 * page).unwrap();
        let block = pattern(1, 3 * page + 100);
        write(&arena, page - 50, &block);
        write(&arena, 9 * page - 50, &block);
        let donor = page - 50..page - 50 + block.len();
        let alias = 9 * page - 50..9 * page - 50 + block.len();
        assert_eq!(arena.fold(donor, alias).unwrap(), 3 * page as u64);
        assert_eq!(distinct(&arena), 13);
        assert_eq!(
            arena.region.readable()[9 * page - 50..][..block.len()],
            block
        );
        assert_eq!(arena.region.readable()[page - 50..][..block.len()], block);
    }

    #[test]
    fn several_aliases_of_one_donor_and_overlapping_donors_share_one_copy() {
        let page = page_size() as usize;
        let mut arena = FoldArena::new(16 * page).unwrap();
        let block = pattern(2, 4 * page);
        write(&arena, 0, &block);
        write(&arena, 6 * page, &block);
        write(&arena, 12 * page, &block[page..3 * page]);
        assert_eq!(
            arena.fold(page..3 * page, 12 * page..14 * page).unwrap(),
            2 * page as u64
        );
        assert_eq!(
            arena.fold(0..4 * page, 6 * page..10 * page).unwrap(),
            4 * page as u64
        );
        // Folding again frees nothing.
        assert_eq!(arena.fold(0..4 * page, 6 * page..10 * page).unwrap(), 0);
        assert_eq!(distinct(&arena), 10);
        assert_eq!(arena.region.readable()[6 * page..10 * page], block);
        assert_eq!(
            arena.region.readable()[12 * page..14 * page],
            block[page..3 * page]
        );
    }

    #[test]
    fn pages_that_differ_and_ranges_that_lie_differently_are_left_alone() {
        let page = page_size() as usize;
        let mut arena = FoldArena::new(12 * page).unwrap();
        let block = pattern(3, 3 * page);
        write(&arena, 0, &block);
        write(&arena, 6 * page, &block);
        write(&arena, 7 * page + 5, &[255]);
        assert_eq!(
            arena.fold(0..3 * page, 6 * page..9 * page).unwrap(),
            2 * page as u64
        );
        assert_eq!(arena.region.readable()[7 * page + 5], 255);
        assert_eq!(
            arena.fold(0..page, 10 * page + 1..11 * page + 1).unwrap(),
            0
        );
    }
}
