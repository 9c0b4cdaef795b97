//! Keeps llama.cpp's log away from the terminal and its complaints at hand.
//!
//! llama.cpp and ggml write everything they say to one process-wide callback.
//! Warnings and errors are kept in a short ring, so that an error of ours can
//! carry llama.cpp's own reason; nothing is printed unless
//! [`set_verbose`] asks for all of it on stderr.

use std::collections::VecDeque;
use std::ffi::{CStr, c_char, c_void};
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ggml_sys as sys;

/// How many warnings and errors are kept.
const RING_LINES: usize = 64;
/// Longest line kept; llama.cpp's own are far shorter.
const LINE_BYTES: usize = 4096;

static VERBOSE: AtomicBool = AtomicBool::new(false);
static RING: Mutex<Ring> = Mutex::new(Ring::new());

/// How serious a kept line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Something is off, and work goes on.
    Warning,
    /// Something failed.
    Error,
}

/// One kept line of llama.cpp's log, without its line end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// How serious it is.
    pub level: Level,
    /// What was said, with the name of the C++ function in front of it.
    pub text: String,
}

/// A point in the log; see [`mark`].
#[derive(Clone, Copy, Debug)]
pub struct Mark(u64);

struct Ring {
    lines: VecDeque<Line>,
    /// Number of lines ever begun, so that marks survive the ring's turning.
    begun: u64,
    /// The last line is unfinished: what follows belongs to it.
    open: bool,
}

impl Ring {
    const fn new() -> Self {
        Self {
            lines: VecDeque::new(),
            begun: 0,
            open: false,
        }
    }

    /// Adds a piece of log; `level` is `None` for pieces that are not kept.
    fn push(&mut self, level: Option<Level>, continues: bool, text: &str) {
        let Some(level) = level.filter(|_| !continues) else {
            if continues && self.open {
                self.extend(text);
            }
            self.open &= continues;
            return;
        };
        if self.lines.len() == RING_LINES {
            self.lines.pop_front();
        }
        self.begun += 1;
        self.lines.push_back(Line {
            level,
            text: String::new(),
        });
        self.extend(text);
    }

    fn extend(&mut self, text: &str) {
        let Some(line) = self.lines.back_mut() else {
            return;
        };
        self.open = !text.ends_with('\n');
        let room = LINE_BYTES.saturating_sub(line.text.len());
        line.text.extend(
            text.trim_end_matches('\n')
                .char_indices()
                .take_while(|(at, c)| at + c.len_utf8() <= room)
                .map(|(_, c)| c),
        );
    }

    fn since(&self, mark: Mark) -> impl Iterator<Item = &Line> {
        let fresh = usize::try_from(self.begun.saturating_sub(mark.0)).unwrap_or(usize::MAX);
        self.lines
            .iter()
            .skip(self.lines.len().saturating_sub(fresh))
    }
}

fn ring() -> MutexGuard<'static, Ring> {
    RING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Forwards everything that llama.cpp logs to stderr, or stops doing so.
pub fn set_verbose(verbose: bool) {
    VERBOSE.store(verbose, Ordering::Relaxed);
}

/// The present end of the log, for a later [`lines_since`].
pub fn mark() -> Mark {
    Mark(ring().begun)
}

/// Warnings and errors logged after `mark`, oldest first. The log belongs to
/// the process: lines of calls on other threads are among them.
pub fn lines_since(mark: Mark) -> Vec<Line> {
    ring().since(mark).cloned().collect()
}

/// llama.cpp's reason for a failure after `mark`: its error lines without
/// function names and repetitions, or the warnings where there were no errors.
/// `None` when it said nothing.
pub fn reason_since(mark: Mark) -> Option<String> {
    let lines = lines_since(mark);
    let pick = |level: Level| -> Vec<&str> {
        let mut reasons: Vec<&str> = Vec::new();
        for line in lines.iter().filter(|line| line.level == level) {
            let reason = without_function(line.text.trim());
            // The last line of a failed load, which says nothing new.
            if !reason.is_empty() && reason != "failed to load model" && !reasons.contains(&reason)
            {
                reasons.push(reason);
            }
        }
        reasons
    };
    let mut reasons = pick(Level::Error);
    if reasons.is_empty() {
        reasons = pick(Level::Warning);
    }
    (!reasons.is_empty()).then(|| reasons.join("; "))
}

/// Drops the leading `function_name: ` that llama.cpp puts on its lines.
fn without_function(text: &str) -> &str {
    match text.split_once(": ") {
        Some((name, rest))
            if !name.is_empty()
                && name
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_') =>
        {
            rest
        }
        _ => text,
    }
}

/// Makes llama.cpp and ggml log through this module.
pub(crate) fn install() {
    // SAFETY: the callback is a function, lives as long as the process, uses
    // no user data and may be called from any thread.
    unsafe { sys::llama_log_set(Some(on_log), std::ptr::null_mut()) };
}

/// llama.cpp's log callback.
///
/// # Safety
/// `text` is NULL or ends with NUL.
unsafe extern "C" fn on_log(level: sys::ggml_log_level, text: *const c_char, _: *mut c_void) {
    if text.is_null() {
        return;
    }
    // SAFETY: llama.cpp passes a NUL-terminated string that lives for the call.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    let kept = match level {
        sys::GGML_LOG_LEVEL_WARN => Some(Level::Warning),
        sys::GGML_LOG_LEVEL_ERROR => Some(Level::Error),
        _ => None,
    };
    ring().push(kept, level == sys::GGML_LOG_LEVEL_CONT, &text);
    if VERBOSE.load(Ordering::Relaxed) {
        // A closed stderr is no reason to stop.
        let _ = std::io::stderr().write_all(text.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn continued_pieces_make_one_line() {
        let mut ring = Ring::new();
        ring.push(Some(Level::Error), false, "load: bad ");
        ring.push(None, true, "magic\n");
        ring.push(None, true, "not part of it\n");
        ring.push(None, false, "chatter\n");
        ring.push(Some(Level::Warning), false, "odd\n");
        let texts: Vec<_> = ring.since(Mark(0)).map(|line| line.text.clone()).collect();
        assert_eq!(texts, ["load: bad magic", "odd"]);
    }

    #[test]
    fn a_mark_survives_the_turning_of_the_ring() {
        let mut ring = Ring::new();
        for i in 0..RING_LINES * 2 {
            ring.push(Some(Level::Error), false, &format!("{i}\n"));
        }
        let mark = Mark(ring.begun);
        assert_eq!(ring.since(mark).count(), 0);
        ring.push(Some(Level::Error), false, "fresh\n");
        let texts: Vec<_> = ring.since(mark).map(|line| line.text.clone()).collect();
        assert_eq!(texts, ["fresh"]);
        assert_eq!(ring.since(Mark(0)).count(), RING_LINES);
    }

    #[test]
    fn long_lines_are_cut_on_a_character() {
        let mut ring = Ring::new();
        ring.push(Some(Level::Error), false, &"\u{20ac}".repeat(LINE_BYTES));
        let line = ring.since(Mark(0)).next().unwrap();
        assert!(line.text.len() <= LINE_BYTES && line.text.len() > LINE_BYTES - 3);
    }

    #[test]
    fn function_names_are_dropped() {
        assert_eq!(without_function("llama_model_load: x: y"), "x: y");
        assert_eq!(without_function("Error here: y"), "Error here: y");
        assert_eq!(without_function("plain"), "plain");
    }
}
