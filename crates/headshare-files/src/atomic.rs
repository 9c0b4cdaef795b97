//! Output files that appear whole or not at all.
//!
//! The bytes go to a file without a name (`O_TMPFILE`) in the output's folder,
//! which the kernel drops if the process dies in any way; fsync, then a link
//! or rename gives it its name. Where the file system has no unnamed files, a
//! named sibling stands in, which [`remove_temporary_files`] removes when a signal
//! ends the program.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::Resource;

use crate::identity::require_regular;
use crate::{FileError, FileId, unnamed};

/// Named temporary files that exist now.
static NAMED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Removes the named temporary files of every output and scratch file that is
/// being written: for a process that is about to end without dropping them.
///
/// Whoever still writes to one of them writes to a file without a name from then
/// on, and [`AtomicFile::commit`] fails.
///
/// A thread that is just picking a name may be the one that ends the process, or wait for that:
/// so nobody waits long for it here.
pub fn remove_temporary_files() {
    for _ in 0..TRIES {
        if let Ok(named) = NAMED.try_lock() {
            for path in named.iter() {
                let _ = std::fs::remove_file(path);
            }
            return;
        }
        std::thread::sleep(PAUSE);
    }
}

/// Attempts to have the list of names, and what lies between two of them.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(5);

/// Refuses a file of `len` bytes that the process may not write: the system would end it with a
/// signal.
pub(crate) fn within_limit(len: u64) -> io::Result<()> {
    let limit = rustix::process::getrlimit(Resource::Fsize).current;
    match limit {
        Some(limit) if len > limit => Err(Errno::FBIG.into()),
        _ => Ok(()),
    }
}

/// An output file that gets its name in [`commit`](Self::commit); dropped
/// before that, it leaves nothing behind.
#[derive(Debug)]
pub struct AtomicFile {
    file: File,
    target: PathBuf,
    replace: bool,
    named: Option<NamedTemporary>,
}

impl AtomicFile {
    /// Starts the output `target` of `len` bytes, all zero until written.
    ///
    /// A link as `target` stands for what it points to. `replace` allows a
    /// file to be there already; never one of `inputs`.
    ///
    /// # Errors
    /// When `target` is one of `inputs`, is there and `replace` is not set, is
    /// no regular file, or its folder cannot take the file.
    pub fn create(
        target: &Path,
        len: u64,
        replace: bool,
        inputs: &[FileId],
    ) -> Result<Self, FileError> {
        let target = check_target(target, replace, inputs)?;
        let folder = folder_of(&target);
        let unnamed = unnamed::create(folder, 0o666).map_err(FileError::io(&target, "create"))?;
        let (file, named) = match unnamed {
            Some(file) => (file, None),
            None => {
                let (file, named) = NamedTemporary::create(&target)?;
                (file, Some(named))
            }
        };
        let this = Self {
            file,
            target,
            replace,
            named,
        };
        this.reserve(len)?;
        Ok(this)
    }

    /// Writes a file of these `bytes` as a whole.
    ///
    /// # Errors
    /// As [`create`](Self::create), and when there is no space; nothing is left behind then.
    pub fn write(
        target: &Path,
        bytes: &[u8],
        replace: bool,
        inputs: &[FileId],
    ) -> Result<(), FileError> {
        let file = Self::create(target, bytes.len() as u64, replace, inputs)?;
        file.write_at(0, bytes)?;
        file.commit()
    }

    /// Checks what [`create`](Self::create) checks of `target`, to fail before
    /// long work; returns the path that the output will have.
    ///
    /// # Errors
    /// As [`create`](Self::create), except for what only writing shows.
    pub fn check(target: &Path, replace: bool, inputs: &[FileId]) -> Result<PathBuf, FileError> {
        let resolved = check_target(target, replace, inputs)?;
        let folder = folder_of(&resolved);
        rustix::fs::access(folder, rustix::fs::Access::WRITE_OK)
            .map_err(|e| FileError::io(target, "create")(e.into()))?;
        Ok(resolved)
    }

