//! Files without a name: the kernel drops them when the process ends, in
//! whatever way. Linux has them (`O_TMPFILE`), on most file systems.

#[cfg(target_os = "linux")]
mod linux {
    use std::fs::File;
    use std::io;
    use std::os::fd::AsRawFd;
    use std::path::{Path, PathBuf};

    use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags};
    use rustix::io::Errno;

    /// A file in `folder` with these permissions; `None` when its file system
    /// has no unnamed files, or they could not get a name later for want of /proc.
    pub(crate) fn create(folder: &Path, mode: u32) -> io::Result<Option<File>> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        match rustix::fs::open(folder, flags, Mode::from_raw_mode(mode)) {
            Ok(fd) => {
                let file = File::from(fd);
                Ok(path_of(&file).exists().then_some(file))
            }
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// The path by which this process can open `file`.
    pub(crate) fn path_of(file: &File) -> PathBuf {
        format!("/proc/self/fd/{}", file.as_raw_fd()).into()
    }

    /// The path by which other processes of this user can open `file` as long as
    /// this one has it.
    pub(crate) fn path_for_others(file: &File) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()).into()
    }

    /// Gives `file` the name `path`, which must be free.
    pub(crate) fn link(file: &File, path: &Path) -> io::Result<()> {
        rustix::fs::linkat(CWD, path_of(file), CWD, path, AtFlags::SYMLINK_FOLLOW)?;
        Ok(())
    }

    /// Renames `from` to `to`, which must be free; `None` when the file system
    /// cannot promise that.
    pub(crate) fn rename_to_free(from: &Path, to: &Path) -> Option<io::Result<()>> {
        match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            Err(Errno::INVAL | Errno::NOSYS) => None,
            result => Some(result.map_err(Into::into)),
        }
    }

    /// Takes the space for `len` bytes, where the file system can.
    pub(crate) fn reserve(file: &File, len: u64) -> io::Result<()> {
        let fallocate = || rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, len);
        // A file in memory is interrupted by signals that are no end.
        match rustix::io::retry_on_intr(fallocate) {
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod elsewhere {
    use std::fs::File;
    use std::io;
    use std::path::{Path, PathBuf};

    pub(crate) fn create(_folder: &Path, _mode: u32) -> io::Result<Option<File>> {
        Ok(None)
    }

    pub(crate) fn path_of(_file: &File) -> PathBuf {
        unreachable!("there are no unnamed files here")
    }

    pub(crate) fn path_for_others(file: &File) -> PathBuf {
        path_of(file)
    }

    pub(crate) fn link(_file: &File, _path: &Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(crate) fn rename_to_free(_from: &Path, _to: &Path) -> Option<io::Result<()>> {
        None
    }

    pub(crate) fn reserve(_file: &File, _len: u64) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(not(target_os = "linux"))]
pub(crate) use elsewhere::{create, link, path_for_others, path_of, rename_to_free, reserve};
#[cfg(target_os = "linux")]
pub(crate) use linux::{create, link, path_for_others, path_of, rename_to_free, reserve};
