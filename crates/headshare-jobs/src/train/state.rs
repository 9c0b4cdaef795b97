//! The state of a run: where it is kept, and of which run it is.

use std::path::PathBuf;

use headshare_convert::convert::Fitted;
use headshare_convert::plan::Plan;
use headshare_format::alias::format_digest;
use headshare_train::checkpoint::Position;
use headshare_train::{Checkpoints, Packed, Settings};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::TrainModel;
use crate::convert::Change;
use crate::{Error, Ui};

/// Where the state of a run is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The file.
    #[serde(with = "crate::path")]
    pub file: PathBuf,
    /// Steps after which it is written again.
    pub every: u64,
    /// Goes on from what is there.
    pub resume: bool,
    /// Goes on with other steps, rates, clipping, options of the optimiser and evaluations
    /// than those before.
    #[serde(default)]
    pub changes: bool,
}

/// What decides a run beside its settings and windows.
#[derive(Clone, Copy)]
pub(super) struct Run<'a> {
    /// Digest of the model.
    pub model: &'a str,
    /// Digest of the model that it learns from, where that is another.
    pub teacher: Option<&'a str>,
    /// The plan, and the data that it begins with, once they are known: the data follow from
    /// more than a repair's text, also from memory and threads.
    pub begins: Option<(&'a Plan, &'a Fitted)>,
}

impl TrainModel {
    /// Whether there is a state to go on from. One of another run is found here, before units
    /// are measured and layers repaired for minutes.
    pub(super) fn check_state(
        &self,
        run: &Run<'_>,
        settings: &Settings,
        data: &Packed,
        ui: &dyn Ui,
    ) -> Result<bool, Error> {
        let Some(checkpoint) = self.checkpoint.as_ref().filter(|c| c.resume) else {
            return Ok(false);
        };
        let file = &checkpoint.file;
        // A run can be broken off before its first state.
        if let Ok(false) = file.try_exists() {
            let file = file.display();
            ui.remark(&format!("note: there is no {file} yet: training begins"));
            return Ok(false);
        }
        let of = self.checkpoints(run)?;
        let run = Position::begin(settings, data, of.as_ref());
        Position::read(file)?.check(file, &run, checkpoint.changes)?;
        Ok(true)
    }

    /// Where the state of this run is kept, and what it is a state of.
    pub(super) fn checkpoints(&self, run: &Run<'_>) -> Result<Option<Checkpoints>, Error> {
        let Some(checkpoint) = &self.checkpoint else {
            return Ok(None);
        };
        let mut arguments = json!({
            "method": self.method,
            "device": self.device,
            "window": self.text.window,
            "held_out": self.held_out,
            "teacher": run.teacher,
            "choice": choice(&self.change),
        });
        if let Some((plan, start)) = run.begins {
            let plan = blake3::hash(plan.to_json().as_bytes());
            arguments["plan"] = format_digest(&plan).into();
            arguments["start"] = digest(start).into();
        }
        Ok(Some(Checkpoints {
            path: checkpoint.file.clone(),
            every: checkpoint.every,
            model: run.model.to_owned(),
            arguments,
        }))
    }
}

/// How units are chosen, as far as it is said: not where measurements come from.
fn choice(change: &Change) -> Value {
    match change {
        Change::Match { ratio, function } => json!([ratio, function]),
        Change::Measure { ratio, units, .. } => json!([ratio, units]),
        _ => Value::Null,
    }
}

/// The digest of data that a model begins with.
fn digest(start: &Fitted) -> String {
    let mut hasher = blake3::Hasher::new();
    for (name, bytes) in &start.tensors {
        for part in [name.as_bytes(), bytes] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
    }
    format_digest(&hasher.finalize())
}
