//! The state of a training run as a safetensors file: what is trained, the optimiser's
//! moments, the best numbers so far, and where the run is.
//!
//! Tensors are `values.NAME`, `first.NAME`, `second.NAME` (AdamW's moments) and, once
//! there was an evaluation, `best.NAME`. The metadata has one key, `headshare-train`,
//! with [`Position`] as JSON: with one key its bytes have one order.
//!
//! The file appears whole or not at all: written aside, synced, renamed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use headshare_files::AtomicFile;
use headshare_stitch::MappedFile;
use safetensors::tensor::Metadata;
use safetensors::{Dtype, SafeTensorError, SafeTensors};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::TrainError;
use crate::pack::Packed;
use crate::settings::Settings;

/// The version that is written.
pub const VERSION: u32 = 5;

/// The key of the metadata.
const KEY: &str = "headshare-train";

/// Bytes written at a time.
const CHUNK: usize = 1 << 20;

/// Where a run's state is written, and how often.
#[derive(Debug, Clone)]
pub struct Checkpoints {
    /// The file.
    pub path: PathBuf,
    /// After every so many steps; 0 for never, and after the last in any case.
    pub every: u64,
    /// Digest of the model, as plans state it.
    pub model: String,
    /// Whatever else decides the run besides the settings and the windows, as fields of an
    /// object: the other model, the plan.
    pub arguments: Value,
}

/// Settings of the beginning of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Earlier {
    /// The last step that was taken with them.
    pub until: u64,
    /// The [`Settings`].
    pub settings: Value,
}

/// Settings that a run can go on with others of, where that is asked for: how steps are
/// taken, not what they make smaller.
const CHANGEABLE: [&str; 4] = ["adam", "clip", "evaluate_every", "schedule"];

/// Where a run is, and which run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// [`VERSION`].
    pub version: u32,
    /// Digest of the model that the run began with.
    pub model: String,
    /// The [`Settings`].
    pub settings: Value,
    /// Digest of the windows.
    pub text: String,
    /// Whatever else decides the run, by name: the plan, the other model.
    pub arguments: Value,
    /// Settings that were changed on the way.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier: Vec<Earlier>,
    /// Steps done.
    pub step: u64,
    /// Windows taken: with the seed it tells which come next.
    pub windows: u64,
    /// The held-out loss before the first step.
    pub start: Option<f64>,
    /// The best evaluation: the step after which it was, and its loss.
    pub best: Option<(u64, f64)>,
}

impl Position {
    /// Where a run with these settings and windows begins; `of` says of which model, and what
    /// else decides it.
    pub fn begin(settings: &Settings, data: &Packed, of: Option<&Checkpoints>) -> Self {
        Self {
            version: VERSION,
            model: of.map_or(String::new(), |of| of.model.clone()),
            settings: serde_json::to_value(settings).unwrap_or_default(),
            text: data.digest(),
            arguments: of.map_or(Value::Null, |of| of.arguments.clone()),
            earlier: Vec::new(),
            step: 0,
            windows: 0,
            start: None,
            best: None,
        }
    }

    /// Reads it from the checkpoint at `path`, without the numbers.
    ///
    /// # Errors
    /// As [`Checkpoint::read`].
    pub fn read(path: &Path) -> Result<Self, TrainError> {
        let file = MappedFile::open(path)?;
        let (_, metadata) = SafeTensors::read_metadata(&file).map_err(|e| damaged(path, &e))?;
        Self::stated(path, &metadata)
    }

    fn stated(path: &Path, metadata: &Metadata) -> Result<Self, TrainError> {
        let error = |field: &str, problem: String| wrong(path, field, problem);
        let stated = metadata.metadata().as_ref().and_then(|map| map.get(KEY));
        let stated = stated
            .ok_or_else(|| error(KEY, "is missing: not a checkpoint of training".to_owned()))?;
        let version = serde_json::from_str::<Value>(stated)
            .ok()
            .and_then(|value| value.get("version")?.as_u64());
        if version != Some(VERSION.into()) {
            let found = version.map_or("missing".to_owned(), |version| version.to_string());
            let problem = format!("is {found}, where {VERSION} is known");
            return Err(error("version", problem));
        }
        serde_json::from_str(stated).map_err(|e| error(KEY, e.to_string()))
    }

    /// Refuses the state at `path`, which this is the position of, for another `run`. Of its
    /// arguments, those that `run` has are compared. Where `changes` are allowed, steps may be
    /// taken in another way.
    ///
    /// # Errors
    /// Names the first field that differs.
    pub fn check(&self, path: &Path, run: &Self, changes: bool) -> Result<(), TrainError> {
        if self.model != run.model {
            let problem = format!("of another model: {}, not {}", self.model, run.model);
            return Err(wrong(path, "model", problem));
        }
        let mut expected = run.settings.clone();
        for key in CHANGEABLE.into_iter().filter(|_| changes) {
            expected[key].clone_from(&self.settings[key]);
        }
        let arguments = other("arguments", &self.arguments, &run.arguments);
        let settings = || other("settings", &self.settings, &expected);
        if let Some((field, found, expected)) = arguments.or_else(settings) {
            return Err(TrainError::OtherRun {
                path: path.to_owned(),
                field,
                found,
                expected,
            });
        }
        if self.text != run.text {
            let problem = format!("of another text: {}, not {}", self.text, run.text);
            return Err(wrong(path, "text", problem));
        }
        let steps = run.settings["schedule"]["steps"].as_u64();
        if let Some(steps) = steps.filter(|&steps| steps < self.step) {
            let problem = format!("is {}, and the run is to end after {steps}", self.step);
            return Err(wrong(path, "step", problem));
        }
        Ok(())
    }
}

