//! Ctrl-C and the signals like it: they end the program, unless a command has
//! asked to be told first so that it can show what it has.

use std::process;
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
            headshare_stitch::remove_temporary_files();
            process::exit(INTERRUPTED);
        }
    });
}

/// A flag that the next signal sets instead of ending the program; the one
/// after it ends it.
pub(super) fn stop_flag() -> Arc<AtomicBool> {
    Arc::clone(STOP.get_or_init(Arc::default))
}
