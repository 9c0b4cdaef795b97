//! What a GGUF file holds, and what it shares.

use std::path::PathBuf;

use headshare_convert::input::ModelFile;
use headshare_eval::inspect::{Inspection, inspect, second_reader};
use serde::{Deserialize, Serialize};

use crate::{Error, Ui};

/// Says what a GGUF file holds, and what it shares.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inspect {
    /// The file, plain or converted.
    #[serde(with = "crate::path")]
    pub file: PathBuf,
}

impl Inspect {
    /// Does it.
    ///
    /// # Errors
    /// When the file is no valid GGUF.
    pub fn run(&self, ui: &dyn Ui) -> Result<Inspection, Error> {
        let file = ModelFile::open(&self.file)?;
        let inspection = inspect(&file)?;
        if let Some(difference) = second_reader::difference(&file.gguf) {
            ui.warning(&format!(
                "{}: two readers disagree on its header ({difference}); please report this file",
                self.file.display()
            ));
        }
        Ok(inspection)
    }
}
