//! Which file a path leads to, and whether it is one.

use std::fs::{FileType, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use crate::FileError;

/// Device and inode: the same for every path to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    /// The file that `metadata` is of.
    pub fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
        }
    }
}

/// Refuses what is no regular file.
///
/// # Errors
/// [`FileError::NotRegular`], which says what there is at `path` instead.
pub fn require_regular(path: &Path, file_type: FileType) -> Result<(), FileError> {
    let kind = if file_type.is_file() {
        return Ok(());
    } else if file_type.is_dir() {
        "a folder"
    } else if file_type.is_fifo() {
        "a pipe"
    } else if file_type.is_socket() {
        "a socket"
    } else {
        "a device"
    };
    Err(FileError::NotRegular {
        path: path.to_owned(),
        kind,
    })
}
