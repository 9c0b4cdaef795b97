//! The C library's `fileno`, `mmap` and `munmap`, replaced for this program.
//!
//! llama.cpp maps the file behind a `FILE*` itself. For the streams registered
//! here it gets the stitched mapping instead; everything else goes to the
//! kernel unchanged. Defined in the executable, these symbols win over the C
//! library's for a statically linked llama.cpp and for shared libraries alike.
//!
//! The registry is an array of atomics: no locks and no allocation, since
//! `mmap` can be called from anywhere.

use std::ffi::{c_int, c_void};
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicUsize, Ordering};

use libc::{FILE, off_t, size_t};

use super::taken;

/// Models that can be loaded this way at a time.
const SLOTS: usize = 64;

struct Slot {
    /// 0 free, 1 being filled, else the mapping's address; set last.
    start: AtomicUsize,
    len: AtomicUsize,
    stream: AtomicPtr<FILE>,
    fd: AtomicI32,
}

const CLAIMED: usize = 1;

static REGISTRY: [Slot; SLOTS] = [const {
    Slot {
        start: AtomicUsize::new(0),
        len: AtomicUsize::new(0),
        stream: AtomicPtr::new(ptr::null_mut()),
        fd: AtomicI32::new(-1),
    }
}; SLOTS];

/// A registered mapping; llama.cpp's `munmap`s in it do nothing while this
/// lives. The mapping outlives it.
#[derive(Debug)]
pub(crate) struct Registration {
    slot: &'static Slot,
    /// Stands for the stream at `fileno` and `mmap`. Its number is no one
    /// else's while it is open.
    _fd: OwnedFd,
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Slot({:#x})", self.start.load(Ordering::Relaxed))
    }
}

impl Registration {
    /// Registers the `len` bytes mapped at `start`, for which `fd` stands.
    /// `None` when too many are registered.
    ///
    /// # Safety
    /// The bytes stay mapped, and readable, for as long as what is returned lives:
    /// whoever maps `fd` is given them.
    pub(crate) unsafe fn new(start: *const u8, len: usize, fd: OwnedFd) -> Option<Self> {
        let slot = REGISTRY.iter().find(|slot| {
            slot.start
                .compare_exchange(0, CLAIMED, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
        })?;
        slot.len.store(len, Ordering::Relaxed);
        slot.fd.store(fd.as_raw_fd(), Ordering::Relaxed);
        slot.start.store(start as usize, Ordering::Release);
        Some(Self { slot, _fd: fd })
    }

    /// From now on `stream` is the mapping's; until the guard is dropped.
    ///
    /// # Safety
    /// That comes before the stream is closed: later another may be at its address.
    pub(crate) unsafe fn attach(&self, stream: *mut FILE) -> Attached<'_> {
        self.slot.stream.store(stream, Ordering::Release);
        Attached { slot: self.slot }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.slot.start.store(CLAIMED, Ordering::Release);
        self.slot.fd.store(-1, Ordering::Release);
        self.slot.start.store(0, Ordering::Release);
    }
}

/// While this lives, the stream has the mapping.
pub(crate) struct Attached<'a> {
    slot: &'a Slot,
}

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        self.slot.stream.store(ptr::null_mut(), Ordering::Release);
    }
}

fn registered() -> impl Iterator<Item = (usize, &'static Slot)> {
    REGISTRY
        .iter()
        .map(|slot| (slot.start.load(Ordering::Acquire), slot))
        .filter(|(start, _)| *start > CLAIMED)
}

unsafe extern "C" {
    // POSIX's fileno under another name of the C library's.
    fn fileno_unlocked(stream: *mut FILE) -> c_int;
}

/// `fileno(3)`, but for registered streams.
///
/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
unsafe extern "C" fn fileno(stream: *mut FILE) -> c_int {
    let ours = registered()
        .find(|(_, slot)| !stream.is_null() && slot.stream.load(Ordering::Acquire) == stream);
    match ours {
        Some((_, slot)) => slot.fd.load(Ordering::Relaxed),
        // SAFETY: the caller's stream, passed on.
        None => unsafe { fileno_unlocked(stream) },
    }
}

/// `mmap(2)`, but for registered files: they are mapped in whole, read-only, or
/// not at all, since their stored bytes are others.
///
/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
unsafe extern "C" fn mmap(
    address: *mut c_void,
    len: size_t,
    prot: c_int,
    flags: c_int,
    fd: c_int,
    offset: off_t,
) -> *mut c_void {
    let ours = registered().find(|(_, slot)| fd >= 0 && slot.fd.load(Ordering::Relaxed) == fd);
    if let Some((start, slot)) = ours {
        let whole = offset == 0 && slot.len.load(Ordering::Relaxed) == len;
        if whole && address.is_null() && prot == libc::PROT_READ {
            return start as *mut c_void;
        }
        // SAFETY: this thread's own error number.
        unsafe { *libc::__errno_location() = libc::EINVAL };
        return libc::MAP_FAILED;
    }
    // SAFETY: the caller's arguments, passed on; a `long` holds a pointer.
    let mapped = unsafe { libc::syscall(libc::SYS_mmap, address, len, prot, flags, fd, offset) }
        as *mut c_void;
    if mapped == libc::MAP_FAILED {
        taken::note_refused();
    } else if fd >= 0 {
        taken::note(mapped, len);
    }
    mapped
}

/// `mmap64`: the same, offsets have 64 bits here anyway.
///
/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
unsafe extern "C" fn mmap64(
    address: *mut c_void,
    len: size_t,
    prot: c_int,
    flags: c_int,
    fd: c_int,
    offset: off_t,
) -> *mut c_void {
    // SAFETY: the caller's arguments, passed on.
    unsafe { mmap(address, len, prot, flags, fd, offset) }
}

/// `munmap(2)`, but for ranges of registered mappings: llama.cpp gives back the
/// parts of the file around its own tensors, and ours may lie there.
///
/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
unsafe extern "C" fn munmap(address: *mut c_void, len: size_t) -> c_int {
    let at = address as usize;
    let inside = registered().any(|(start, slot)| {
        start <= at && at.saturating_add(len) <= start + slot.len.load(Ordering::Relaxed)
    });
    if inside {
        return 0;
    }
    taken::forget(address, len);
    // SAFETY: the caller's arguments, passed on.
    unsafe { libc::syscall(libc::SYS_munmap, address, len) as c_int }
}

type MapFunction =
    unsafe extern "C" fn(*mut c_void, size_t, c_int, c_int, c_int, off_t) -> *mut c_void;

/// Keeps the linker from dropping what only llama.cpp refers to.
#[used]
static KEEP_MAPS: [MapFunction; 2] = [mmap, mmap64];
#[used]
static KEEP_UNMAP: unsafe extern "C" fn(*mut c_void, size_t) -> c_int = munmap;
#[used]
static KEEP_FILENO: unsafe extern "C" fn(*mut FILE) -> c_int = fileno;
