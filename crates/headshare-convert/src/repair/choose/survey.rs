//! What was measured of a model, as a file that `--save-stats` writes: enough
//! to choose for any ratio.

use std::path::Path;

use headshare_files::{AtomicFile, FileError, FileId};
use headshare_format::alias::format_digest;
use serde::{Deserialize, Serialize};

use crate::engine::Windows;
use crate::input::ModelFile;
use crate::model::{AttentionMap, UnitId};
use crate::repair::record::SurveyRecord;

/// The version of [`Survey`] files.
pub(super) const VERSION: u32 = 2;

/// What was measured of a model: enough to choose for any ratio.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Survey {
    /// Of this form.
    pub version: u32,
    /// The program that measured.
    pub tool: String,
    /// Digest of the model file.
    pub source: String,
    /// Digest of the text.
    pub text: String,
    /// Windows of it, before some were picked.
    pub windows: u32,
    /// Tokens of each.
    pub window: u32,
    /// Every unit, ascending.
    pub units: Vec<Unit>,
}

/// What was measured of one unit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unit {
    /// Its layer.
    pub layer: u32,
    /// Which of the layer.
    pub unit: u32,
    /// The units of earlier layers that could stand in for it, best first.
    pub donors: Vec<Donor>,
    /// What the best of them does to the logits; absent without donors.
    pub shared: Option<Effect>,
    /// What dropping it does; absent where that was not asked for.
    pub dropped: Option<Effect>,
}

/// A unit that could stand in.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Donor {
    /// Its layer.
    pub layer: u32,
    /// Which of the layer.
    pub unit: u32,
    /// The part of the residual stream that is lost, after a refit.
    pub loss: f64,
}

/// What a change of one unit does.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Effect {
    /// The part of the residual stream that is lost, after a refit.
    pub loss: f64,
    /// Mean KL divergence of the logits from the original's, in nats.
    pub divergence: f64,
    /// Whether that was measured; else it was estimated from the loss.
    pub measured: bool,
}

impl Unit {
    /// The unit's name.
    pub fn id(&self) -> UnitId {
        UnitId {
            layer: self.layer,
            unit: self.unit,
        }
    }

    /// The divergence, in nats, that using `donor` causes: it grows from what the best one
    /// causes as the loss does. `None` where no unit can stand in.
    pub fn cost(&self, donor: &Donor) -> Option<f64> {
        let best = self.shared?;
        let grown = match best.loss > 0.0 {
            true => donor.loss / best.loss,
            false => 1.0,
        };
        Some(best.divergence * grown)
    }

    /// Whether it can be about a model with these units.
    pub fn is_sound(&self, is_known: impl Fn(UnitId) -> bool) -> bool {
        let is_loss = |v: f64| v.is_finite() && v >= 0.0;
        let mut donors = self.donors.iter();
        let mut effects = [self.shared, self.dropped].into_iter().flatten();
        donors.all(|d| d.layer < self.layer && is_known(d.id()) && is_loss(d.loss))
            && effects.all(|e| is_loss(e.loss) && is_loss(e.divergence))
            && self.donors.is_empty() == self.shared.is_none()
    }
}

impl Donor {
    /// The donor's name.
    pub fn id(&self) -> UnitId {
        UnitId {
            layer: self.layer,
            unit: self.unit,
        }
    }
}

/// The model to choose in.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// Its file.
    pub source: &'a ModelFile,
    /// The file's digest.
    pub digest: &'a str,
    /// Where its heads are.
    pub map: &'a AttentionMap,
}

/// Why a survey file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SurveyError {
    /// It is no survey.
    #[error("not a file of what was measured for a choice: {0}")]
    Json(#[from] serde_json::Error),
    /// It is about something else.
    #[error("{field}: {problem}")]
    Field {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

impl Survey {
    /// Reads a survey and checks that it is about this model, text and length of
    /// windows (their number may be another), and about dropping units where
    /// `dropping` wants to know of that.
    ///
    /// # Errors
    /// [`SurveyError`].
    pub fn from_json(
        json: &[u8],
        subject: Subject<'_>,
        windows: &Windows,
        dropping: bool,
    ) -> Result<Self, SurveyError> {
        let Subject { digest, map, .. } = subject;
        let this: Self = serde_json::from_slice(json)?;
        let field = |field, problem: String| Err(SurveyError::Field { field, problem });
        if this.version != VERSION {
            let problem = format!(
                "{} is unknown; this program reads version {VERSION}",
                this.version
            );
            return field("version", problem);
        }
        if this.source != digest {
            let problem = format!("measured on {}, this model is {digest}", this.source);
            return field("source", problem);
        }
        if this.text != windows.digest {
            let problem = format!(
                "measured with {}, this text is {}",
                this.text, windows.digest
            );
            return field("text", problem);
        }
        if this.window != windows.window {
            let problem = format!(
                "measured with windows of {} tokens, asked for are {}",
                this.window, windows.window
            );
            return field("window", problem);
        }
        let ids: Vec<UnitId> = this.units.iter().map(Unit::id).collect();
        if ids != map.units() {
            return field("units", "these are not the model's".into());
        }
        if dropping && this.units.iter().all(|unit| unit.dropped.is_none()) {
            let problem = "what dropping units costs was not measured; measure again, \
                           with --units drop or auto";
            return field("units", problem.into());
        }
        let known = |id: UnitId| ids.binary_search(&id).is_ok();
        for unit in &this.units {
            if !unit.is_sound(known) {
                let problem = format!("{}: donors or numbers that cannot be", unit.id());
                return field("units", problem);
            }
        }
        Ok(this)
    }

    /// The file's bytes.
    fn to_json(&self) -> Vec<u8> {
        let mut json = serde_json::to_vec(self).expect("a survey is plain data");
        json.push(b'\n');
        json
    }

    /// What a repaired file says of the survey.
    pub fn record(&self) -> SurveyRecord {
        SurveyRecord {
            digest: format_digest(&blake3::hash(&self.to_json())),
            tool: self.tool.clone(),
            windows: self.windows,
        }
    }

    /// Writes the survey to `path`, which must be none of `inputs`.
    ///
    /// # Errors
    /// When the file cannot be written; nothing is left behind then.
    pub fn write(&self, path: &Path, force: bool, inputs: &[FileId]) -> Result<(), FileError> {
        AtomicFile::write(path, &self.to_json(), force, inputs)
    }
}
