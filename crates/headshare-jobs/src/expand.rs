//! The plain GGUF that a converted file stands for.

use std::io;
use std::path::PathBuf;

use headshare_convert::convert::{self, StreamError};
use headshare_convert::input::ModelFile;
use headshare_convert::input::text::is_stdio;
use serde::{Deserialize, Serialize};

use crate::error::Kind;
use crate::{Error, Ui, Unit};

/// Writes the plain GGUF that a converted file stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expand {
    /// A file that was converted.
    #[serde(with = "crate::path")]
    pub file: PathBuf,
    /// The plain GGUF.
    #[serde(with = "crate::path")]
    pub output: PathBuf,
    /// Replaces an output that is there.
    pub force: bool,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expanded {
    /// The plain file.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// Whether it is the source byte for byte, by its digest.
    pub lossless: bool,
}

impl Expand {
    /// Does it. A reader of standard output that is gone had enough: that is no
    /// error.
    ///
    /// # Errors
    /// When the file is damaged, or the output cannot be written.
    pub fn run(&self, ui: &dyn Ui) -> Result<Expanded, Error> {
        let (file, table) = ModelFile::open_converted(&self.file)?;
        let bar = ui.bar("writing", table.source.size, Unit::Bytes);
        let progress = |done| bar.set(done);
        let bytes = if is_stdio(&self.output) {
            let mut stdout = ui.stdout().map_err(cannot_write)?;
            match convert::expand_to_stream(&file, &table, &mut stdout, &progress) {
                Err(StreamError::Write(e)) if e.kind() == io::ErrorKind::BrokenPipe => {
                    table.source.size
                }
                Err(StreamError::Write(error)) => return Err(cannot_write(error)),
                Err(StreamError::Convert(error)) => return Err(error.into()),
                Ok(bytes) => bytes,
            }
        } else {
            convert::expand(&file, &table, &self.output, self.force, &progress)?
        };
        Ok(Expanded {
            path: self.output.display().to_string(),
            bytes,
            lossless: table.provenance.lossless,
        })
    }
}

pub(crate) fn cannot_write(error: io::Error) -> Error {
    Error::new(Kind::Failed, error).about("standard output: cannot write")
}
