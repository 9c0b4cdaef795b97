//! Files that jobs of a report are about, and what such a job calls them.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

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
    /// Of what was read; none of what the report makes.
    stamp: Option<Stamp>,
}

/// The lengths of files, and when they were changed last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stamp(Vec<(u64, Option<SystemTime>)>);

impl Stamp {
    /// Of the file at `path`, or of all files in the folder there.
    pub fn of(path: &Path) -> Result<Self, Error> {
        let mut files = Vec::new();
        let added = add_files(path, &mut files);
        added.map_err(|error| Error::bad_input(error).about(path.display()))?;
        Ok(Self(files))
    }
}

fn add_files(path: &Path, files: &mut Vec<(u64, Option<SystemTime>)>) -> std::io::Result<()> {
    let metadata = path.metadata()?;
    if !metadata.is_dir() {
        files.push((metadata.len(), metadata.modified().ok()));
        return Ok(());
    }
    let entries = path.read_dir()?.map(|entry| Ok(entry?.path()));
    let mut entries = entries.collect::<std::io::Result<Vec<PathBuf>>>()?;
    entries.sort();
    entries.iter().try_for_each(|entry| add_files(entry, files))
}

impl Input {
    /// The file, or the folder of files, that the user calls `name` and that is at `place`.
    pub fn read(name: &Path, place: &Path) -> Result<Self, Error> {
        let stamp = Stamp::of(place)?;
        let mut hasher = blake3::Hasher::new();
        let bytes = match place.is_dir() {
            true => hash_folder(place, &mut hasher)?,
            false => hash_file(place, &mut hasher)?,
        };
        Ok(Self {
            place: place.to_owned(),
            name: name.to_owned(),
            file: File {
                path: text::name(name),
                bytes,
                digest: format_digest(&hasher.finalize()),
            },
            stamp: Some(stamp),
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
            stamp: None,
        }
    }

    /// The same, of which `stamp` was taken before it was read.
    pub fn with(self, stamp: Stamp) -> Self {
        Self {
            stamp: Some(stamp),
            ..self
        }
    }

    /// Finds out whether it is still what was read: what is measured of another file is not to
    /// be kept as this one's.
    pub fn check_unchanged(&self) -> Result<(), Error> {
        match &self.stamp {
            Some(stamp) if Stamp::of(&self.place)? != *stamp => {
                let changed = Error::bad_input("was changed while the report was made");
                Err(changed.about(text::name(&self.name)))
            }
            _ => Ok(()),
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

/// Adds what the file at `path` holds to `hasher`; returns its bytes.
fn hash_file(path: &Path, hasher: &mut blake3::Hasher) -> Result<u64, Error> {
    let file = MappedFile::open(path).map_err(InputError::from)?;
    hasher.update(&file);
    Ok(file.len() as u64)
}

/// The same of the files in a folder, and in those within it, in the order of their names, which
/// count, too.
fn hash_folder(path: &Path, hasher: &mut blake3::Hasher) -> Result<u64, Error> {
    let cannot = |error| Error::bad_input(error).about(path.display());
    let entries = std::fs::read_dir(path).map_err(cannot)?;
    let mut names: Vec<_> = entries
        .map(|entry| Ok(entry?.file_name()))
        .collect::<std::io::Result<_>>()
        .map_err(cannot)?;
    names.sort();
    let mut bytes = 0;
    for name in names {
        let at = path.join(&name);
        let name = name.as_encoded_bytes();
        hasher.update(&(name.len() as u64).to_le_bytes());
        hasher.update(name);
        let mut own = blake3::Hasher::new();
        bytes += match at.is_dir() {
            true => hash_folder(&at, &mut own)?,
            false => hash_file(&at, &mut own)?,
        };
        hasher.update(own.finalize().as_bytes());
    }
    Ok(bytes)
}
