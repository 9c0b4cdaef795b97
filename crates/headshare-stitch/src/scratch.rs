//! Temporary files without a name, for programs that want a path to open.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use crate::FileError;

/// A file in the folder for temporary files (`TMPDIR`) that goes away with this
/// struct, however the process ends.
#[derive(Debug)]
pub struct ScratchFile {
    file: File,
    path: PathBuf,
    folder: PathBuf,
}

impl ScratchFile {
    /// Creates a file of `len` bytes, all zero.
    ///
    /// # Errors
    /// When the folder cannot take it; the message names the folder.
    pub fn create(len: u64) -> Result<Self, FileError> {
        let folder = std::env::temp_dir();
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = rustix::fs::open(&folder, flags, Mode::from_raw_mode(0o600))
            .map(File::from)
            .map_err(|e| FileError::io(&folder, "create a temporary file")(e.into()))?;
        let this = Self {
            path: format!("/proc/self/fd/{}", file.as_raw_fd()).into(),
            file,
            folder,
        };
        this.file
            .set_len(len)
            .map_err(|e| FileError::write(&this.folder, len, e))?;
        Ok(this)
    }

    /// The path by which this process can open the file.
    pub fn path(&self) -> &Path {
        &self.path
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
    }
}
