//! A converted file against its digests and its source.

use std::path::PathBuf;

use headshare_convert::convert::{self, Verification};
use headshare_convert::input::ModelFile;
use serde::{Deserialize, Serialize};

use crate::{Error, Ui};

/// Checks a converted file against its digests and its source. Checks that do not
/// hold are in the outcome, not an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verify {
    /// A file that was converted.
    #[serde(with = "crate::path")]
    pub file: PathBuf,
    /// The file it was made from: every row is compared with it.
    #[serde(with = "crate::path::option")]
    pub source: Option<PathBuf>,
}

impl Verify {
    /// Does it.
    ///
    /// # Errors
    /// When a file cannot be read, or its plan does not fit.
    pub fn run(&self, _: &dyn Ui) -> Result<Verification, Error> {
        let (file, table) = ModelFile::open_converted(&self.file)?;
        let source = self.source.as_deref().map(ModelFile::open_plain);
        Ok(convert::verify(
            &file,
            &table,
            source.transpose()?.as_ref(),
        )?)
    }
}
