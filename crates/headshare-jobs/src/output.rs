//! Small files that jobs write beside their outcome: whole or not at all, or to
//! standard output.

use std::io::{self, Write as _};
use std::path::Path;

use headshare_convert::input::text::is_stdio;
use headshare_files::{AtomicFile, FileId};
use serde::Serialize;

use crate::expand::cannot_write;
use crate::{Error, Ui};

/// A file to be written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Written<'a> {
    pub path: &'a Path,
    /// Replaces one that is there.
    pub force: bool,
    /// Files that must not be overwritten.
    pub inputs: &'a [FileId],
}

impl Written<'_> {
    /// Fails early on what would make [`write`](Self::write) fail.
    pub fn check(&self) -> Result<(), Error> {
        if !is_stdio(self.path) {
            AtomicFile::check(self.path, self.force, self.inputs)?;
        }
        Ok(())
    }

    /// Writes it. A reader of standard output that is gone had enough.
    pub fn write(&self, bytes: &[u8], ui: &dyn Ui) -> Result<(), Error> {
        if is_stdio(self.path) {
            let mut stdout = ui.stdout().map_err(cannot_write)?;
            return match stdout.write_all(bytes) {
                Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
                result => result.map_err(cannot_write),
            };
        }
        Ok(AtomicFile::write(
            self.path,
            bytes,
            self.force,
            self.inputs,
        )?)
    }
}

/// Whether both paths lead to one place, as far as their words say.
pub(crate) fn is_same_path(a: &Path, b: &Path) -> bool {
    let absolute = |path: &Path| std::path::absolute(path).ok();
    absolute(a) == absolute(b)
}

/// `value` as JSON for people, with a line end.
pub(crate) fn json_lines<T: Serialize>(value: &T) -> Result<Vec<u8>, Error> {
    let mut text = serde_json::to_string_pretty(value).map_err(Error::failed)?;
    text.push('\n');
    Ok(text.into_bytes())
}