    fn reserve(&self, len: u64) -> Result<(), FileError> {
        within_limit(len).map_err(|e| self.write_error(len, e))?;
        if len > 0 {
            unnamed::reserve(&self.file, len).map_err(|e| self.write_error(len, e))?;
        }
        self.file.set_len(len).map_err(|e| self.write_error(len, e))
    }

    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    /// The system's, with the output's name.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), FileError> {
        self.file
            .write_all_at(bytes, offset)
            .map_err(|e| self.write_error(offset + bytes.len() as u64, e))
    }

    /// The file being written.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The path that the output will have.
    pub fn path(&self) -> &Path {
        &self.target
    }

    /// Makes the output durable and gives it its name.
    ///
    /// # Errors
    /// The system's; [`FileError::Exists`] when another process has created
    /// the output meanwhile. Nothing is left behind then.
    pub fn commit(mut self) -> Result<(), FileError> {
        self.file.sync_all().map_err(|e| self.write_error(0, e))?;
        match (self.named.take(), self.replace) {
            (None, false) => self.link(&self.target)?,
            (None, true) => {
                // A link cannot replace; a rename needs a name to start from.
                let temporary = NamedTemporary::reserve_name(&self.target)?;
                self.link(&temporary.path)?;
                temporary.rename(&self.target, true)?;
            }
            (Some(temporary), replace) => temporary.rename(&self.target, replace)?,
        }
        if let Ok(folder) = File::open(folder_of(&self.target)) {
            // The name is there; some file systems cannot sync folders.
            let _ = folder.sync_all();
        }
        Ok(())
    }

    fn link(&self, path: &Path) -> Result<(), FileError> {
        unnamed::link(&self.file, path).map_err(|e| exists_or_io(&self.target, e))
    }

    fn write_error(&self, needed: u64, source: io::Error) -> FileError {
        FileError::write(&self.target, needed, source)
    }
}

/// A temporary file with a name, removed when dropped.
#[derive(Debug)]
pub(crate) struct NamedTemporary {
    path: PathBuf,
    /// It has another name now, and this one may be somebody else's.
    renamed: bool,
}

impl NamedTemporary {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn create(target: &Path) -> Result<(File, Self), FileError> {
        let this = Self::reserve_name(target)?;
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&this.path)
            .map_err(FileError::io(target, "create"))?;
        Ok((file, this))
    }

    /// Picks a sibling's name that no file has. The process id keeps other
    /// processes off it, the counter other outputs of this one.
    fn reserve_name(target: &Path) -> Result<Self, FileError> {
        // Without the target's name, which may be as long as a name may be.
        let pid = std::process::id();
        let mut named = NAMED.lock().unwrap_or_else(|e| e.into_inner());
        let path = (0u32..)
            .map(|n| target.with_file_name(format!(".headshare.{pid}-{n}.tmp")))
            .find(|p| !named.contains(p) && p.symlink_metadata().is_err())
            .expect("some number is free");
        named.push(path.clone());
        Ok(Self {
            path,
            renamed: false,
        })
    }

    fn rename(mut self, target: &Path, replace: bool) -> Result<(), FileError> {
        let renamed = match replace {
            true => Some(std::fs::rename(&self.path, target)),
            false => unnamed::rename_to_free(&self.path, target),
        };
        self.renamed = matches!(renamed, Some(Ok(())));
        // A hard link never replaces either; the temporary's own name goes
        // when `self` is dropped.
        let result = renamed.unwrap_or_else(|| std::fs::hard_link(&self.path, target));
        result.map_err(|e| exists_or_io(target, e))
    }
}

impl Drop for NamedTemporary {
    fn drop(&mut self) {
        if !self.renamed {
            let _ = std::fs::remove_file(&self.path);
        }
        if let Ok(mut named) = NAMED.lock() {
            named.retain(|p| *p != self.path);
        }
    }
}

fn exists_or_io(target: &Path, e: io::Error) -> FileError {
    if e.kind() == io::ErrorKind::AlreadyExists {
        FileError::Exists {
            path: target.to_owned(),
        }
    } else {
        FileError::io(target, "create")(e)
    }
}

/// The folder that holds `path`.
fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

