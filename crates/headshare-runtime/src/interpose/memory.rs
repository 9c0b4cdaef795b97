//! The C library's `posix_memalign`, replaced for this program.

use std::ffi::{c_int, c_void};

use libc::size_t;

use super::taken;

/// `posix_memalign(3)`, through the C library's older `memalign`.
///
/// # Safety
/// As the C library's.
#[unsafe(no_mangle)]
unsafe extern "C" fn posix_memalign(
    out: *mut *mut c_void,
    alignment: size_t,
    size: size_t,
) -> c_int {
    if !alignment.is_power_of_two() || !alignment.is_multiple_of(size_of::<*mut c_void>()) {
        return libc::EINVAL;
    }
    // SAFETY: a valid alignment and any size; `free` takes the result.
    let memory = unsafe { libc::memalign(alignment, size) };
    if memory.is_null() {
        taken::note_refused();
        return libc::ENOMEM;
    }
    taken::note(memory, size);
    // SAFETY: the caller's place for the result.
    unsafe { *out = memory };
    0
}

/// Keeps the linker from dropping what only llama.cpp refers to.
#[used]
static KEEP: unsafe extern "C" fn(*mut *mut c_void, size_t, size_t) -> c_int = posix_memalign;
