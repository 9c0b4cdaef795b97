//! Trains a model whose heads share weights, or shall share them.

mod curves;
mod device;
mod encode;
mod importance;
mod learn;
mod log;
mod run;
mod state;
mod steps;
mod text;

use std::path::PathBuf;

use headshare_convert::model::Part;
use headshare_convert::quantize::types::Wanted;
use headshare_train::{Progress, Settings};
use serde::{Deserialize, Serialize};

use crate::convert::{Calibration, Change, Converted};
pub use device::TrainOn;
pub(crate) use importance::ranking;
pub use state::Checkpoint;
pub use steps::TrainingSpeed;

/// Trains a model and writes it, with its heads shared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainModel {
    /// The model, a plain GGUF file.
    #[serde(with = "crate::path")]
    pub source: PathBuf,
    /// The file to write.
    #[serde(with = "crate::path")]
    pub output: PathBuf,
    /// When heads share.
    pub method: Method,
    /// Which heads do, and what else changes.
    pub change: Change,
    /// Refits the layers after what has changed before training begins, on a text.
    pub repair: Option<Calibration>,
    /// The text to train on, UTF-8. The weights are fitted to it when they get their types
    /// again.
    pub text: Calibration,
    /// The part of the text, its end, that is held out.
    pub held_out: f64,
    /// How it is trained.
    pub settings: Settings,
    /// What it is trained on.
    #[serde(default)]
    pub device: TrainOn,
    /// The model that distillation learns from, a plain GGUF file of the same
    /// vocabulary; by default the source.
    #[serde(with = "crate::path::option")]
    pub teacher: Option<PathBuf>,
    /// The types that tensors get; by default those that they had.
    pub quantize: Option<Wanted>,
    /// Steps; by default half a pass over the text, as in the paper.
    pub steps: Option<u64>,
    /// A file for the state, to go on from.
    pub checkpoint: Option<Checkpoint>,
    /// A file for the figures of each step, as JSON lines.
    #[serde(with = "crate::path::option")]
    pub log: Option<PathBuf>,
    /// A file for a picture of the losses over the steps, `.svg` or `.png`.
    #[serde(with = "crate::path::option")]
    pub curves: Option<PathBuf>,
    /// Replaces outputs that are there.
    pub force: bool,
}

/// When heads share in training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// From the beginning: what is shared is one parameter.
    Tied,
    /// Afterwards: pairs of heads are pulled together while the model is trained (the
    /// paper's PostShare).
    Postshare,
}

/// What training has made.
#[derive(Debug, Clone, Serialize)]
pub struct TrainedModel {
    /// The file, and what it saves.
    #[serde(flatten)]
    pub converted: Converted,
    /// Windows of the text that were trained on, and that were held out.
    pub windows: [usize; 2],
    /// Tokens of each.
    pub window: usize,
    /// Steps that were taken.
    pub steps: u64,
    /// The loss on what was held out before the first step, in nats a token.
    pub start: Option<f64>,
    /// The step with the lowest such loss, whose weights were taken, and that loss: step 0
    /// where training made nothing better; absent where nothing was held out, and where pairs
    /// stay apart: the last weights are taken then.
    pub best: Option<(u64, f64)>,
    /// The figures of the first step, of this run where it went on from another.
    pub first: Option<Progress>,
    /// The last step's.
    pub last: Option<Progress>,
    /// How fast the steps of this run were.
    pub speed: Option<TrainingSpeed>,
    /// Of each pair of heads that was pulled together, the distance before and after.
    pub distances: Vec<PairDistance>,
}

/// How far apart a pair of heads was, and is: the sum over what is shared of the Frobenius
/// norm of the difference.
#[derive(Debug, Clone, Serialize)]
pub struct PairDistance {
    /// The unit that uses the other's weights.
    pub alias: String,
    /// The unit whose weights are used.
    pub donor: String,
    /// What is shared.
    pub parts: Vec<Part>,
    /// Before training.
    pub before: f64,
    /// After it.
    pub after: f64,
}