fn check_target(target: &Path, replace: bool, inputs: &[FileId]) -> Result<PathBuf, FileError> {
    let link = match target.symlink_metadata() {
        Ok(metadata) => metadata.file_type().is_symlink(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            // What ends in a slash names a folder, which a file cannot become.
            let name = target.file_name().unwrap_or_default().as_encoded_bytes();
            let whole = target.as_os_str().as_encoded_bytes();
            return match !name.is_empty() && whole.ends_with(name) {
                true => Ok(target.to_owned()),
                false => Err(FileError::io(target, "create")(Errno::NOTDIR.into())),
            };
        }
        Err(e) => return Err(FileError::io(target, "create")(e)),
    };
    let resolved = if link {
        target
            .canonicalize()
            .map_err(FileError::io(target, "follow the link"))?
    } else {
        target.to_owned()
    };
    let metadata = resolved
        .metadata()
        .map_err(FileError::io(target, "create"))?;
    require_regular(target, metadata.file_type())?;
    if inputs.contains(&FileId::of(&metadata)) {
        return Err(FileError::SameFile {
            path: target.to_owned(),
        });
    }
    if !replace {
        return Err(FileError::Exists {
            path: target.to_owned(),
        });
    }
    Ok(resolved)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn nothing_is_visible_before_commit_and_the_whole_file_after() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("out");
        let out = AtomicFile::create(&target, 6, false, &[]).unwrap();
        out.write_at(3, b"abc").unwrap();
        assert!(names(folder.path()).iter().all(|n| n.starts_with('.')));
        out.commit().unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"\0\0\0abc");
        assert_eq!(names(folder.path()), ["out"]);
    }

    #[test]
    fn dropped_without_commit_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("out");
        drop(AtomicFile::create(&target, 6, false, &[]).unwrap());
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    fn a_named_temporary_behaves_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("out");
        for replace in [false, true] {
            let (file, named) = NamedTemporary::create(&target).unwrap();
            let out = AtomicFile {
                file,
                target: target.clone(),
                replace,
                named: Some(named),
            };
            out.write_at(0, if replace { b"two" } else { b"one" })
                .unwrap();
            out.commit().unwrap();
        }
        assert_eq!(std::fs::read(&target).unwrap(), b"two");
        assert_eq!(names(folder.path()), ["out"]);

        let (_file, named) = NamedTemporary::create(&target).unwrap();
        assert!(matches!(
            named.rename(&target, false),
            Err(FileError::Exists { .. })
        ));
        assert_eq!(names(folder.path()), ["out"]);
    }

    #[test]
    fn an_existing_output_needs_replace_and_keeps_its_content_until_commit() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("out");
        std::fs::write(&target, b"old").unwrap();
        assert!(matches!(
            AtomicFile::create(&target, 1, false, &[]),
            Err(FileError::Exists { .. })
        ));
        let out = AtomicFile::create(&target, 3, true, &[]).unwrap();
        out.write_at(0, b"new").unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"old");
        out.commit().unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"new");
        assert_eq!(names(folder.path()), ["out"]);
    }

    #[test]
    fn an_output_created_meanwhile_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("out");
        let out = AtomicFile::create(&target, 3, false, &[]).unwrap();
        std::fs::write(&target, b"theirs").unwrap();
        assert!(matches!(out.commit(), Err(FileError::Exists { .. })));
        assert_eq!(std::fs::read(&target).unwrap(), b"theirs");
    }

    #[test]
    fn the_input_is_never_the_output_whatever_the_link() {
        let folder = tempfile::tempdir().unwrap();
        let input = folder.path().join("in");
        std::fs::write(&input, b"data").unwrap();
        let hard = folder.path().join("hard");
        let soft = folder.path().join("soft");
        std::fs::hard_link(&input, &hard).unwrap();
        std::os::unix::fs::symlink(&input, &soft).unwrap();
        let id = FileId::of(&input.metadata().unwrap());
        for path in [&input, &hard, &soft] {
            assert!(matches!(
                AtomicFile::create(path, 1, true, &[id]),
                Err(FileError::SameFile { .. })
            ));
        }
        assert_eq!(std::fs::read(&input).unwrap(), b"data");
    }

    #[test]
    fn a_link_stands_for_what_it_points_to() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().join("real");
        let link = folder.path().join("link");
        std::fs::write(&real, b"old").unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let out = AtomicFile::create(&link, 3, true, &[]).unwrap();
        out.write_at(0, b"new").unwrap();
        out.commit().unwrap();
        assert!(link.symlink_metadata().unwrap().file_type().is_symlink());
        assert_eq!(std::fs::read(&real).unwrap(), b"new");
    }

    #[test]
    fn folders_devices_and_missing_folders_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        for path in [folder.path(), Path::new("/dev/null")] {
            assert!(matches!(
                AtomicFile::create(path, 1, true, &[]),
                Err(FileError::NotRegular { .. })
            ));
        }
        let missing = folder.path().join("no/such/out");
        assert!(matches!(
            AtomicFile::create(&missing, 1, false, &[]),
            Err(FileError::Io { .. })
        ));
    }

    #[test]
    fn a_name_that_a_file_cannot_have_is_refused_and_the_longest_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["new/", "new/."] {
            let path = folder.path().join(name);
            let error = AtomicFile::check(&path, false, &[]).unwrap_err();
            assert!(matches!(error, FileError::Io { .. }), "{error}");
        }
        let longest = folder.path().join("n".repeat(255));
        for text in [b"one", b"two"] {
            AtomicFile::write(&longest, text, true, &[]).unwrap();
            assert_eq!(std::fs::read(&longest).unwrap(), text);
        }
        assert_eq!(names(folder.path()).len(), 1);
    }

    #[test]
    fn an_impossible_size_is_a_matter_of_space() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("out");
        let error = AtomicFile::create(&target, 1 << 55, false, &[]).unwrap_err();
        assert!(matches!(error, FileError::NoSpace { .. }), "{error}");
        assert!(names(folder.path()).is_empty());
    }
}
