//! Files that jobs of a report are about, and what such a job calls them.

use std::path::{Path, PathBuf};

use headshare_convert::input::{InputError, text};
use headshare_eval::report::File;
use headshare_format::alias::format_digest;
use headshare_stitch::MappedFile;

use crate::Error;

/// What a job calls a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    /// Where a worker finds it.
    Place,
    /// As the user called it, for a command line.
    Name,
    /// What it holds, for a key.
    Digest,
}

/// A file that is read.
#[derive(Debug, Clone)]
pub(super) struct Input {
    place: PathBuf,
    name: PathBuf,
    pub file: File,
}

impl Input {
    /// The file that the user calls `name` and that is at `place`.
    pub fn read(name: &Path, place: &Path) -> Result<Self, Error> {
        let file = MappedFile::open(place).map_err(InputError::from)?;
        Ok(Self {
            place: place.to_owned(),
            name: name.to_owned(),
            file: File {
                path: text::name(name),
                bytes: file.len() as u64,
                digest: format_digest(&blake3::hash(&file)),
            },
        })
    }

    /// A file of which that is known, at `place`.
    pub fn known(place: &Path, bytes: u64, digest: String) -> Self {
        Self {
            place: place.to_owned(),
            name: place.to_owned(),
            file: File {
                path: place.display().to_string(),
                bytes,
                digest,
            },
        }
    }

    /// What a job calls it.
    pub fn called(&self, by: By) -> PathBuf {
        match by {
            By::Place => self.place.clone(),
            By::Name => self.name.clone(),
            By::Digest => PathBuf::from(&self.file.digest),
        }
    }
}
