//! What was measured of a model, as a file that `--save-stats` writes: enough to choose
//! for any size.

use std::path::Path;
use std::time::{Duration, Instant};

use headshare_files::{AtomicFile, FileError, FileId};
use headshare_format::GgmlType;
use serde::{Deserialize, Serialize};

use super::cuts::{Cut, Part, all_that_can_go};
use super::error::FitError;
use super::moves::Movable;
use super::probe::NOISE;
use super::{probe, sharing, trial};
use crate::engine::{Options, Windows};
use crate::input::ModelFile;
use crate::model::AttentionMap;
use crate::repair::choose::Unit;

/// The version of [`Statistics`] files.
const VERSION: u32 = 2;

/// What was measured of a model: enough to choose for any size.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Statistics {
    /// Of this form.
    pub version: u32,
    /// Digest of the model file.
    pub source: String,
    /// Digest of the text.
    pub text: String,
    /// Windows of it, before some were picked.
    pub windows: u32,
    /// Tokens of each.
    pub window: u32,
    /// The tensors that could have other types, or lose columns.
    pub tensors: Vec<OfTensor>,
    /// What layers lose when units or channels go.
    pub cuts: Vec<Cut>,
    /// What units cost that use another unit's weights, where no unit can go.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub units: Vec<Unit>,
    /// That was not measured, for want of time.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lacks_units: bool,
}

/// What was measured of a tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OfTensor {
    /// Its name.
    pub name: String,
    /// The type that it was rounded to alone; its own where no type changes anything.
    pub probed: String,
    /// The mean divergence of the predictions from the original's that this made, in nats.
    pub divergence: f64,
    /// The part of it that rows made which are looked up, where the tensor is an output head
    /// and a table at once.
    pub of_table: Option<f64>,
    /// The part of it that the output head made, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of_head: Option<f64>,
    /// Nothing was measured, for want of time: it is what others like it say.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub estimated: bool,
    /// What each type changes.
    pub types: Vec<OfType>,
}

/// What a type changes of a tensor's outputs, relative to them: [`trial::Loss`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OfType {
    /// Its name.
    pub name: String,
    /// Rounded as ggml does without importances.
    pub rounded: f64,
    /// Encoded with feedback.
    pub encoded: f64,
    /// The same of rows that are looked up, rounded and encoded, of such a tensor.
    pub of_table: Option<[f64; 2]>,
    /// The same of such rows, encoded as a table alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alone: Option<f64>,
}

impl Statistics {
    /// Measures what the moves of `movable` do to `source`, whose file has this `digest`, in
    /// about so much `time`; `progress` is told from 0 to 1.
    ///
    /// # Errors
    /// When the model cannot be run or encoded.
    pub fn measure(
        (source, digest): (&ModelFile, &str),
        movable: &[Movable],
        with: (&Windows, &Options),
        time: Option<Duration>,
        progress: &dyn Fn(f64),
    ) -> Result<Self, FitError> {
        // A time without end is none.
        let deadline = time.and_then(|time| Instant::now().checked_add(time));
        let of_trial = |done| progress(TRIAL * done);
        let (losses, cuts) = trial::losses(source, movable, with, &of_trial)?;
        let of_probes = |done| progress(TRIAL + (1.0 - TRIAL - SHARING) * done);
        let probes = probe::measure(source, (movable, &losses), with, deadline, &of_probes)?;
        let has_time = deadline.is_none_or(|deadline| Instant::now() < deadline);
        let can_share = !drops_units(&cuts) && AttentionMap::of(&source.gguf).is_ok();
        let units = match has_time && can_share {
            true => sharing::measure(source, digest, with, &|done| {
                progress(1.0 - SHARING * (1.0 - done));
            })?,
            false => Vec::new(),
        };
        let tensors = movable.iter().zip(losses).zip(probes);
        let tensors = tensors.map(|((tensor, losses), probe)| OfTensor {
            name: tensor.name.clone(),
            probed: probe.to.name().to_owned(),
            divergence: probe.divergence,
            of_table: probe.apart.map(|[of, _]| of),
            of_head: probe.apart.map(|[_, of]| of),
            estimated: probe.is_estimated,
            types: (tensor.tried().zip(&losses.outputs).enumerate())
                .map(|(i, (to, loss))| OfType {
                    name: to.name().to_owned(),
                    rounded: loss.rounded,
                    encoded: loss.encoded,
                    of_table: losses.rows.get(i).map(|rows| [rows.rounded, rows.encoded]),
                    alone: losses.alone.get(i).map(|rows| rows.encoded),
                })
                .collect(),
        });
        let windows = with.0;
        Ok(Self {
            version: VERSION,
            source: digest.to_owned(),
            text: windows.digest.clone(),
            windows: windows.count,
            window: windows.window,
            tensors: tensors.collect(),
            cuts,
            units,
            lacks_units: can_share && !has_time,
        })
    }

