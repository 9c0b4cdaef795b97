//! Writing files so that nothing half-written is ever seen, and nothing is left
//! behind.
//!
//! An [`AtomicFile`] gets its name when it is whole; a [`ScratchFile`] has a path
//! as long as it lives. Both are files without a name where the system has such
//! (`O_TMPFILE`), so that the kernel drops them however the process ends.
//! Elsewhere they have a temporary name: dropping them removes it, and
//! [`remove_temporary_files`] does so for a process that ends without dropping
//! anything.
//!
//! For every Unix.
//!
//! ```
//! use headshare_files::{AtomicFile, FileError};
//!
//! # let folder = tempfile::tempdir().unwrap();
//! # let path = folder.path().join("out.bin");
//! let out = AtomicFile::create(&path, 6, false, &[])?;
//! out.write_at(3, b"abc")?;
//! assert!(!path.exists());
//! out.commit()?;
//! assert_eq!(std::fs::read(&path).unwrap(), b"\0\0\0abc");
//! // It is there now, and is replaced only where that was asked for.
//! let again = AtomicFile::create(&path, 6, false, &[]);
//! assert!(matches!(again, Err(FileError::Exists { .. })));
//! # Ok::<(), FileError>(())
//! ```
#![forbid(unsafe_code)]

mod atomic;
mod error;
mod identity;
mod scratch;
mod unnamed;

pub use atomic::{AtomicFile, remove_temporary_files};
pub use error::FileError;
pub use identity::{FileId, require_regular};
pub use scratch::ScratchFile;

/// The examples of the README are tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
