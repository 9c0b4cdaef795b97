//! A reserved range of addresses, filled piece by piece: the one place that
//! calls mmap with fixed addresses.

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::ptr::NonNull;

use headshare_format::PageSize;
use rustix::mm::{Advice, MapFlags, MprotectFlags, ProtFlags};

/// A page of memory on this machine.
pub fn page_size() -> PageSize {
    PageSize::new(rustix::param::page_size() as u64).expect("pages are powers of two")
}

/// What a processor's large pages hold, on x86-64 and on ARM with 4 KiB pages.
pub(crate) const HUGE_PAGE: usize = 2 << 20;

/// `len` bytes of addresses that are ours alone; unmapped when dropped.
///
/// Ranges passed to its methods begin on a page, lie inside, and end on a page
/// or at the end: anything else is a bug and panics.
#[derive(Debug)]
pub(crate) struct Region {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: a region is an exclusively owned range of memory; its methods that
// change mappings or hand out `&mut` take `&mut self`.
unsafe impl Send for Region {}
// SAFETY: as above; through `&self` the memory is only read or advised about.
unsafe impl Sync for Region {}

impl Region {
    /// Reserves addresses; touching them faults until something is mapped.
    ///
    /// With a `skew`, whole pages, a large region begins so many bytes after a
    /// [`HUGE_PAGE`] does: what is mapped at its own offset less `skew` can be
    /// translated by huge pages then.
    pub(crate) fn reserve(len: usize, skew: Option<usize>) -> io::Result<Self> {
        let page = page_size().to_usize();
        let skew = skew.filter(|_| len >= HUGE_PAGE);
        let slack = if skew.is_some() { HUGE_PAGE - page } else { 0 };
        let all = len
            .checked_next_multiple_of(page)
            .and_then(|len| len.checked_add(slack))
            .ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice
        // touches no existing memory.
        let whole = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                all,
                ProtFlags::empty(),
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }?;
        let whole = NonNull::new(whole.cast::<u8>()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        let before = skew.map_or(0, |skew| {
            (whole.as_ptr().align_offset(HUGE_PAGE) + skew) % HUGE_PAGE
        });
        // SAFETY: `before` is at most `slack`, so that all of it lies in the
        // pages that were just reserved; what is given back is used by no one.
        unsafe {
            let start = whole.add(before);
            let used = all - slack;
            for (at, len) in [(whole, before), (start.add(used), slack - before)] {
                if len > 0 {
                    rustix::mm::munmap(at.as_ptr().cast(), len)?;
                }
            }
            Ok(Self { start, len })
        }
    }

    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The bytes of `range`, which need not be whole pages.
    ///
    /// # Safety
    /// Something readable is mapped over all of `range`. As long as the bytes are
    /// borrowed, nobody writes to them: neither through [`as_ptr`](Self::as_ptr)
    /// nor, where they are a file's, to the file.
    pub(crate) unsafe fn readable(&self, range: Range<usize>) -> &[u8] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: inside the region, as just checked, which is ours as long as
        // `self` is borrowed; the rest is the caller's promise.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().add(range.start), range.len()) }
    }

    /// Maps fresh zeroed memory over `range`, and returns it for filling.
    pub(crate) fn writable(&mut self, range: Range<usize>) -> io::Result<&mut [u8]> {
        let at = self.at(&range);
        // SAFETY: MAP_FIXED replaces pages of this region only (`at` checked
        // the range), which nobody else has references to: `&mut self`.
        unsafe {
            rustix::mm::mmap_anonymous(
                at,
                range.len(),
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::FIXED,
            )
        }?;
        // SAFETY: just mapped readable and writable, and borrowed from `self`.
        Ok(unsafe { std::slice::from_raw_parts_mut(at.cast(), range.len()) })
    }

    /// Makes `range` read-only.
    pub(crate) fn protect(&mut self, range: Range<usize>) -> io::Result<()> {
        let at = self.at(&range);
        // SAFETY: pages of this region only; nobody holds a `&mut` into it.
        unsafe { rustix::mm::mprotect(at, range.len(), MprotectFlags::READ) }?;
        Ok(())
    }

    /// Maps `len` bytes of `file` from `offset` on over the region at
    /// `start`, read-only and shared; `populate` takes the pages in at once.
    ///
    /// # Safety
    /// The file's bytes are the region's from now on: whoever writes to the file,
    /// or shortens it, writes to memory that others may have borrowed.
    pub(crate) unsafe fn map_file(
        &mut self,
        start: usize,
        file: &File,
        offset: u64,
        len: usize,
        populate: bool,
    ) -> io::Result<()> {
        let at = self.at(&(start..start + len));
        let mut flags = MapFlags::SHARED | MapFlags::FIXED;
        flags.set(MapFlags::POPULATE, populate);
        // SAFETY: as in `writable`; what happens to the file is the caller's
        // promise.
        unsafe { rustix::mm::mmap(at, len, ProtFlags::READ, flags, file, offset) }?;
        Ok(())
    }

    /// Maps `file`, which is as long as the region, over all of it, writable
    /// and shared.
    ///
    /// # Safety
    /// As for [`map_file`](Self::map_file).
    pub(crate) unsafe fn map_file_writable(&mut self, file: &File) -> io::Result<()> {
        let at = self.at(&(0..self.len));
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::SHARED | MapFlags::FIXED;
        // SAFETY: as in `map_file`.
        unsafe { rustix::mm::mmap(at, self.len, prot, flags, file, 0) }?;
        Ok(())
    }

    /// Releases the memory behind the whole pages in `range`; they are read from
    /// their file again when touched.
    ///
    /// # Safety
    /// All of these pages are mapped from a file. Others would be zeros from now
    /// on, under whoever has borrowed them.
    pub(crate) unsafe fn drop_file_pages(&self, range: Range<usize>) {
        let page = page_size().to_usize();
        let start = range.start.next_multiple_of(page);
        let end = range.end / page * page;
        if start < end {
            let at = self.at(&(start..end));
            // SAFETY: DONTNEED does not change what pages of a file hold, and the
            // caller promises that these are such.
            let _ = unsafe { rustix::mm::madvise(at, end - start, Advice::LinuxDontNeed) };
        }
    }

    /// Releases the memory behind the anonymous pages of `range`, which are
    /// zeros from now on.
    pub(crate) fn drop_copies(&mut self, range: Range<usize>) {
        let at = self.at(&range);
        // SAFETY: pages of this region only, which nobody else has references
        // to: `&mut self`.
        let _ = unsafe { rustix::mm::madvise(at, range.len(), Advice::LinuxDontNeed) };
    }

    fn at(&self, range: &Range<usize>) -> *mut c_void {
        let page = page_size().to_usize();
        assert!(
            range.start <= range.end
                && range.end <= self.len
                && range.start.is_multiple_of(page)
                && (range.end.is_multiple_of(page) || range.end == self.len),
            "{range:?} is no page range of a region of {} bytes",
            self.len
        );
        // SAFETY: within the region, as just checked.
        unsafe { self.start.as_ptr().add(range.start) }.cast()
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the region is ours, and nothing borrowed from it is left.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.len) };
    }
}