    /// Those of moves that cost nothing: how small `source` can become.
    pub fn of_nothing(source: &ModelFile, movable: &[Movable]) -> Self {
        let tensors = movable.iter().map(|tensor| {
            let types = tensor.tried().map(|to| OfType {
                name: to.name().to_owned(),
                rounded: 1.0,
                encoded: 0.0,
                of_table: None,
                alone: None,
            });
            let types: Vec<OfType> = types.collect();
            OfTensor {
                name: tensor.name.clone(),
                probed: types
                    .first()
                    .map_or_else(|| tensor.has.name().to_owned(), |of| of.name.clone()),
                divergence: 0.0,
                of_table: None,
                of_head: None,
                estimated: false,
                types,
            }
        });
        let cuts = all_that_can_go(source);
        let map = AttentionMap::of(&source.gguf).ok();
        let map = map.filter(|_| !drops_units(&cuts));
        Self {
            version: VERSION,
            source: String::new(),
            text: String::new(),
            windows: 0,
            window: 0,
            tensors: tensors.collect(),
            cuts,
            units: map.as_ref().map(sharing::at_no_cost).unwrap_or_default(),
            lacks_units: false,
        }
    }

    /// Reads what was written, and checks that it is about the model with this `digest`,
    /// this text and length of windows (their number may be another).
    ///
    /// # Errors
    /// [`StatisticsError`].
    pub fn from_json(
        json: &[u8],
        digest: &str,
        windows: &Windows,
    ) -> Result<Self, StatisticsError> {
        let this: Self = serde_json::from_slice(json)?;
        let same = |field, what: &str, measured: &dyn ToString, asked: &dyn ToString| {
            let (measured, asked) = (measured.to_string(), asked.to_string());
            match measured == asked {
                true => Ok(()),
                false => Err(StatisticsError::Field {
                    field,
                    problem: format!("{what} {measured}, not {asked}"),
                }),
            }
        };
        same("version", "this is", &this.version, &VERSION)?;
        same("source", "measured on", &this.source, &digest)?;
        same("text", "measured with", &this.text, &windows.digest)?;
        same("window", "tokens are", &this.window, &windows.window)?;
        for tensor in &this.tensors {
            let mut numbers = vec![tensor.divergence];
            numbers.extend(tensor.of_table.iter().chain(&tensor.of_head));
            numbers.extend(tensor.types.iter().flat_map(|t| [t.rounded, t.encoded]));
            numbers.extend(tensor.types.iter().filter_map(|t| t.of_table).flatten());
            numbers.extend(tensor.types.iter().filter_map(|t| t.alone));
            if !numbers.iter().all(|v| v.is_finite() && *v >= 0.0) {
                return Err(StatisticsError::Field {
                    field: "tensors",
                    problem: format!("{}: numbers that cannot be", tensor.name),
                });
            }
        }
        if let Some(cut) = this.cuts.iter().find(|cut| !cut.is_sound()) {
            return Err(StatisticsError::Field {
                field: "cuts",
                problem: format!("layer {}: what cannot go", cut.layer),
            });
        }
        let is_known = |id| this.units.iter().any(|unit| unit.id() == id);
        if let Some(unit) = this.units.iter().find(|unit| !unit.is_sound(is_known)) {
            return Err(StatisticsError::Field {
                field: "units",
                problem: format!("{}: donors or numbers that cannot be", unit.id()),
            });
        }
        Ok(this)
    }

    /// How many tensors were not measured themselves.
    pub fn estimated(&self) -> usize {
        self.tensors.iter().filter(|of| of.estimated).count()
    }

