//! Input files, mapped read-only.

use std::fs::File;
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};

use headshare_files::{FileError, FileId, require_regular};
use memmap2::{Advice, Mmap, MmapOptions};

use crate::sigbus::Watch;

/// A regular file, mapped read-only in whole; derefs to its bytes.
///
/// A file that someone truncates while it is mapped ends the program on access,
/// with a message that names it.
/// Replacing it by rename, as [`AtomicFile`](headshare_files::AtomicFile) does, is
/// harmless: the mapping keeps the old file.
#[derive(Debug)]
pub struct MappedFile {
    path: PathBuf,
    file: File,
    id: FileId,
    /// Before the map: nobody watches addresses that are not mapped any more.
    _watch: Option<Watch>,
    map: Option<Mmap>,
}

impl MappedFile {
    /// Opens and maps the file at `path`.
    ///
    /// # Errors
    /// When it is not there, not readable, not a regular file, or cannot be
    /// mapped.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, FileError> {
        let path = path.into();
        // Looked at before opening: opening a pipe would block.
        let metadata = std::fs::metadata(&path).map_err(FileError::io(&path, "open"))?;
        require_regular(&path, metadata.file_type())?;
        let file = File::open(&path).map_err(FileError::io(&path, "open"))?;
        let metadata = file.metadata().map_err(FileError::io(&path, "open"))?;
        require_regular(&path, metadata.file_type())?;
        let map = if metadata.len() == 0 {
            None // an empty mapping is an error to the kernel
        } else {
            // SAFETY: the mapping is private to this struct and only read.
            // Another process could still write to or truncate the file; the
            // bytes are plain data to us, never trusted to stay the same after
            // a check, and truncation ends in SIGBUS, not in unsoundness.
            let map = unsafe { MmapOptions::new().map(&file) };
            Some(map.map_err(FileError::io(&path, "map"))?)
        };
        let watch = map.as_ref().map(|map| {
            let range = map.as_ptr_range();
            Watch::new(range.start as usize..range.end as usize, &path)
        });
        Ok(Self {
            path,
            _watch: watch,
            id: FileId::of(&metadata),
            file,
            map,
        })
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Which file it is, whatever its path.
    pub fn id(&self) -> FileId {
        self.id
    }

    /// Tells the kernel that `range` is read next, so that its pages are
    /// mapped in one go.
    pub fn will_read(&self, range: Range<u64>) {
        #[cfg(target_os = "linux")]
        self.advise(range, Advice::PopulateRead);
        #[cfg(not(target_os = "linux"))]
        self.advise(range, Advice::WillNeed);
    }

    fn advise(&self, range: Range<u64>, advice: Advice) {
        if let Some(map) = &self.map {
            let start = (range.start as usize).min(map.len());
            let len = (range.end as usize).min(map.len()) - start;
            if len > 0 {
                // Only advice: older kernels refuse it, and nothing depends on it.
                let _ = map.advise_range(advice, start, len);
            }
        }
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.map.as_deref().unwrap_or(&[])
    }
}

#[cfg(test)]
mod tests {
    use headshare_files::AtomicFile;

    use super::*;

    #[test]
    fn a_mapped_file_is_never_the_output_whatever_the_link() {
        let folder = tempfile::tempdir().unwrap();
        let input = folder.path().join("in");
        std::fs::write(&input, b"data").unwrap();
        let soft = folder.path().join("soft");
        std::os::unix::fs::symlink(&input, &soft).unwrap();
        let map = MappedFile::open(&input).unwrap();
        for path in [&input, &soft] {
            assert!(matches!(
                AtomicFile::create(path, 1, true, &[map.id()]),
                Err(FileError::SameFile { .. })
            ));
        }
        assert_eq!(&map[..], b"data");
    }

    #[test]
    fn a_folder_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(
            MappedFile::open(folder.path()),
            Err(FileError::NotRegular { .. })
        ));
    }
}
