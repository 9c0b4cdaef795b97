//! The state of a run: where it is kept, and of which run it is.

use std::path::PathBuf;

use headshare_convert::convert::Fitted;
use headshare_convert::plan::Plan;
use headshare_format::alias::format_digest;
use headshare_train::checkpoint::Position;
use headshare_train::{Checkpoints, Packed, Settings};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

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
pub(super) struct Run<'a> {
    /// Where its state is kept.
    pub checkpoint: Option<&'a Checkpoint>,
    /// Digest of the model.
    pub model: &'a str,
    /// What is known from the beginning, as fields of an object.
    pub arguments: Value,
}

impl Run<'_> {
    /// The step after which there is a state to go on from, if there is. One of another run is
    /// found here, before units are measured and layers repaired for minutes.
    pub fn check_state(
        &self,
        settings: &Settings,
        data: &Packed,
        ui: &dyn Ui,
    ) -> Result<Option<u64>, Error> {
        let Some(checkpoint) = self.checkpoint.filter(|c| c.resume) else {
            return Ok(None);
        };
        let file = &checkpoint.file;
        // A run can be broken off before its first state.
        if let Ok(false) = file.try_exists() {
            let file = file.display();
            ui.remark(&format!("note: there is no {file} yet: training begins"));
            return Ok(None);
        }
        let of = self.checkpoints(None);
        let run = Position::begin(settings, data, of.as_ref());
        let position = Position::read(file)?;
        position.check(file, &run, checkpoint.changes)?;
        Ok(Some(position.step))
    }

    /// Where the state is kept, and what it is a state of. What the run begins with, a plan and
    /// data, is part of that once it is known: data follow from more than a repair's text, also
    /// from memory and threads.
    pub fn checkpoints(&self, begins: Option<(&Plan, &Fitted)>) -> Option<Checkpoints> {
        let checkpoint = self.checkpoint?;
        let mut arguments = self.arguments.clone();
        if let Some((plan, start)) = begins {
            let plan = blake3::hash(plan.to_json().as_bytes());
            arguments["plan"] = format_digest(&plan).into();
            arguments["start"] = digest(start).into();
        }
        Some(Checkpoints {
            path: checkpoint.file.clone(),
            every: checkpoint.every,
            model: self.model.to_owned(),
            arguments,
        })
    }
}

/// How units are chosen, as far as it is said: not where measurements come from.
pub(super) fn choice(change: &Change) -> Value {
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
