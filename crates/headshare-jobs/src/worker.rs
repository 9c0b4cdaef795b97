//! A job done by a process of its own, so that no measure disturbs another: a
//! [`Job`] as a line of JSON on stdin, its outcome or why there is none on stdout.
//!
//! Nothing more is written to a worker's stdin, but its other end stays open as long
//! as someone waits: when it closes, the worker ends, too, so that none outlives the
//! process that started it.

use std::collections::BTreeSet;
use std::io::{self, BufRead as _, Read, Write};
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Advice, Error, Kind};
use crate::{Job, Ui};

/// What a worker says at its end.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Said<T> {
    Done(T),
    Failed(Failed),
}

/// An [`Error`] on its way.
#[derive(Debug, Serialize, Deserialize)]
struct Failed {
    kind: Kind,
    advice: Option<Advice>,
    message: String,
}

impl From<&Error> for Failed {
    fn from(error: &Error) -> Self {
        Self {
            kind: error.kind,
            advice: error.advice.clone(),
            message: error.to_string(),
        }
    }
}

impl From<Failed> for Error {
    fn from(failed: Failed) -> Self {
        Self {
            kind: failed.kind,
            advice: failed.advice,
            source: anyhow::Error::msg(failed.message),
        }
    }
}

static IS_WORKER: AtomicBool = AtomicBool::new(false);

/// The worker itself: does the job that stdin holds and says on stdout what came of
/// it. `end` ends the process at once.
///
/// # Errors
/// When there is no job, or nobody to tell.
pub fn serve(ui: &dyn Ui, end: fn() -> !) -> Result<(), Error> {
    IS_WORKER.store(true, Ordering::Relaxed);
    let mut line = String::new();
    let read = io::stdin().lock().read_line(&mut line);
    read.context("cannot read the job").map_err(Error::failed)?;
    let watch = std::thread::Builder::new().spawn(move || {
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        end()
    });
    let done = match (watch, serde_json::from_str::<Job>(&line)) {
        (Err(error), _) => Err(Error::failed(error).about("cannot start a thread")),
        (_, Err(error)) => Err(Error::failed(error).about("this is no job")),
        (Ok(_), Ok(job)) => job.run(ui),
    };
    match done {
        Ok(outcome) => say(&Said::Done(outcome)).map_err(Error::failed),
        Err(error) => match tell(&error) {
            true => Ok(()),
            false => Err(error),
        },
    }
}

/// Tells who waits for this process why its job came to nothing; false where this
/// process is no worker, or nobody listens.
pub fn tell(error: &Error) -> bool {
    let said: Said<()> = Said::Failed(error.into());
    IS_WORKER.load(Ordering::Relaxed) && say(&said).is_ok()
}

fn say<T: Serialize>(said: &Said<T>) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    serde_json::to_writer(&mut stdout, said)?;
    stdout.write_all(b"\n")?;
    stdout.flush()
}

/// What becomes of a worker's stderr.
pub(crate) enum Stderr<'a> {
    /// It is this process's.
    Shown,
    /// Lines that are not known yet are shown when it has ended, and then known.
    New(&'a mut BTreeSet<String>),
}

/// Has a worker do `job`, of which `what` says in a word or two what it is about.
pub(crate) fn run<T: DeserializeOwned>(
    job: &Job,
    what: &str,
    stderr: Stderr<'_>,
    ui: &dyn Ui,
) -> Result<T, Error> {
    let (said, status) = ask(job, stderr, ui).map_err(Error::failed)?;
    match serde_json::from_str(&said) {
        Ok(Said::Done(outcome)) => Ok(outcome),
        Ok(Said::Failed(failed)) => Err(failed.into()),
        Err(_) if said.is_empty() || !status.success() => Err(ended_early(what, status)),
        Err(error) => {
            Err(Error::failed(error).about(format!("the worker on {what} said {said:?}")))
        }
    }
}

/// What a worker says, and how it ended.
fn ask(job: &Job, stderr: Stderr<'_>, ui: &dyn Ui) -> anyhow::Result<(String, ExitStatus)> {
    let mut command = ui.worker().context("cannot find this program")?;
    let errors = match stderr {
        Stderr::Shown => Stdio::inherit(),
        Stderr::New(_) => Stdio::piped(),
    };
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(errors)
        .spawn()
        .context("cannot start a worker")?;
    // Kept: `wait` would close it, and the worker end before its time.
    let mut alive = child.stdin.take();
    if let Some(stdin) = &mut alive {
        let mut line = serde_json::to_string(job)?;
        line.push('\n');
        // One that is gone already says why on its stdout, or by its status.
        let _ = stdin.write_all(line.as_bytes());
    }
    let errors = child.stderr.take().map(|mut stderr| {
        std::thread::Builder::new().spawn(move || {
            let mut text = Vec::new();
            let _ = stderr.read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        })
    });
    let mut said = String::new();
    let read = match &mut child.stdout {
        Some(stdout) => stdout.read_to_string(&mut said),
        None => Ok(0),
    };
    let status = child.wait().context("cannot wait for a worker")?;
    drop(alive);
    if let Some(thread) = errors {
        let thread = thread.context("cannot start a thread")?;
        let text = thread.join().unwrap_or_default();
        if let Stderr::New(known) = stderr {
            for line in text.lines().filter(|line| known.insert((*line).to_owned())) {
                let _ = writeln!(io::stderr(), "{line}");
            }
        }
    }
    read.context("cannot read from a worker")?;
    Ok((said, status))
}

/// A worker that ended without a word while it worked on `what`.
fn ended_early(what: &str, status: ExitStatus) -> Error {
    let message = format!("the process that ran {what} ended early: {status}");
    match crashed(status) {
        true => Error::bad_input(message),
        false => Error::new(Kind::Failed, anyhow::Error::msg(message)),
    }
}

/// Whether it was what the process did that ended it.
#[cfg(unix)]
fn crashed(status: ExitStatus) -> bool {
    use std::os::unix::process::ExitStatusExt as _;

    // SIGILL, SIGABRT, SIGBUS, SIGFPE, SIGSEGV: their numbers differ between
    // systems only for SIGBUS.
    let bus = if cfg!(target_os = "linux") { 7 } else { 10 };
    status
        .signal()
        .is_some_and(|signal| [4, 6, bus, 8, 11].contains(&signal))
}

#[cfg(not(unix))]
fn crashed(_: ExitStatus) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_arrives_as_it_was() {
        let error = Error::bad_input("no").advise(Advice::SmallerWindow(Some(8)));
        let json = serde_json::to_string(&Said::<()>::Failed((&error).into())).unwrap();
        let Said::Failed(failed) = serde_json::from_str::<Said<()>>(&json).unwrap() else {
            panic!("{json}")
        };
        let again = Error::from(failed);
        assert_eq!(again.kind, error.kind);
        assert_eq!(again.advice, error.advice);
        assert_eq!(again.to_string(), error.to_string());
    }
}
