//! A converted file against its digests and its source.

use std::path::PathBuf;

use headshare_convert::convert::variant::MADE_BY;
use headshare_convert::convert::{self, Verification};
use headshare_convert::input::ModelFile;
use serde::{Deserialize, Serialize};

use crate::{Error, Ui};

/// Checks a converted file against its digests and its source. Checks that do not
/// hold are in the outcome, not an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verify {
    /// A file that was converted, also a plain one of other shapes or types.
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
        let source = self.source.as_deref().map(ModelFile::open_plain);
        let source = source.transpose()?;
        let file = ModelFile::open(&self.file)?;
        if file.table.is_none() && file.gguf.kv(MADE_BY).is_some() {
            return Ok(convert::verify_variant(&file, source.as_ref())?);
        }
        let (file, table) = ModelFile::open_converted(&self.file)?;
        Ok(convert::verify(&file, &table, source.as_ref())?)
    }
}
