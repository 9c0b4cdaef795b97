//! How the program ends: exit status and error messages.

use std::io::{self, Write};
use std::process::ExitCode;

use super::run::RunError;

/// The exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// Failed, for a reason that is none of the others.
    Failed = 1,
    /// Wrong usage.
    Usage = 2,
    /// A bad input file.
    BadInput = 3,
    /// A check did not hold.
    CheckFailed = 4,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        (exit as u8).into()
    }
}

/// Prints `error` to stderr, with a hint where there is one, and returns its
/// exit status. A closed stdout is success: the reader had enough.
pub(super) fn report(error: &anyhow::Error) -> Exit {
    let broken_pipe = error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::BrokenPipe);
    if broken_pipe {
        return Exit::Done;
    }
    let mut stderr = io::stderr().lock();
    let _ = writeln!(stderr, "error: {error:#}");
    let run = error.downcast_ref::<RunError>();
    if let Some(hint) = run.and_then(RunError::hint) {
        let _ = writeln!(stderr, "hint: {hint}");
    }
    run.map_or(Exit::Failed, RunError::exit)
}
