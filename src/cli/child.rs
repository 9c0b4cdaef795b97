//! Processes of this program that work for another one of it: how they end with
//! it, and how a mistake that one of them finds is told.

use std::io;
use std::process::ExitStatus;
use std::sync::OnceLock;

use headshare_jobs::Error;

use super::Exit;
use super::failure::{self, Failure};

/// A mistake that a child found, with its hint and exit status.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(super) struct ChildError {
    pub(super) message: String,
    pub(super) hint: Option<String>,
    pub(super) exit: Exit,
}

static TELL: OnceLock<fn(&Failure) -> io::Result<()>> = OnceLock::new();

/// Makes this process one that works for another: it ends when the other does,
/// and what goes wrong is told by `tell`.
pub(super) fn work_for_parent(tell: fn(&Failure) -> io::Result<()>) {
    let _ = TELL.set(tell);
    end_with_parent();
}

/// Tells the parent what went wrong; false when there is none that listens.
pub(super) fn tell(failure: &Failure) -> bool {
    TELL.get().is_some_and(|tell| tell(failure).is_ok())
}

/// How a child is told of that ended without a word while it worked on `what`.
pub(super) fn ended_early(what: &str, status: ExitStatus) -> anyhow::Error {
    let message = format!("the process that ran {what} ended early: {status}");
    if crashed(status) {
        return Error::bad_input(message).into();
    }
    anyhow::anyhow!(message)
}

/// Whether it was what the process did that ended it.
#[cfg(unix)]
fn crashed(status: ExitStatus) -> bool {
    use std::os::unix::process::ExitStatusExt;

    use rustix::process::Signal;

    const CRASHES: [Signal; 5] = [
        Signal::ABORT,
        Signal::BUS,
        Signal::FPE,
        Signal::ILL,
        Signal::SEGV,
    ];
    let signal = status.signal();
    CRASHES.iter().any(|crash| signal == Some(crash.as_raw()))
}

#[cfg(not(unix))]
fn crashed(_: ExitStatus) -> bool {
    false
}

/// Ends this process when its stdin closes, to which the parent holds the other
/// end and writes nothing: so it ends however the parent does.
fn end_with_parent() {
    let watch = headshare_runtime::threads::spawn(|| {
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        headshare_runtime::end_process(Exit::Failed as i32);
    });
    if let Err(error) = watch {
        tell(&failure::describe(&error.into()));
        headshare_runtime::end_process(Exit::Failed as i32);
    }
}
