//! The figures of each step, as JSON lines: written as they come, and gone on with where
//! a run goes on. What a picture needs of them is kept at hand.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use headshare_eval::analyze::curves::Step;
use headshare_files::AtomicFile;
use headshare_train::Progress;
use serde_json::json;

use crate::{Advice, Error};

/// The figures that are known, and a file of them, if one is wanted.
pub(super) struct Log {
    file: Option<(PathBuf, File)>,
    steps: Vec<Step>,
}

/// Where a run is when its figures begin.
#[derive(Clone, Copy)]
pub(super) enum At {
    /// After this step: what was said up to there stays.
    Step(u64),
    /// It was to go on, but there is no state. Then figures are of a run that was broken off
    /// before it had taken more than these steps; 0 for any number.
    BeforeState(u64),
}

impl Log {
    /// Finds early that [`open`](Self::open) would refuse the file at `path`.
    pub fn check(path: Option<&Path>, at: At, replace: bool) -> Result<(), Error> {
        path.map_or(Ok(()), |path| said(path, at, replace).map(drop))
    }

    /// The file at `path` of a run that is `at` a step. A file of anything else is left alone,
    /// unless it may be replaced.
    pub fn open(path: Option<&Path>, at: At, replace: bool) -> Result<Self, Error> {
        let Some(path) = path else {
            return Ok(Self {
                file: None,
                steps: Vec::new(),
            });
        };
        let said = said(path, at, replace)?;
        let is_before = |line: &&str| match at {
            At::Step(step) => Step::read(line).is_some_and(|of| of.step <= step),
            // The run begins anew, with its evaluation before the first step.
            At::BeforeState(_) => false,
        };
        let kept: String = (said.lines().filter(is_before))
            .flat_map(|line| [line, "\n"])
            .collect();
        AtomicFile::write(path, kept.as_bytes(), true, &[])?;
        let file = OpenOptions::new().append(true).open(path);
        Ok(Self {
            file: Some((path.to_owned(), file.map_err(|e| cannot(path, e))?)),
            steps: kept.lines().filter_map(Step::read).collect(),
        })
    }

    /// The steps whose figures are known: of this run, and what the file has of one
    /// before it.
    pub fn into_steps(self) -> Vec<Step> {
        self.steps
    }

    /// Adds what was evaluated before the first step.
    pub fn begin(&mut self, evaluation: f64) -> Result<(), Error> {
        self.steps.push(Step::start(evaluation));
        self.write(json!({"step": 0, "evaluation": evaluation}).to_string())
    }

    /// Adds a step.
    pub fn add(&mut self, progress: &Progress) -> Result<(), Error> {
        let line = serde_json::to_string(progress).map_err(Error::failed)?;
        self.steps.push(Step {
            step: progress.step,
            loss: Some(progress.loss),
            evaluation: progress.evaluation,
            distance: progress.distance,
            language: progress.language,
            hidden: progress.hidden,
        });
        self.write(line)
    }

    /// Nothing more is written where that has failed once: what follows would stand on half a
    /// line.
    fn write(&mut self, line: String) -> Result<(), Error> {
        let Some((path, file)) = &mut self.file else {
            return Ok(());
        };
        let written = (file.write_all((line + "\n").as_bytes())).map_err(|e| cannot(path, e));
        if written.is_err() {
            self.file = None;
        }
        written
    }
}

/// The figures in the file at `path`, as far as a run that is `at` a step may go on with them.
fn said(path: &Path, at: At, replace: bool) -> Result<String, Error> {
    let said = match std::fs::read_to_string(path) {
        // One that is there may be replaced.
        _ if matches!(at, At::Step(0)) => String::new(),
        Ok(said) => said,
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        Err(error) => {
            let what = format!("cannot read the figures in {}", path.display());
            return Err(Error::failed(error).about(what));
        }
    };
    if replace {
        return Ok(said);
    }
    let refused = |what: String| {
        let error = Error::bad_input(what).about(path.display());
        Err(error.advise(Advice::Overwrite))
    };
    // What a run was writing when it was broken off is no whole line.
    let other = said
        .split_inclusive('\n')
        .position(|line| line.ends_with('\n') && Step::read(line).is_none());
    if let Some(line) = other {
        return refused(format!("line {} has no figures of a step", line + 1));
    }
    let last = said
        .lines()
        .rev()
        .find_map(Step::read)
        .map(|step| step.step);
    match (at, last) {
        (At::BeforeState(every @ 1..), Some(last)) if last > every => refused(format!(
            "has {last} steps, and there is no state of their run to go on from"
        )),
        _ => Ok(said),
    }
}

fn cannot(path: &Path, error: std::io::Error) -> Error {
    Error::failed(error).about(format!("cannot write the figures to {}", path.display()))
}
