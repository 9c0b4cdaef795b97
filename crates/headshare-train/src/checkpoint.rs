//! The state of a training run as a safetensors file: what is trained, the optimiser's
//! moments, the best numbers so far, and where the run is.
//!
//! Tensors are `values.NAME`, `first.NAME`, `second.NAME` (AdamW's moments) and, once
//! there was an evaluation, `best.NAME`. The metadata has one key, `headshare-train`,
//! with [`Position`] as JSON: with one key its bytes have one order.
//!
//! The file appears whole or not at all: written aside, synced, renamed.

use std::collections::BTreeMap;
use std::path::Path;

use headshare_files::{AtomicFile, FileError};
use headshare_stitch::MappedFile;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::TrainError;

/// The version that is written.
pub const VERSION: u32 = 3;

/// The key of the metadata.
const KEY: &str = "headshare-train";

/// Bytes written at a time.
const CHUNK: usize = 1 << 20;

/// Where a run is, and which run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// [`VERSION`].
    pub version: u32,
    /// Digest of the model that the run began with.
    pub model: String,
    /// The [`Settings`](crate::Settings).
    pub settings: Value,
    /// Digest of the windows.
    pub text: String,
    /// Whatever else decides the run: the plan, the other model.
    pub arguments: String,
    /// Steps done.
    pub step: u64,
    /// Windows taken: with the seed it tells which come next.
    pub windows: u64,
    /// The held-out loss before the first step.
    pub start: Option<f64>,
    /// The best evaluation: the step after which it was, and its loss.
    pub best: Option<(u64, f64)>,
}

/// The first value of `own` that is another in `run`: where it is, and both.
fn other(place: &str, own: &Value, run: &Value) -> Option<(String, String, String)> {
    if let (Value::Object(own), Value::Object(run)) = (own, run)
        && own.keys().eq(run.keys())
    {
        let mut fields = own.iter().zip(run.values());
        return fields.find_map(|((key, own), run)| other(&format!("{place}.{key}"), own, run));
    }
    (own != run).then(|| (place.to_owned(), own.to_string(), run.to_string()))
}

/// Numbers by the name of their tensor.
pub type Named<'a> = Vec<(String, &'a [f32])>;

/// Writes a checkpoint to `path`, in the place of one that may be there.
///
/// # Errors
/// When the file cannot be written; the one that was there is left as it was.
pub fn write(path: &Path, position: &Position, tensors: &Named<'_>) -> Result<(), TrainError> {
    let mut header = serde_json::Map::new();
    let place = |problem: serde_json::Error| TrainError::Checkpoint {
        path: path.to_owned(),
        field: KEY.to_owned(),
        problem: problem.to_string(),
    };
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
        let error = |field: &str, problem: String| TrainError::Checkpoint {
            path: path.to_owned(),
            field: field.to_owned(),
            problem,
        };
        let file = MappedFile::open(path)?;
        let damaged = |e: safetensors::SafeTensorError| {
            error(
                "header",
                format!("{e}: the file is damaged or no safetensors file"),
            )
        };
        let (_, metadata) = SafeTensors::read_metadata(&file).map_err(damaged)?;
        let tensors = SafeTensors::deserialize(&file).map_err(damaged)?;
        let stated = metadata.metadata().as_ref().and_then(|map| map.get(KEY));
        let stated = stated
            .ok_or_else(|| error(KEY, "is missing: not a checkpoint of training".to_owned()))?;
        let version = serde_json::from_str::<Value>(stated)
            .ok()
            .and_then(|value| value.get("version")?.as_u64());
        if version != Some(VERSION.into()) {
            let problem = format!("is {version:?}, where {VERSION} is known");
            return Err(error("version", problem));
        }
        let position = serde_json::from_str(stated).map_err(|e| error(KEY, e.to_string()))?;
        let mut found = BTreeMap::new();
        for (name, view) in tensors.tensors() {
            if view.dtype() != Dtype::F32 {
                return Err(error(&name, format!("is {:?}, not F32", view.dtype())));
            }
            let numbers = view.data().as_chunks::<4>().0.iter();
            found.insert(name, numbers.map(|raw| f32::from_le_bytes(*raw)).collect());
        }
        Ok(Self {
            position,
            tensors: found,
        })
    }

    /// Refuses a checkpoint of another run, at `path`.
    ///
    /// # Errors
    /// Names the first field that differs.
    pub fn check(&self, path: &Path, run: &Position) -> Result<(), TrainError> {
        let own = &self.position;
        let wrong = |field: &str, problem: String| {
            Err(TrainError::Checkpoint {
                path: path.to_owned(),
                field: field.to_owned(),
                problem,
            })
        };
        let fields = [
            ("model", &own.model, &run.model, "of another model"),
            ("text", &own.text, &run.text, "of another text"),
        ];
        for (field, found, expected, what) in fields {
            if found != expected {
                return wrong(field, format!("{what}: {found}, not {expected}"));
            }
        }
        if let Some((field, found, expected)) = other("settings", &own.settings, &run.settings) {
            return wrong(&field, format!("is {found}, and {expected} in this run"));
        }
        if own.arguments != run.arguments {
            let what = "of a run that shares or repairs otherwise, or learns from another model";
            return wrong("arguments", what.to_owned());
        }
        Ok(())
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
        Err(TrainError::Checkpoint {
            path: path.to_owned(),
            field,
            problem,
        })
    }
}

/// Removes the checkpoint at `path`, which a finished run needs no more.
///
/// # Errors
/// The system's, but for a file that is not there.
pub fn remove(path: &Path) -> Result<(), TrainError> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(FileError::io(path, "remove")(e).into())
        }
        _ => Ok(()),
    }
}
