//! Input files, mapped read-only.

use std::fs::File;
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};

use headshare_files::{FileError, FileId, require_regular};
use memmap2::{Advice, Mmap, MmapOptions};

use crate::sigbus::WatchedRange;

/// A regular file, mapped read-only in whole; derefs to its bytes.
///
/// # What is left to the user
/// No program can keep others from writing to a file that it has mapped, and
/// then the bytes change under whoever has borrowed them. Rust rules that out for
/// a `&[u8]`, so strictly [`open`](Self::open) promises more than it can keep.
/// What it relies on is that nobody writes to a model while it is in use:
///
/// - Replacing the file by rename, as [`AtomicFile`](headshare_files::AtomicFile)
///   does, is harmless: the mapping keeps the old file.
/// - Truncating it raises `SIGBUS` where the missing part is touched. A handler,
///   there from the first mapping on, says which file it was and exits with
///   status 1; other faults go on to the handler from before.
/// - Overwriting it in place goes unnoticed. What is read may then be neither the
///   old nor the new content; who reads must not rely on bytes being the same
///   when they are looked at again.
///
/// Where none of this will do, read the file instead.
#[derive(Debug)]
pub struct MappedFile {
    path: PathBuf,
    file: File,
    id: FileId,
    /// Before the map: nobody watches addresses that are not mapped any more.
    _watch: Option<WatchedRange>,
    map: Option<Mmap>,
}

impl MappedFile {
    /// Opens and maps the file at `path`; see
    /// [above](Self#what-is-left-to-the-user) for what that asks of others.
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
        // SAFETY: not to be had from here; the struct's documentation says what is
        // relied on instead. The bytes are plain data, and every use of what was
        // read from them is checked again, so that a change gives wrong weights or
        // an error, not a wrong address.
        unsafe { Self::map(path, file) }
    }

    /// Maps `file`, which was opened by `path`.
    ///
    /// # Errors
    /// When it is not a regular file, or cannot be mapped.
    ///
    /// # Safety
    /// As long as the mapping lives, nobody writes to the file or truncates it.
    pub unsafe fn map(path: PathBuf, file: File) -> Result<Self, FileError> {
        let metadata = file.metadata().map_err(FileError::io(&path, "open"))?;
        require_regular(&path, metadata.file_type())?;
        let map = if metadata.len() == 0 {
            None // an empty mapping is an error to the kernel
        } else {
            // SAFETY: this struct only reads the mapping; that nobody else writes
            // to the file is the caller's promise.
            let map = unsafe { MmapOptions::new().map(&file) };
            Some(map.map_err(FileError::io(&path, "map"))?)
        };
        let watch = map.as_ref().map(|map| {
            let range = map.as_ptr_range();
            WatchedRange::new(range.start as usize..range.end as usize, &path)
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
