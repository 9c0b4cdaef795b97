//! Having a worker do a job.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{self, Read as _, Write as _};
use std::process::{ExitStatus, Stdio};

use anyhow::Context as _;
use headshare_runtime::threads;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::said::Said;
use crate::json::from_json;
use crate::{Error, Ui};

/// A job that a worker can be told to do.
pub(crate) trait Work: Serialize {
    /// What came of it.
    type Outcome: DeserializeOwned;

    /// Its name among all jobs.
    const NAME: &'static str;

    /// Whether its outcome is one of the machine, too.
    const IS_OF_MACHINE: bool = false;

    /// The arguments of the program that do it by hand.
    fn command_line(&self) -> Vec<OsString>;

    /// What it is about, in a word or two.
    fn what(&self) -> String {
        let words = self.command_line();
        let words = words.iter().map(|word| word.to_string_lossy());
        let words = words.take_while(|word| !word.starts_with('-'));
        format!("`{}`", words.take(2).collect::<Vec<_>>().join(" "))
    }
}

/// A job as [`Job`](crate::Job) is written.
#[derive(Debug, Serialize)]
pub(crate) struct Named<'a, J> {
    job: &'static str,
    #[serde(flatten)]
    what: &'a J,
}

impl<'a, J: Work> From<&'a J> for Named<'a, J> {
    fn from(what: &'a J) -> Self {
        Self { job: J::NAME, what }
    }
}

/// Has a worker do `job`. What it writes to stderr goes to this process's, or,
/// once it has ended, those lines of it that are not among `known`, which grows.
pub(crate) fn ask<J: Work>(
    job: &J,
    known: Option<&mut BTreeSet<String>>,
    ui: &dyn Ui,
) -> Result<J::Outcome, Error> {
    let line = serde_json::to_string(&Named::from(job)).map_err(Error::failed)?;
    let (said, status) = run(line, known, ui).map_err(Error::failed)?;
    match from_json(&said) {
        Ok(Said::Done(outcome)) => Ok(outcome),
        Ok(Said::Failed(failed)) => Err(failed.into()),
        Err(_) if said.is_empty() || !status.success() => Err(ended_early(&job.what(), status)),
        Err(error) => {
            let what = job.what();
            Err(Error::failed(error).about(format!("the worker on {what} said {said:?}")))
        }
    }
}

/// What a worker that is told `line` says, and how it ends.
fn run(
    mut line: String,
    mut known: Option<&mut BTreeSet<String>>,
    ui: &dyn Ui,
) -> anyhow::Result<(String, ExitStatus)> {
    let mut command = ui.worker().context("cannot find this program")?;
    let errors = match known {
        None => Stdio::inherit(),
        Some(_) => Stdio::piped(),
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
        line.push('\n');
        // One that is gone already says why on its stdout, or by its status.
        let _ = stdin.write_all(line.as_bytes());
    }
    let errors = child.stderr.take().map(|mut stderr| {
        threads::spawn(move || {
            let mut text = Vec::new();
            let _ = stderr.read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        })
    });
    let errors = errors.transpose()?;
    let mut said = String::new();
    let read = match &mut child.stdout {
        Some(stdout) => stdout.read_to_string(&mut said),
        None => Ok(0),
    };
    let status = child.wait().context("cannot wait for a worker")?;
    drop(alive);
    if let Some(thread) = errors {
        let text = thread.join().unwrap_or_default();
        for line in text.lines() {
            if known.as_mut().is_none_or(|k| k.insert(line.to_owned())) {
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
        false => Error::failed(anyhow::Error::msg(message)),
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
    use crate::{Bench, Change, Convert, Job, LoadMode, Measure, Resolve, SpeedTest};

    /// What a worker makes of the line that it is told.
    fn told<J: Work>(job: &J) -> Job {
        let line = serde_json::to_string(&Named::from(job)).unwrap();
        from_json(&line).unwrap()
    }

    #[test]
    fn a_worker_is_told_the_job() {
        let test = SpeedTest {
            n_prompt: 1,
            n_gen: 2,
            n_batch: 3,
            n_ubatch: 4,
        };
        let measure = Measure {
            file: "m.gguf".into(),
            load_mode: LoadMode::Resolve(Resolve::Map),
            threads: None,
            test,
        };
        assert_eq!(told(&measure), Job::Measure(measure));
        let bench = Bench {
            stock: Some("s.gguf".into()),
            files: vec!["m.gguf".into()],
            test,
            threads: vec![Some(1), None],
            busy: 0,
            repetitions: 5,
            resolve: vec![Resolve::Auto],
        };
        assert_eq!(told(&bench), Job::Bench(bench));
        let convert = Convert {
            fit: None,
            source: "s.gguf".into(),
            output: Some("o.gguf".into()),
            change: Change::Match {
                ratio: 0.1 + 0.2,
                function: Default::default(),
            },
            keep_duplicates: true,
            repair: None,
            quantize: None,
            page_size: 4096,
            dry_run: false,
            force: true,
        };
        assert_eq!(told(&convert), Job::Convert(convert));
    }
}
