//! The figures of each step, as JSON lines: written as they come, and gone on with where
//! a run goes on.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use headshare_train::Progress;
use serde_json::Value;

use crate::Error;

/// A file of figures, if one is wanted.
pub(super) struct Log(Option<(PathBuf, File)>);

impl Log {
    /// The file at `path`; of a run that goes on after `step`, what was said up to there
    /// stays.
    pub fn open(path: Option<&Path>, step: u64) -> Result<Self, Error> {
        let Some(path) = path else {
            return Ok(Self(None));
        };
        let said = match step {
            0 => String::new(),
            _ => std::fs::read_to_string(path).unwrap_or_default(),
        };
        let is_before = |line: &&str| {
            let line = serde_json::from_str::<Value>(line);
            line.is_ok_and(|line| line["step"].as_u64().is_some_and(|at| at <= step))
        };
        let kept: String = (said.lines().filter(is_before))
            .flat_map(|line| [line, "\n"])
            .collect();
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).open(path);
        let mut this = Self(Some((path.to_owned(), file.map_err(|e| cannot(path, e))?)));
        this.put(&kept)?;
        Ok(this)
    }

    /// Adds a step.
    pub fn add(&mut self, progress: &Progress) -> Result<(), Error> {
        let line = serde_json::to_string(progress).map_err(Error::failed)?;
        self.put(&(line + "\n"))
    }

    fn put(&mut self, text: &str) -> Result<(), Error> {
        match &mut self.0 {
            Some((path, file)) => (file.write_all(text.as_bytes())).map_err(|e| cannot(path, e)),
            None => Ok(()),
        }
    }
}

fn cannot(path: &Path, error: std::io::Error) -> Error {
    Error::failed(error).about(format!("cannot write the figures to {}", path.display()))
}
