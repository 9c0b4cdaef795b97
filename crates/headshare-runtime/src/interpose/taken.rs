//! Which memory the loading of a model took for weights.
//!
//! llama.cpp has no question for that. It allocates its weight buffers through
//! `posix_memalign` and maps the file through `mmap`; what comes by there is
//! noted while a load goes on in the calling thread.

use std::cell::RefCell;
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
    static NOTED: RefCell<Option<Taken>> = const { RefCell::new(None) };
}

/// Runs `load`; returns its result and what it took.
pub(crate) fn record<T>(load: impl FnOnce() -> T) -> (T, Taken) {
    NOTED.with(|noted| *noted.borrow_mut() = Some(Taken::default()));
    let result = load();
    let taken = NOTED.with(|noted| noted.borrow_mut().take());
    (result, taken.unwrap_or_default())
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
    // Not while the list itself is being changed, nor while the thread ends.
    let _ = NOTED.try_with(|noted| {
        if let Ok(mut noted) = noted.try_borrow_mut()
            && let Some(taken) = noted.as_mut()
        {
            f(taken);
        }
    });
}

#[cfg(all(test, target_os = "linux", target_pointer_width = "64"))]
mod tests {
    use super::*;

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
