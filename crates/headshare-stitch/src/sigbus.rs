//! A file that is truncated while it is mapped: touching the missing part
//! raises SIGBUS. For our mappings the program then says which file it was and
//! exits; other faults take their usual course.

use std::ffi::CString;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

/// Mappings that can be told apart at a time; further ones die without words.
const SLOTS: usize = 128;

/// Read by the signal handler, so lock-free: `start` is set last and cleared
/// first.
struct Slot {
    start: AtomicUsize,
    end: AtomicUsize,
    message: AtomicPtr<libc::c_char>,
}

static SLOTS_TAKEN: [Slot; SLOTS] = [const {
    Slot {
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        message: AtomicPtr::new(ptr::null_mut()),
    }
}; SLOTS];

/// Stands in `start` while a slot is being filled: no address.
const CLAIMED: usize = 1;

/// While this lives, a fault in its range names its file.
#[derive(Debug)]
pub(crate) struct Watch {
    slot: Option<usize>,
}

impl Watch {
    /// Watches the addresses `range`, where the file at `path` is mapped.
    pub(crate) fn new(range: Range<usize>, path: &Path) -> Self {
        static INSTALL: Once = Once::new();
        INSTALL.call_once(install);
        let mut message = b"error: ".to_vec();
        message.extend(path.as_os_str().as_bytes());
        message.extend(b": was truncated, or could not be read, while it was in use\n");
        let Ok(message) = CString::new(message) else {
            return Self { slot: None };
        };
        let slot = SLOTS_TAKEN.iter().position(|slot| {
            slot.start
                .compare_exchange(0, CLAIMED, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
        });
        if let Some(slot) = slot.map(|i| &SLOTS_TAKEN[i]) {
            slot.message.store(message.into_raw(), Ordering::Relaxed);
            slot.end.store(range.end, Ordering::Relaxed);
            slot.start.store(range.start, Ordering::Release);
        }
        Self { slot }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let Some(slot) = self.slot.map(|i| &SLOTS_TAKEN[i]) else {
            return;
        };
        slot.start.store(CLAIMED, Ordering::Release);
        let message = slot.message.swap(ptr::null_mut(), Ordering::AcqRel);
        if !message.is_null() {
            // SAFETY: came from `CString::into_raw` in `new`, taken out just now.
            // A handler that still reads it has found a fault in a mapping that
            // is going away, and the process ends there anyway.
            drop(unsafe { CString::from_raw(message) });
        }
        slot.start.store(0, Ordering::Release);
    }
}

fn install() {
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_sigbus;
    // SAFETY: a zeroed sigaction is a valid one; the handler only makes
    // async-signal-safe calls.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as libc::sighandler_t;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigaction(libc::SIGBUS, &action, ptr::null_mut());
    }
}

extern "C" fn on_sigbus(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
    // SAFETY: the kernel passes a valid siginfo for SA_SIGINFO handlers.
    let address = unsafe { (*info).si_addr() } as usize;
    for slot in &SLOTS_TAKEN {
        let start = slot.start.load(Ordering::Acquire);
        if start > CLAIMED && (start..slot.end.load(Ordering::Relaxed)).contains(&address) {
            let message = slot.message.load(Ordering::Relaxed);
            // SAFETY: `strlen`, `write` and `_exit` may be called in a signal
            // handler; the message is NUL-terminated and lives while its slot is
            // taken.
            unsafe {
                if !message.is_null() {
                    libc::write(2, message.cast(), libc::strlen(message));
                }
                libc::_exit(1);
            }
        }
    }
    // Not ours: the default action, when the instruction faults again.
    // SAFETY: resetting a signal's action is async-signal-safe.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}
