//! How a repair came about, for the file and for people.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A repaired model: what differs from the source.
#[derive(Debug, Clone)]
pub struct Repaired {
    /// New data of whole tensors, by index in the source.
    pub tensors: BTreeMap<usize, Vec<u8>>,
    /// What was done, for the file and for people.
    pub record: Record,
}

/// How a repair came about.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Digest of the text.
    pub text: String,
    /// Windows it was cut into.
    pub windows: u32,
    /// Tokens of each.
    pub window: u32,
    /// Windows, of these, that ridges were chosen on.
    pub held_out: u32,
    /// Tokens that the last layer was fitted on: as many as there was memory
    /// for.
    pub outputs: usize,
    /// Threads that it ran on: sums depend on them.
    pub threads: usize,
    /// What the units were chosen by; absent where nothing was measured for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub choice: Option<SurveyRecord>,
    /// The refitted matrices, in the order in which they were refitted.
    pub tensors: Vec<TensorRecord>,
}

/// How one matrix was refitted; errors are relative to the target's size.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TensorRecord {
    /// Its name.
    pub name: String,
    /// The ridge that was chosen; absent where the weights stayed as they were.
    pub lambda: Option<f64>,
    /// The error with the original weights.
    pub before: f64,
    /// The error with the refitted weights as they are stored.
    pub after: f64,
}

/// What a choice was made by, for the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SurveyRecord {
    /// Digest of the survey, as `--save-stats` writes it.
    pub digest: String,
    /// The program that measured.
    pub tool: String,
    /// Windows of the text, before some were picked.
    pub windows: u32,
}
