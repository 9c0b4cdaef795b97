//! Which memory the loading of a model took for weights.
//!
//! llama.cpp has no question for that. It allocates its weight buffers through
//! `posix_memalign` and maps the file through `mmap`; what comes by there is
//! noted while a load goes on in the calling thread.

use std::cell::Cell;
use std::ops::Range;

/// Smaller allocations are no buffers of weights.
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
const MIN_LEN: usize = 64 << 10;

/// What a load took.
#[derive(Default)]
pub(crate) struct Taken {
    /// The memory.
    pub ranges: Vec<Range<u64>>,
    /// Whether the system refused some.
    pub refused: bool,
}

#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
impl Taken {
    fn forget(&mut self, gone: &Range<u64>) {
        let mut behind = Vec::new();
        for range in &mut self.ranges {
            if range.start < gone.end && gone.start < range.end {
                behind.push(gone.end..range.end);
                range.end = gone.start;
            }
        }
        self.ranges.append(&mut behind);
        self.ranges.retain(|range| range.start < range.end);
    }
}

thread_local! {
    /// Of the load that goes on in this thread; null where none does, or while the list is being
    /// changed. Without a destructor: to register one allocates, and an allocator may be what
    /// gives memory back here, with its lock held.
    static NOTED: Cell<*mut Taken> = const { Cell::new(std::ptr::null_mut()) };
}

/// Ends the notes when it is dropped, also when a load panics.
struct Noting {
    before: *mut Taken,
}

impl Drop for Noting {
    fn drop(&mut self) {
        NOTED.set(self.before);
    }
}

/// Runs `load`; returns its result and what it took.
pub(crate) fn record<T>(load: impl FnOnce() -> T) -> (T, Taken) {
    let mut taken = Taken::default();
    let noting = Noting {
        before: NOTED.replace(&raw mut taken),
    };
    let result = load();
    drop(noting);
    (result, taken)
}

/// Notes `len` bytes at `start`, if a load goes on in this thread.
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
pub(crate) fn note(start: *const std::ffi::c_void, len: usize) {
    if len >= MIN_LEN {
        let start = start as u64;
        with(|taken| taken.ranges.push(start..start + len as u64));
    }
}

/// Forgets what of the `len` bytes at `start` was noted: the memory is given
/// back, and may become something else's.
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
pub(crate) fn forget(start: *const std::ffi::c_void, len: usize) {
    let start = start as u64;
    let gone = start..start.saturating_add(len as u64);
    with(|taken| taken.forget(&gone));
}

/// Notes that there was no memory, if a load goes on in this thread.
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
pub(crate) fn note_refused() {
    with(|taken| taken.refused = true);
}

#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
fn with(f: impl FnOnce(&mut Taken)) {
    let taken = NOTED.replace(std::ptr::null_mut());
    // SAFETY: `record` has put it there, in this thread, and takes it away before it is gone;
    // nobody else refers to it meanwhile, since the cell is empty while `f` runs.
    if let Some(taken) = unsafe { taken.as_mut() } {
        f(taken);
        NOTED.set(taken);
    }
}

#[cfg(all(test, target_os = "linux", target_pointer_width = "64"))]
mod tests {
    use super::*;

    #[test]
    fn what_a_load_takes_is_noted_and_nothing_else() {
        let at = |place: usize| std::ptr::without_provenance::<std::ffi::c_void>(place);
        let starts = |taken: &Taken| taken.ranges.iter().map(|r| r.start).collect::<Vec<u64>>();
        note(at(1 << 20), MIN_LEN);
        let ((), outer) = record(|| {
            note(at(2 << 20), MIN_LEN);
            note(at(3 << 20), MIN_LEN - 1);
            let ((), inner) = record(|| note(at(4 << 20), MIN_LEN));
            assert_eq!(starts(&inner), [4 << 20]);
            note_refused();
        });
        note(at(5 << 20), MIN_LEN);
        assert_eq!(starts(&outer), [2 << 20]);
        assert!(outer.ranges[0].end == (2 << 20) + MIN_LEN as u64);
        assert!(outer.refused);
    }

    #[test]
    fn what_is_given_back_is_cut_out() {
        let cut = |gone: Range<u64>| {
            let mut taken = Taken {
                ranges: vec![10..20, 30..40],
                refused: false,
            };
            taken.forget(&gone);
            taken.ranges
        };
        assert_eq!(cut(0..10), [10..20, 30..40]);
        assert_eq!(cut(0..12), [30..40, 12..20]);
        assert_eq!(cut(13..15), [10..13, 30..40, 15..20]);
        assert_eq!(cut(15..35), [10..15, 35..40]);
        assert_eq!(cut(5..45), Vec::<Range<u64>>::new());
    }
}
