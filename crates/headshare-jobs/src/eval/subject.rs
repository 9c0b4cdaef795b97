//! The model that is measured.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use headshare_files::ScratchFile;
use headshare_runtime::Model;
use serde::{Deserialize, Serialize};

use crate::load::{Resolve, Resolved, load_fast, load_generative};
use crate::{Error, Ui};

/// Which model was measured; in the figures of every measure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeasuredFile {
    /// Its path.
    pub file: String,
    /// The file's size.
    pub bytes: u64,
    /// How shared blocks were brought into memory.
    pub resolve: Resolved,
    /// How many tensors were computed with as F16, where that was allowed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub as_f16: Option<usize>,
}

/// A loaded model that predicts text.
pub(super) struct Subject {
    pub path: PathBuf,
    pub model: Arc<Model>,
    resolved: Resolved,
    as_f16: Option<usize>,
    /// Keeps the expanded copy alive.
    _scratch: Option<ScratchFile>,
}

impl Subject {
    /// Loads `path`; where `fast`, with weights as F16 that ggml multiplies slowly.
    pub fn load(path: &Path, resolve: Resolve, fast: bool, ui: &dyn Ui) -> Result<Self, Error> {
        let (loaded, as_f16) = match fast {
            true => load_fast(path).map(|(loaded, tensors)| (loaded, Some(tensors)))?,
            false => {
                let never = AtomicBool::new(false);
                (load_generative(path, resolve, true, &never, ui)?, None)
            }
        };
        Ok(Self {
            path: path.to_owned(),
            model: Arc::new(loaded.model),
            resolved: loaded.resolved,
            as_f16,
            _scratch: loaded.scratch,
        })
    }

    pub fn measured(&self) -> MeasuredFile {
        MeasuredFile {
            file: self.path.to_string_lossy().into_owned(),
            bytes: std::fs::metadata(&self.path).map_or(0, |m| m.len()),
            resolve: self.resolved,
            as_f16: self.as_f16,
        }
    }
}
