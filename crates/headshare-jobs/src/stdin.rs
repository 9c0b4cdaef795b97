//! Standard input among texts and tasks that are read several times, or by other processes: it can
//! be read once.

use std::path::{Path, PathBuf};

use headshare_convert::input::text::{Contents, is_stdio};
use headshare_files::ScratchFile;

use crate::Error;

/// A copy of what standard input gave, where the job asks for it.
#[derive(Debug)]
pub(crate) struct Stdin(Option<(ScratchFile, PathBuf)>);

impl Stdin {
    /// Reads standard input if it is among `inputs`.
    pub fn of<'a>(inputs: impl IntoIterator<Item = &'a Path>) -> Result<Self, Error> {
        let Some(path) = inputs.into_iter().find(|path| is_stdio(path)) else {
            return Ok(Self(None));
        };
        let bytes = Contents::open(path)?;
        let copy = ScratchFile::create(bytes.len() as u64)?;
        copy.write_at(0, &bytes)?;
        let path = copy.path_for_children();
        Ok(Self(Some((copy, path))))
    }

    /// Where `path` can be opened, by processes of this one, too.
    pub fn path<'a>(&'a self, path: &'a Path) -> &'a Path {
        match &self.0 {
            Some((_, copy)) if is_stdio(path) => copy,
            _ => path,
        }
    }
}
