//! How the program says that it has failed.

use std::io::{self, IsTerminal, Write};

use headshare_jobs::Error;
use headshare_jobs::worker::{self, Failed};

use super::exit::Exit;
use super::output::printable;
use crate::render::advice;

/// Prints `error` to stderr, with a hint where there is one, and returns its exit
/// status.
pub(crate) fn report(error: &Error) -> Exit {
    let hint = error.advice.as_ref().map(advice::words);
    print(&error.to_string(), hint.as_deref());
    error.kind.into()
}

/// Prints what went wrong, and what can be done about it.
pub(crate) fn print(message: &str, hint: Option<&str>) {
    let mut stderr = io::stderr().lock();
    let _ = writeln!(stderr, "error: {}", one_line(message));
    if let Some(hint) = hint {
        let _ = writeln!(stderr, "hint: {}", one_line(hint));
    }
}

/// Tells whoever waits for this process why its work came to nothing, and ends it
/// at once: nothing is cleared up any more, not even a bar.
pub(crate) fn end_process(failed: &Failed) -> ! {
    if !worker::tell(failed) {
        let mut stderr = io::stderr();
        if stderr.is_terminal() {
            let _ = stderr.write_all(b"\r\x1b[2K");
        }
        let hint = failed.advice.as_ref().map(advice::words);
        print(&failed.message, hint.as_deref());
    }
    headshare_runtime::end_process(Exit::from(failed.kind) as i32)
}

/// Paths may hold any character; a message stays one line.
pub(crate) fn one_line(text: &str) -> String {
    printable(text).replace('\n', "\\n")
}
