//! A file that is truncated while it is mapped: touching the missing part
//! raises SIGBUS. For our mappings the program then says which file it was and
//! exits; other faults go to the handler that was there before ours.

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
pub(crate) struct WatchedRange {
    slot: Option<usize>,
}

impl WatchedRange {
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

impl Drop for WatchedRange {
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

/// With `SA_SIGINFO`, and without.
type InfoHandler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
type PlainHandler = extern "C" fn(libc::c_int);

/// What was done about SIGBUS before: Rust's own handler, which knows a stack
/// overflow on some systems, or the program's. Set before ours can run, and kept.
static BEFORE: AtomicPtr<libc::sigaction> = AtomicPtr::new(ptr::null_mut());

fn install() {
    let handler: InfoHandler = on_sigbus;
    // SAFETY: a zeroed sigaction is a valid one; the handler only makes
    // async-signal-safe calls, besides what the handler before it does.
    unsafe {
        let mut before: libc::sigaction = std::mem::zeroed();
        if libc::sigaction(libc::SIGBUS, ptr::null(), &mut before) != 0 {
            return;
        }
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as libc::sighandler_t;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // What the handler before is not to be disturbed by.
        action.sa_mask = before.sa_mask;
        BEFORE.store(Box::into_raw(Box::new(before)), Ordering::Release);
        libc::sigaction(libc::SIGBUS, &action, ptr::null_mut());
    }
}

/// Has done what would have been done without us.
///
/// # Safety
/// The arguments are those that the kernel has called a handler with.
unsafe fn go_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: null, or a box that is never freed.
    let before = unsafe { BEFORE.load(Ordering::Acquire).as_ref() };
    let (handler, flags) = before.map_or((libc::SIG_DFL, 0), |b| (b.sa_sigaction, b.sa_flags));
    // SAFETY: the kernel passes a valid siginfo for SA_SIGINFO handlers.
    let is_fault = unsafe { (*info).si_code } > 0;
    match handler {
        libc::SIG_IGN if !is_fault => {}
        // The kernel lets no one ignore a fault.
        libc::SIG_DFL | libc::SIG_IGN => {
            // The instruction faults again, and what was sent is sent again.
            // SAFETY: both calls are async-signal-safe.
            unsafe {
                libc::signal(signal, libc::SIG_DFL);
                if !is_fault {
                    libc::raise(signal);
                }
            }
        }
        // SAFETY: the program has had the kernel call this address, with these
        // arguments.
        handler if flags & libc::SA_SIGINFO != 0 => unsafe {
            std::mem::transmute::<libc::sighandler_t, InfoHandler>(handler)(signal, info, context);
        },
        // SAFETY: as above.
        handler => unsafe {
            std::mem::transmute::<libc::sighandler_t, PlainHandler>(handler)(signal);
        },
    }
}

extern "C" fn on_sigbus(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
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
    // SAFETY: the kernel's arguments.
    unsafe { go_on(signal, info, context) };
}
