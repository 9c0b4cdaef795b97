//! What the heads of a model look like: how alike their weights are, whether
//! heads with like weights attend alike, and which of them share.
//!
//! Each analysis is a result struct that serialises to JSON and draws itself
//! as a [`picture::Scene`]. Results are the same for the same input: no
//! timestamps, no dependence on the number of threads.

pub mod attention;
pub mod curves;
pub mod frontier;
mod matrix;
pub mod npy;
pub mod picture;
pub mod predictions;
pub mod ratios;
pub mod weights;

pub use headshare_convert::stats::{Correlation, Histogram, Summary};
pub use matrix::SymmetricMatrix;

use std::path::PathBuf;

use headshare_files::{FileId, ScratchFile};
use headshare_runtime::{ContextError, ModelError, VocabError};

use headshare_convert::convert::{self, ConvertError};
use headshare_convert::input::{InputError, ModelFile};
use headshare_convert::matching::MatchError;
use headshare_convert::model::UnitId;
use headshare_convert::model::{AttentionMap, HeadsError};

/// Why an analysis failed.
#[derive(Debug, thiserror::Error)]
pub enum AnalyzeError {
    /// The model file is bad.
    #[error(transparent)]
    Input(#[from] InputError),
    /// A converted file cannot be expanded, or the model has no heads of the
    /// kind that can be compared.
    #[error(transparent)]
    Convert(#[from] ConvertError),
    /// The weights cannot be compared.
    #[error("{path}: {error}", path = .path.display())]
    Match {
        /// The model.
        path: PathBuf,
        /// Why not.
        error: MatchError,
    },
    /// llama.cpp does not load the model.
    #[error("{path}: llama.cpp cannot load it: {problem}", path = .path.display())]
    Load {
        /// The model.
        path: PathBuf,
        /// Why not.
        problem: String,
    },
    /// There is too little memory for the model.
    #[error("{path}: no memory to load it: {problem}", path = .path.display())]
    NoMemory {
        /// The model.
        path: PathBuf,
        /// What there was no memory for.
        problem: String,
    },
    /// The model does not generate text, so that it cannot be run on any.
    #[error("{path}: {problem}", path = .path.display())]
    NotGenerative {
        /// The model.
        path: PathBuf,
        /// What it is instead.
        problem: String,
    },
    /// The text cannot be turned into tokens.
    #[error("the text: {0}")]
    Text(#[from] VocabError),
    /// The text is shorter than one window.
    #[error(
        "{path}: the text is too short: {tokens} tokens, where one window takes {ctx}",
        path = .path.display()
    )]
    TextTooShort {
        /// The text.
        path: PathBuf,
        /// What it makes in tokens.
        tokens: usize,
        /// What a window takes.
        ctx: u32,
    },
    /// The model knows no text as long as a window.
    #[error(
        "{path}: windows of {ctx} tokens, and it was trained with {trained} tokens of context",
        path = .path.display()
    )]
    CtxTooLarge {
        /// The model.
        path: PathBuf,
        /// What a window takes.
        ctx: u32,
        /// What the model was trained with.
        trained: u32,
    },
    /// llama.cpp computes no attention map that could be looked at.
    #[error("{path}: layer {layer}: {problem}", path = .path.display())]
    NoMap {
        /// The model.
        path: PathBuf,
        /// The layer.
        layer: u32,
        /// What is missing.
        problem: String,
    },
    /// llama.cpp failed.
    #[error(transparent)]
    Context(#[from] ContextError),
}

/// A model as the plain file that it is or stands for.
pub struct PlainModel {
    /// The plain file.
    pub file: ModelFile,
    /// Where its heads are.
    pub map: AttentionMap,
    /// The path it was asked for by.
    pub path: PathBuf,
    /// The file at that path.
    pub id: FileId,
    /// Keeps the expanded copy of a converted file.
    _scratch: Option<ScratchFile>,
}

impl PlainModel {
    /// Opens the model at `path`; a converted one through a temporary copy.
    ///
    /// # Errors
    /// When the file is bad, or its heads are not of the kind that can be
    /// compared.
    pub fn open(path: &std::path::Path) -> Result<Self, AnalyzeError> {
        let mut file = ModelFile::open_model(path)?;
        let id = file.file.id();
        let mut scratch = None;
        if let Some(table) = &file.table {
            let copy = convert::expand_to_scratch(&file, table)?;
            file = ModelFile::open_plain(copy.path()).map_err(|error| error.about(path))?;
            scratch = Some(copy);
        }
        let map = AttentionMap::of(&file.gguf).map_err(|error| ConvertError::Model {
            path: path.to_owned(),
            error,
        })?;
        if map.layers.is_empty() {
            let error = HeadsError::NotAModel("none of its layers has attention heads".into());
            let path = path.to_owned();
            return Err(ConvertError::Model { path, error }.into());
        }
        Ok(Self {
            file,
            map,
            path: path.to_owned(),
            id,
            _scratch: scratch,
        })
    }

    /// The file's name, for titles.
    pub fn name(&self) -> String {
        file_name(&self.path)
    }

    fn load_error(&self, error: ModelError) -> AnalyzeError {
        let path = self.path.clone();
        // It names the file by itself, by the path of the copy perhaps.
        let problem = match error {
            ModelError::NoMemory { reason, .. } => {
                return AnalyzeError::NoMemory {
                    path,
                    problem: reason,
                };
            }
            ModelError::Load { reason, .. } => reason,
            other => other.to_string(),
        };
        AnalyzeError::Load { path, problem }
    }

    fn match_error(&self) -> impl FnOnce(MatchError) -> AnalyzeError + use<> {
        let path = self.path.clone();
        move |error| AnalyzeError::Match { path, error }
    }
}

/// The last part of a path, cut in the middle when it is long, and without
/// control characters.
pub fn file_name(path: &std::path::Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    let name: Vec<char> = name
        .to_string_lossy()
        .chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect();
    const MOST: usize = 56;
    if name.len() <= MOST {
        return name.into_iter().collect();
    }
    let (start, end) = (&name[..MOST / 2], &name[name.len() - MOST / 2..]);
    format!(
        "{}\u{2026}{}",
        String::from_iter(start),
        String::from_iter(end)
    )
}

/// Where each layer begins among its units (or heads), for the ticks of a
/// matrix of them.
fn bands(layers: impl IntoIterator<Item = u32>) -> Vec<picture::Band> {
    let mut bands: Vec<picture::Band> = Vec::new();
    for (at, layer) in layers.into_iter().enumerate() {
        if bands.last().is_none_or(|band| band.layer != layer) {
            bands.push(picture::Band { layer, start: at });
        }
    }
    bands
}

/// Where a unit stands among `units`, which are ascending.
fn index_of(units: &[UnitId], unit: UnitId) -> usize {
    units.binary_search(&unit).expect("the unit is one of them")
}