    /// Writes it to `path`, which must be none of `inputs`.
    ///
    /// # Errors
    /// When the file cannot be written; nothing is left behind then.
    pub fn write(&self, path: &Path, force: bool, inputs: &[FileId]) -> Result<(), FileError> {
        let mut json = serde_json::to_vec(self).expect("statistics are plain data");
        json.push(b'\n');
        AtomicFile::write(path, &json, force, inputs)
    }

    /// The predicted divergence of `tensor` at type `to`.
    ///
    /// # Errors
    /// When that was not measured.
    pub(super) fn cost(&self, tensor: &Movable, to: GgmlType) -> Result<f64, FitError> {
        let found = self.of(&tensor.name).and_then(|of| of.cost(to.name()));
        found.ok_or_else(|| FitError::NotMeasured {
            tensor: tensor.name.clone(),
            ggml_type: to.name().to_owned(),
        })
    }

    /// The predicted divergences that the type `to` makes of `tensor` as the table alone and as
    /// the output head alone, where these can be apart.
    pub(super) fn apart(&self, tensor: &Movable, to: GgmlType) -> Option<[f64; 2]> {
        self.of(&tensor.name)?.apart(to.name())
    }

    /// The predicted divergence for each unit of what is lost of the outputs of the tensor
    /// called `name`, where a type of it was probed.
    pub(super) fn sensitivity(&self, name: &str) -> Option<f64> {
        let of = self.of(name)?;
        let probed = of.types.iter().find(|t| t.name == of.probed)?;
        (probed.rounded > 0.0).then(|| of.divergence / probed.rounded)
    }

    fn of(&self, name: &str) -> Option<&OfTensor> {
        self.tensors.iter().find(|of| of.name == name)
    }
}

/// The part of a measurement that encoding samples takes.
const TRIAL: f64 = 0.15;
/// The part that sharing takes.
const SHARING: f64 = 0.25;

/// Whether units go with some of these. At equal bytes, a unit that goes costs less than one
/// that shares (docs/RESULTS.md): sharing is for models where none can.
fn drops_units(cuts: &[Cut]) -> bool {
    cuts.iter().any(|cut| cut.part == Part::Attention)
}

impl OfTensor {
    /// The predicted divergence at the type called `name`; the divergence grows with the
    /// square of the error.
    fn cost(&self, name: &str) -> Option<f64> {
        let of = |name: &str| self.types.iter().find(|of| of.name == name);
        let (to, probed) = (of(name)?, of(&self.probed));
        let Some(probed) = probed else {
            return Some(0.0);
        };
        let of_outputs = |divergence: f64| part(divergence.max(NOISE), probed.rounded, to.encoded);
        let looked_up = to.of_table.zip(probed.of_table);
        let Some(([_, encoded], [rounded, _])) = looked_up else {
            return Some(of_outputs(self.divergence));
        };
        let of_rows = |divergence: f64| part(divergence.max(NOISE), rounded, encoded);
        Some(match self.of_table.zip(self.of_head) {
            Some((table, head)) => of_rows(table) + of_outputs(head),
            // Without the parts of both: it lies between all of it by what the outputs lose,
            // and all of it by what the rows lose.
            None => (of_outputs(self.divergence) * of_rows(self.divergence)).sqrt(),
        })
    }

    /// The predicted divergences at the type called `name` of a table alone and of an output
    /// head alone, where these were probed.
    fn apart(&self, name: &str) -> Option<[f64; 2]> {
        let of = |name: &str| self.types.iter().find(|of| of.name == name);
        let (to, probed) = (of(name)?, of(&self.probed)?);
        let [rounded, _] = probed.of_table?;
        Some([
            part(self.of_table?.max(NOISE), rounded, to.alone?),
            part(self.of_head?.max(NOISE), probed.rounded, to.encoded),
        ])
    }
}

/// What an error of `encoded` makes, where one of `rounded` makes this `divergence`.
fn part(divergence: f64, rounded: f64, encoded: f64) -> f64 {
    match rounded > 0.0 {
        true => divergence / rounded * encoded,
        false => 0.0,
    }
}

/// Why a file of statistics cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StatisticsError {
    /// It is something else.
    #[error("not a file of what was measured for --fit: {0}")]
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
