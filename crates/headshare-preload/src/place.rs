//! Where the plan and the library are while the program runs.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags, StatVfsMountFlags};

use crate::library::LIBRARY;
use crate::plan::HandedPlan;

/// What the program inherits: it has to be alive when the program starts.
#[derive(Debug)]
pub struct Handover {
    /// Environment variables to set.
    pub environment: Vec<(&'static str, OsString)>,
    _open: Vec<OwnedFd>,
}

/// Makes the library and `plan` ready to be inherited by the program that this
/// process becomes, and by its children.
///
/// # Errors
/// When no place for them is to be had, or the library does not exist for this
/// system.
pub fn hand_over(plan: &HandedPlan) -> io::Result<Handover> {
    let library = LIBRARY.ok_or(io::ErrorKind::Unsupported)?;
    let mut open = Vec::new();
    let plan = anonymous_file("headshare-plan", &plan.to_bytes())?;
    let path = match private_file(library) {
        Ok(path) => path,
        Err(_) => {
            let file = anonymous_file("headshare-preload", library)?;
            let path = in_this_process(&file);
            open.push(file.into());
            path
        }
    };
    let mut preload = path.into_os_string();
    if let Some(others) = std::env::var_os("LD_PRELOAD").filter(|o| !o.is_empty()) {
        preload.push(":");
        preload.push(others);
    }
    let metadata = plan.metadata()?;
    let reference = format!(
        "{}:{}:{}:{}",
        plan.as_raw_fd(),
        std::process::id(),
        metadata.dev(),
        metadata.ino()
    );
    open.push(plan.into());
    Ok(Handover {
        environment: vec![
            ("LD_PRELOAD", preload),
            ("HEADSHARE_EXEC", reference.into()),
        ],
        _open: open,
    })
}

/// A path to the open `file` that works in other processes, too, as long as
/// the program that this process becomes lives.
fn in_this_process(file: &File) -> PathBuf {
    format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()).into()
}

/// A file in memory that children inherit and nobody can change; where there
/// are none, a file without a name.
fn anonymous_file(name: &str, bytes: &[u8]) -> io::Result<File> {
    let sealed = rustix::fs::memfd_create(name, MemfdFlags::ALLOW_SEALING);
    let mut file = match sealed {
        Ok(fd) => File::from(fd),
        Err(_) => {
            let flags = OFlags::TMPFILE | OFlags::RDWR;
            rustix::fs::open(std::env::temp_dir(), flags, Mode::RUSR)?.into()
        }
    };
    file.write_all(bytes)?;
    if sealed_file(&file) {
        let seals = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&file, seals)?;
    }
    Ok(file)
}

fn sealed_file(file: &File) -> bool {
    rustix::fs::fcntl_get_seals(file).is_ok()
}

/// The library as a file that only this user can write, shared by all runs of
/// this build: in the run-time folder, or in the folder for temporary files.
fn private_file(library: &[u8]) -> io::Result<PathBuf> {
    let user = rustix::process::getuid().as_raw();
    let folders = [
        std::env::var_os("XDG_RUNTIME_DIR").map(|dir| Path::new(&dir).join("headshare-gguf")),
        Some(std::env::temp_dir().join(format!("headshare-gguf-{user}"))),
        Some(format!("/tmp/headshare-gguf-{user}").into()),
    ];
    let mut error = io::ErrorKind::NotFound.into();
    for folder in folders.into_iter().flatten() {
        match install(&folder, user, library) {
            Ok(path) => return Ok(path),
            Err(e) => error = e,
        }
    }
    Err(error)
}

fn install(folder: &Path, user: u32, library: &[u8]) -> io::Result<PathBuf> {
    // The loader splits LD_PRELOAD at these, or replaces what they begin.
    let unusable = |b: &u8| matches!(b, b' ' | b':' | b'$');
    if !folder.is_absolute() || folder.as_os_str().as_bytes().iter().any(unusable) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    let metadata = fs::symlink_metadata(folder)?;
    if !metadata.is_dir() || metadata.uid() != user || metadata.mode() & 0o022 != 0 {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    if rustix::fs::statvfs(folder)?
        .f_flag
        .contains(StatVfsMountFlags::NOEXEC)
    {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    // Named by what it holds: runs of other builds have their own.
    let mut hasher = DefaultHasher::new();
    library.hash(&mut hasher);
    let path = folder.join(format!("preload-{:016x}.so", hasher.finish()));
    if fs::read(&path).is_ok_and(|there| there == library) {
        return Ok(path);
    }
    // Never one that is there: a process of another container may have the same number.
    let mut options = File::options();
    options.write(true).create_new(true).mode(0o600);
    let pid = std::process::id();
    let mut names = (0u32..).map(|n| folder.join(format!("preload.{pid}-{n}.tmp")));
    let (temporary, mut file) = loop {
        let Some(temporary) = names.next() else {
            return Err(io::ErrorKind::AlreadyExists.into());
        };
        match options.open(&temporary) {
            Ok(file) => break (temporary, file),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
    };
    let written = file
        .write_all(library)
        .and_then(|()| fs::rename(&temporary, &path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written.map(|()| path)
}
