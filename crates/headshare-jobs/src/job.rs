//! All kinds of jobs, and what comes of them.

use headshare_convert::convert::Report;
use headshare_eval::inspect::Inspection;
use serde::{Deserialize, Serialize};

use crate::{Convert, Converted, Error, Expand, Expanded, Inspect, MakePlan, Planned, Ui, Verify};

/// A job of any kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "job", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Job {
    /// Chooses which heads would share.
    Plan(MakePlan),
    /// Writes a smaller file.
    Convert(Convert),
    /// Writes the plain GGUF that a converted file stands for.
    Expand(Expand),
    /// Checks a converted file.
    Verify(Verify),
    /// Says what a GGUF file holds.
    Inspect(Inspect),
}

/// What came of a job; as JSON it is what the program prints for `--json`.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
#[non_exhaustive]
pub enum Outcome {
    /// Of [`Job::Plan`].
    Plan(Box<Planned>),
    /// Of [`Job::Convert`].
    Convert(Box<Converted>),
    /// Of [`Job::Expand`].
    Expand(Expanded),
    /// Of [`Job::Verify`].
    Verify(Report),
    /// Of [`Job::Inspect`].
    Inspect(Box<Inspection>),
}

impl Job {
    /// Does it; `ui` is told how far it is.
    ///
    /// # Errors
    /// [`Error`]; no output was written then.
    pub fn run(&self, ui: &dyn Ui) -> Result<Outcome, Error> {
        Ok(match self {
            Self::Plan(job) => Outcome::Plan(Box::new(job.run(ui)?)),
            Self::Convert(job) => Outcome::Convert(Box::new(job.run(ui)?)),
            Self::Expand(job) => Outcome::Expand(job.run(ui)?),
            Self::Verify(job) => Outcome::Verify(job.run(ui)?),
            Self::Inspect(job) => Outcome::Inspect(Box::new(job.run(ui)?)),
        })
    }
}
