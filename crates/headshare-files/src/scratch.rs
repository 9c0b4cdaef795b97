//! Temporary files for programs that want a path to open.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::atomic::{NamedTemporary, within_limit};
use crate::{FileError, unnamed};

/// A file in the folder for temporary files (`TMPDIR`) that goes away with this
/// struct; where the system has files without a name, however the process ends.
#[derive(Debug)]
pub struct ScratchFile {
    file: File,
    path: PathBuf,
    folder: PathBuf,
    named: Option<NamedTemporary>,
}

impl ScratchFile {
    /// Creates a file of `len` bytes, all zero.
    ///
    /// # Errors
    /// When the folder cannot take it; the message names the folder.
    pub fn create(len: u64) -> Result<Self, FileError> {
        let folder = std::env::temp_dir();
        let unnamed = unnamed::create(&folder, 0o600)
            .map_err(FileError::io(&folder, "create a temporary file"))?;
        let (file, path, named) = match unnamed {
            Some(file) => {
                let path = unnamed::path_of(&file);
                (file, path, None)
            }
            None => {
                let (file, named) = NamedTemporary::create(&folder.join("headshare"))?;
                (file, named.path().to_owned(), Some(named))
            }
        };
        // All of it will be written: that there is no room is found out at once.
        let reserved = within_limit(len).and_then(|()| match len {
            0 => Ok(()),
            _ => unnamed::reserve(&file, len),
        });
        reserved
            .and_then(|()| file.set_len(len))
            .map_err(|e| FileError::write(&folder, len, e))?;
        Ok(Self {
            file,
            path,
            folder,
            named,
        })
    }

    /// The path by which this process can open the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path by which processes that this one starts can open the file, as
    /// long as it lives.
    pub fn path_for_children(&self) -> PathBuf {
        match self.named {
            Some(_) => self.path.clone(),
            None => unnamed::path_for_others(&self.file),
        }
    }

    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    /// The system's, with the folder's name.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), FileError> {
        self.file
            .write_all_at(bytes, offset)
            .map_err(|e| FileError::write(&self.folder, offset + bytes.len() as u64, e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_opens_what_was_written_as_long_as_the_file_lives() {
        let scratch = ScratchFile::create(6).unwrap();
        scratch.write_at(3, b"abc").unwrap();
        assert_eq!(std::fs::read(scratch.path()).unwrap(), b"\0\0\0abc");
        let path = scratch.path_for_children();
        let child = std::process::Command::new("cat").arg(&path).output();
        assert_eq!(child.unwrap().stdout, b"\0\0\0abc");
        drop(scratch);
        assert!(std::fs::read(path).is_err());
    }
}
