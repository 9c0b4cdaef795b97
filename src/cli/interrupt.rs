//! Ctrl-C and the signals like it: they end the program, unless a command has
//! asked to be told first so that it can show what it has.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

/// Exit status of a program that Ctrl-C ended, as shells count.
const INTERRUPTED: i32 = 130;

static STOP: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Removes temporary output files when the process is told to end. Only file
/// systems without unnamed files have any.
pub(super) fn install() {
    // Without a handler the signals still end the process.
    let _ = ctrlc::set_handler(|| {
        let first = STOP
            .get()
            .is_some_and(|stop| !stop.swap(true, Ordering::Relaxed));
        if !first {
            terminal::restore();
            headshare_stitch::end_process(INTERRUPTED);
        }
    });
}

/// Has the terminal put back, as it is now, when a signal ends the program while
/// a line is edited.
pub(super) fn remember_terminal() {
    terminal::remember();
}

#[cfg(unix)]
mod terminal {
    use std::io::{self, Write};
    use std::sync::OnceLock;

    use rustix::process::getpgrp;
    use rustix::stdio::stdin;
    use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetpgrp, tcsetattr};

    static BEFORE: OnceLock<Termios> = OnceLock::new();

    pub(super) fn remember() {
        if let Ok(termios) = tcgetattr(stdin()) {
            let _ = BEFORE.set(termios);
        }
    }

    pub(super) fn restore() {
        let Some(termios) = BEFORE.get() else {
            return;
        };
        // In the background that would stop the process instead.
        if tcgetpgrp(stdin()) != Ok(getpgrp()) {
            return;
        }
        let _ = tcsetattr(stdin(), OptionalActions::Now, termios);
        // The line editor also asked for pasted text to be marked.
        let _ = io::stderr().write_all(b"\x1b[?2004l\r\n");
    }
}

#[cfg(not(unix))]
mod terminal {
    pub(super) fn remember() {}
    pub(super) fn restore() {}
}

/// A flag that the next signal sets instead of ending the program; the one
/// after it, or any while the flag is set, ends it.
pub(super) fn stop_flag() -> Arc<AtomicBool> {
    Arc::clone(STOP.get_or_init(Arc::default))
}
