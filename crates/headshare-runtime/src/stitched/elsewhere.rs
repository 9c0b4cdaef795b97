//! Systems on which files cannot be loaded in place.

use std::path::Path;

use headshare_format::Gguf;

use super::source::{Sharing, Source};
use super::virtual_file::VirtualFile;
use crate::backing::StitchError;
use crate::model::{Model, ModelError, ModelParams, Progress};

impl Model {
    /// Would load `source` with its shared blocks in memory once.
    ///
    /// # Errors
    /// [`StitchError::Unsupported`], always.
    pub fn load_stitched(
        _source: &Source<'_>,
        _sharing: Sharing,
        _drop_consumed: bool,
        _params: &ModelParams,
        _progress: Option<Progress<'_>>,
    ) -> Result<Self, ModelError> {
        Err(StitchError::Unsupported.into())
    }

    /// Would read a file that need not exist.
    ///
    /// # Errors
    /// [`StitchError::Unsupported`], always.
    pub fn load_virtual(
        _file: &dyn VirtualFile,
        _gguf: &Gguf,
        _name: &Path,
        _params: &ModelParams,
    ) -> Result<Self, ModelError> {
        Err(StitchError::Unsupported.into())
    }
}
