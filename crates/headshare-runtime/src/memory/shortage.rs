//! Memory that runs out. Rust's allocator and much of C++ end the process then,
//! in words of their own. A program can have itself told instead, and say what
//! is lacking as it says everything else.

use std::alloc::{GlobalAlloc, Layout, System};
use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

unsafe extern "C" {
    /// Has `failed` called where C++'s `new` finds no memory, before it throws.
    fn headshare_watch_new(failed: extern "C" fn());
}

/// What is to be done instead of aborting.
static THEN: OnceLock<fn(&Shortage) -> !> = OnceLock::new();

/// As much as this is there wherever memory is not short.
const PLENTY: usize = 1 << 30;

/// Memory that was asked for and is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// Bytes that were asked for, where that is known.
    pub wanted: Option<u64>,
    /// Bytes that the process may have in all, where that is limited, and how
    /// shells call the limit.
    pub limit: Option<(u64, &'static str)>,
}

impl Shortage {
    /// A shortage of `wanted` bytes in this process.
    pub fn of(wanted: Option<u64>) -> Self {
        Self {
            wanted,
            limit: platform::limit(),
        }
    }
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not enough memory")?;
        if let Some(wanted) = self.wanted {
            write!(f, ": {wanted} bytes more are needed")?;
        }
        match self.limit {
            Some((limit, name)) => write!(f, "; this process may have {limit} in all ({name})"),
            None => Ok(()),
        }
    }
}

/// The system's allocator, for a program to name as its global one: what it
/// cannot allocate is told to [`on_shortage`]'s function.
#[derive(Debug, Default)]
pub struct Allocator;

// SAFETY: every call is handed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: our caller keeps the trait's contract.
        told(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as in `alloc`.
        told(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as in `alloc`.
        told(unsafe { System.realloc(place, layout, size) }, size)
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: as in `alloc`.
        unsafe { System.dealloc(place, layout) };
    }
}

fn told(allocated: *mut u8, wanted: usize) -> *mut u8 {
    if allocated.is_null() {
        run_out(Some(wanted as u64));
    }
    allocated
}

/// Has `then` called, once, where memory runs out that the program cannot do
/// without: in Rust with [`Allocator`], in C++'s `new`, and, together with
/// [`on_abort`](crate::abort::on_abort), where llama.cpp would abort for it.
pub fn on_shortage(then: fn(&Shortage) -> !) {
    if THEN.set(then).is_ok() {
        // SAFETY: it may be called from any thread, at any time.
        unsafe { headshare_watch_new(new_failed) };
    }
}

/// Tells that memory ran out, if it did: for where something fails that does not
/// say why. Returns otherwise.
pub fn tell_if_short() {
    if is_short() {
        run_out(None);
    }
}

/// Tells that memory ran out, if so many `bytes` more are not there: before something that
/// would end the process in its own way then. Returns otherwise.
pub fn require(bytes: usize) {
    if !platform::can_map(bytes) {
        run_out(Some(bytes as u64));
    }
}

/// Whether there is hardly any memory left, or hardly any addresses: then that
/// is why something failed which does not say why.
pub fn is_short() -> bool {
    !platform::can_map(PLENTY)
}

/// C++'s `new` failed. It goes on to throw where memory is not short: too much
/// was asked for, by a damaged file perhaps, and the exception says so.
extern "C" fn new_failed() {
    tell_if_short();
}

/// Tells that memory ran out; returns only where nobody wants to know.
fn run_out(wanted: Option<u64>) {
    /// The thread that tells; 0 for none.
    static TELLER: AtomicUsize = AtomicUsize::new(0);
    let Some(then) = THEN.get() else {
        return;
    };
    let me = platform::thread();
    match TELLER.compare_exchange(0, me, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => then(&Shortage::of(wanted)),
        // Not even the words could be put together.
        Err(teller) if teller == me => platform::end_without_words(),
        // Another thread ends the process.
        Err(_) => loop {
            platform::wait();
        },
    }
}

#[cfg(target_os = "linux")]
mod platform {
    use std::ptr;

    use rustix::mm::{MapFlags, ProtFlags};
    use rustix::process::{Resource, getrlimit};

    pub(super) fn limit() -> Option<(u64, &'static str)> {
        let limits = [(Resource::As, "ulimit -v"), (Resource::Data, "ulimit -d")];
        let set = |(of, name)| Some((getrlimit(of).current?, name));
        limits.into_iter().filter_map(set).min()
    }

    pub(super) fn can_map(len: usize) -> bool {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, known to no one else, which is never touched
        // and goes away at once.
        unsafe {
            match rustix::mm::mmap_anonymous(ptr::null_mut(), len, access, MapFlags::PRIVATE) {
                Ok(place) => rustix::mm::munmap(place, len).is_ok(),
                Err(_) => false,
            }
        }
    }

    pub(super) fn thread() -> usize {
        // SAFETY: only names the calling thread.
        unsafe { libc::pthread_self() as usize }
    }

    pub(super) fn end_without_words() -> ! {
        const WORDS: &[u8] = b"error: not enough memory\n";
        // SAFETY: the bytes live; neither call needs memory.
        unsafe {
            libc::write(2, WORDS.as_ptr().cast(), WORDS.len());
            libc::_exit(1)
        }
    }

    pub(super) fn wait() {
        // SAFETY: only waits.
        unsafe { libc::pause() };
    }
}

#[cfg(not(target_os = "linux"))]
mod platform {
    pub(super) fn limit() -> Option<(u64, &'static str)> {
        None
    }

    pub(super) fn can_map(_: usize) -> bool {
        true
    }

    pub(super) fn thread() -> usize {
        1
    }

    pub(super) fn end_without_words() -> ! {
        std::process::exit(1)
    }

    pub(super) fn wait() {
        std::thread::yield_now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortage_says_what_it_knows() {
        let shortage = |wanted, limit| Shortage { wanted, limit }.to_string();
        assert_eq!(shortage(None, None), "not enough memory");
        assert_eq!(
            shortage(Some(4096), None),
            "not enough memory: 4096 bytes more are needed"
        );
        assert_eq!(
            shortage(Some(4096), Some((409_600_000, "ulimit -v"))),
            "not enough memory: 4096 bytes more are needed; \
             this process may have 409600000 in all (ulimit -v)"
        );
    }

    #[test]
    fn memory_is_not_short_here() {
        assert!(!is_short());
    }
}
