//! Signals that end the program: Ctrl-C, unless a command has asked to be told
//! first so that it can show what it has, and the requests to end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use headshare_jobs::Error;

static STOP: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Removes temporary output files when the process is told to end. Only file
/// systems without unnamed files have any. If this process `becomes` another program (`exec`),
/// signals that are ignored here get no handler: the program would not ignore them any more.
///
/// # Errors
/// When there cannot be the thread that waits for signals.
pub(crate) fn install(becomes: bool) -> Result<(), Error> {
    signals::install(becomes)
}

/// Ctrl-C came; `status` is the exit status for it.
fn interrupted(status: i32) {
    let first = STOP
        .get()
        .is_some_and(|stop| !stop.swap(true, Ordering::Relaxed));
    if !first {
        end(status);
    }
}

/// Ends the program.
fn end(status: i32) -> ! {
    terminal::restore();
    headshare_runtime::end_process(status)
}

/// Has the terminal put back, as it is now, when a signal ends the program while
/// a line is edited.
pub(crate) fn remember_terminal() {
    terminal::remember();
}

#[cfg(unix)]
mod signals {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
    use signal_hook::iterator::Signals;

    /// Exit status of a program that a signal ended, as shells count.
    const fn status_of(signal: i32) -> i32 {
        128 + signal
    }

    pub(super) fn install(becomes: bool) -> Result<(), headshare_jobs::Error> {
        // A file at its limit (`ulimit -f`) is the write's error, not the process's end.
        let mut ending = vec![SIGINT, SIGTERM, SIGXFSZ, SIGHUP];
        // nohup has SIGHUP ignored; a script that starts a program in the background, SIGINT.
        let ignored = ignored();
        let is_ignored = |signal: i32| ignored >> (signal - 1) & 1 == 1;
        ending.retain(|&signal| !is_ignored(signal) || (signal != SIGHUP && !becomes));
        // Without a handler the signals still end the process.
        let Ok(mut signals) = Signals::new(ending) else {
            return Ok(());
        };
        headshare_runtime::threads::spawn(move || {
            for signal in &mut signals {
                match signal {
                    SIGXFSZ => {}
                    SIGINT => super::interrupted(status_of(signal)),
                    _ => super::end(status_of(signal)),
                }
            }
        })
        .map_err(headshare_jobs::Error::failed)?;
        Ok(())
    }

    /// The set of signals that this process ignores, from the lowest bit on.
    fn ignored() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let set = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok())
            .unwrap_or(0)
    }
}

#[cfg(not(unix))]
mod signals {
    /// Exit status of a program that Ctrl-C ended, as shells count.
    const INTERRUPTED: i32 = 130;

    pub(super) fn install(_becomes: bool) -> Result<(), headshare_jobs::Error> {
        // Without a handler Ctrl-C still ends the process.
        let _ = ctrlc::set_handler(|| super::interrupted(INTERRUPTED));
        Ok(())
    }
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

/// A flag that the next Ctrl-C sets instead of ending the program; the one after
/// it, or any while the flag is set, ends it.
pub(crate) fn stop_flag() -> Arc<AtomicBool> {
    Arc::clone(STOP.get_or_init(Arc::default))
}
