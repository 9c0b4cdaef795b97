//! Systems on which files cannot be loaded in place.

use std::convert::Infallible;
use std::ops::Range;

use super::{Shared, Sharing, Source, StitchError};
use crate::model::{Model, ModelError, ModelParams, Progress};

/// Would tell llama.cpp where weights go.
///
/// # Safety
/// Nothing is done.
pub(crate) unsafe fn register_devices() {}

/// What would be behind a model's weights.
pub(crate) struct Backing {
    never: Infallible,
}

impl Backing {
    pub(crate) fn shared(&self) -> &Shared {
        match self.never {}
    }

    pub(crate) fn ranges(&self) -> Vec<Range<u64>> {
        match self.never {}
    }
}

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
}