/// The first value of `run` that is another in `own`: where it is, and both.
fn other(place: &str, own: &Value, run: &Value) -> Option<(String, String, String)> {
    if let (Value::Object(own), Value::Object(run)) = (own, run) {
        let own = |key: &str| own.get(key).unwrap_or(&Value::Null);
        let mut fields = run.iter();
        return fields.find_map(|(key, run)| other(&format!("{place}.{key}"), own(key), run));
    }
    (own != run).then(|| (place.to_owned(), own.to_string(), run.to_string()))
}

fn wrong(path: &Path, field: &str, problem: String) -> TrainError {
    TrainError::Checkpoint {
        path: path.to_owned(),
        field: field.to_owned(),
        problem,
    }
}

fn damaged(path: &Path, error: &SafeTensorError) -> TrainError {
    let problem = format!("{error}: the file is damaged or no safetensors file");
    wrong(path, "header", problem)
}

/// Numbers by the name of their tensor.
pub type Named<'a> = Vec<(String, &'a [f32])>;

/// Writes a checkpoint to `path`, in the place of one that may be there.
///
/// # Errors
/// When the file cannot be written; the one that was there is left as it was.
pub fn write(path: &Path, position: &Position, tensors: &Named<'_>) -> Result<(), TrainError> {
    let mut header = serde_json::Map::new();
    let place = |problem: serde_json::Error| wrong(path, KEY, problem.to_string());
    let position = serde_json::to_string(position).map_err(place)?;
    header.insert("__metadata__".into(), serde_json::json!({ KEY: position }));
    let mut end = 0u64;
    for (name, values) in tensors {
        let start = end;
        end += 4 * values.len() as u64;
        header.insert(
            name.clone(),
            serde_json::json!({"dtype": "F32", "shape": [values.len()], "data_offsets": [start, end]}),
        );
    }
    let mut header = serde_json::to_vec(&header).map_err(place)?;
    // Tensors begin at a multiple of 8, as the format asks for.
    header.resize(header.len().next_multiple_of(8), b' ');
    let data = 8 + header.len() as u64;
    let file = AtomicFile::create(path, data + end, true, &[])?;
    file.write_at(0, &(header.len() as u64).to_le_bytes())?;
    file.write_at(8, &header)?;
    let mut at = data;
    let mut bytes = Vec::with_capacity(CHUNK);
    for (_, values) in tensors {
        for part in values.chunks(CHUNK / 4) {
            bytes.clear();
            bytes.extend(part.iter().flat_map(|v| v.to_le_bytes()));
            file.write_at(at, &bytes)?;
            at += bytes.len() as u64;
        }
    }
    file.commit()?;
    Ok(())
}

/// What a checkpoint holds.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    /// Where the run is.
    pub position: Position,
    tensors: BTreeMap<String, Vec<f32>>,
}

impl Checkpoint {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// When there is no such file, or it is damaged or no checkpoint; names the field.
    pub fn read(path: &Path) -> Result<Self, TrainError> {
        let file = MappedFile::open(path)?;
        let (_, metadata) = SafeTensors::read_metadata(&file).map_err(|e| damaged(path, &e))?;
        let tensors = SafeTensors::deserialize(&file).map_err(|e| damaged(path, &e))?;
        let position = Position::stated(path, &metadata)?;
        let mut found = BTreeMap::new();
        for (name, view) in tensors.tensors() {
            if view.dtype() != Dtype::F32 {
                let problem = format!("is {:?}, not F32", view.dtype());
                return Err(wrong(path, &name, problem));
            }
            let numbers = view.data().as_chunks::<4>().0.iter();
            found.insert(name, numbers.map(|raw| f32::from_le_bytes(*raw)).collect());
        }
        Ok(Self {
            position,
            tensors: found,
        })
    }

    /// Takes the numbers of `KIND.NAME`, as many as `len`.
    ///
    /// # Errors
    /// When they are missing, not as many, or not finite.
    pub fn take(
        &mut self,
        path: &Path,
        kind: &str,
        name: &str,
        len: usize,
    ) -> Result<Vec<f32>, TrainError> {
        let field = format!("{kind}.{name}");
        let found = self.tensors.remove(&field);
        let problem = match found {
            Some(values) if values.len() == len => {
                match values.iter().position(|value| !value.is_finite()) {
                    None => return Ok(values),
                    Some(at) => format!("number {at} is {}: the file is damaged", values[at]),
                }
            }
            Some(values) => format!("has {} numbers, not {len}", values.len()),
            None => "is missing".to_owned(),
        };
        Err(wrong(path, &field, problem))
    }
}
