//! The program to run: where it is, and whether a library can be preloaded
//! into it.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::error::{ExecError, Obstacle};

/// Scripts whose interpreter is a script: the kernel's limit.
const MAX_SCRIPTS: usize = 5;
const PT_INTERP: u32 = 3;
const SETUID: u32 = 0o4000;
const SETGID_AND_EXECUTABLE: u32 = 0o2010;

/// A program that exists.
#[derive(Debug)]
pub struct Program {
    path: PathBuf,
}

impl Program {
    /// Finds `name` as a shell would: a path, or a name to look up in PATH.
    ///
    /// # Errors
    /// [`ExecError::NotFound`], or when it is there but cannot be run.
    pub fn find(name: &OsStr) -> Result<Self, ExecError> {
        let executable = |path: &Path| {
            let metadata = fs::metadata(path)?;
            if metadata.is_file() && metadata.mode() & 0o111 != 0 {
                Ok(())
            } else {
                Err(io::Error::from(io::ErrorKind::PermissionDenied))
            }
        };
        let candidates = if name.as_bytes().contains(&b'/') {
            vec![PathBuf::from(name)]
        } else {
            let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
            std::env::split_paths(&path)
                .map(|folder| folder.join(name))
                .collect()
        };
        let mut refused = None;
        for path in candidates {
            match executable(&path) {
                Ok(()) => return Ok(Self { path }),
                Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                    refused.get_or_insert((path, e));
                }
                Err(_) => {}
            }
        }
        Err(match refused {
            Some((program, source)) => ExecError::Refused { program, source },
            None => ExecError::NotFound {
                program: name.into(),
            },
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What keeps the preload library out of it, if anything is known to. For
    /// a script this is about its interpreter.
    pub fn obstacle(&self) -> Option<Obstacle> {
        if headshare_preload::LIBRARY.is_none() {
            return Some(Obstacle::NoLibrary);
        }
        let mut path = self.path.clone();
        for _ in 0..=MAX_SCRIPTS {
            match look_at(&path) {
                Ok(Kind::Script(interpreter)) => path = interpreter,
                Ok(Kind::Binary(obstacle)) => return obstacle,
                // Unreadable or odd: the system will say so.
                Err(_) => return None,
            }
        }
        None
    }
}

enum Kind {
    /// Run by the interpreter at this path.
    Script(PathBuf),
    Binary(Option<Obstacle>),
}

fn look_at(path: &Path) -> io::Result<Kind> {
    let mut file = File::open(path)?;
    let mut start = Vec::new();
    (&mut file).take(4096).read_to_end(&mut start)?;
    if let Some(line) = start.strip_prefix(b"#!") {
        let line = line.split(|&b| b == b'\n').next().unwrap_or_default();
        return Ok(Kind::Script(interpreter(line)));
    }
    if !start.starts_with(b"\x7fELF") {
        return Ok(Kind::Script("/bin/sh".into())); // what execvp does
    }
    if is_privileged(&file)? {
        return Ok(Kind::Binary(Some(Obstacle::Privileged)));
    }
    let mut own = [0; 20];
    File::open("/proc/self/exe")?.read_exact(&mut own)?;
    Ok(Kind::Binary(elf_obstacle(&file, path, &start, &own)))
}

/// The program that runs a script: the one in its first line, or for `env` the
/// one that this looks up.
fn interpreter(line: &[u8]) -> PathBuf {
    let mut words = line
        .split(|b| b.is_ascii_whitespace())
        .filter(|word| !word.is_empty())
        .map(OsStr::from_bytes);
    let first = PathBuf::from(words.next().unwrap_or_default());
    if first.file_name() != Some(OsStr::new("env")) {
        return first;
    }
    words
        .find(|word| !word.as_bytes().starts_with(b"-") && !word.as_bytes().contains(&b'='))
        .and_then(|name| Program::find(name).ok())
        .map_or(first, |program| program.path)
}

/// Whether the loader will run it in secure mode, without preloading.
fn is_privileged(file: &File) -> io::Result<bool> {
    let metadata = file.metadata()?;
    let (user, group) = (rustix::process::getuid(), rustix::process::getgid());
    let mode = metadata.mode();
    let setuid = mode & SETUID != 0 && metadata.uid() != user.as_raw();
    let setgid =
        mode & SETGID_AND_EXECUTABLE == SETGID_AND_EXECUTABLE && metadata.gid() != group.as_raw();
    let mut value = [0; 64];
    let capabilities =
        !user.is_root() && rustix::fs::fgetxattr(file, "security.capability", &mut value).is_ok();
    Ok(setuid || setgid || capabilities)
}

/// What an ELF file's header, at the beginning of `start`, says; `own` is the
/// beginning of this program's.
fn elf_obstacle(file: &File, path: &Path, start: &[u8], own: &[u8; 20]) -> Option<Obstacle> {
    // Class and byte order, and the machine.
    if start.get(4..6)? != &own[4..6] || start.get(18..20)? != &own[18..20] {
        return Some(Obstacle::OtherMachine);
    }
    let half = |at: usize| Some(u16::from_ne_bytes(start.get(at..at + 2)?.try_into().ok()?));
    let long = |b: &[u8]| Some(u64::from_ne_bytes(b.try_into().ok()?));
    let table = long(start.get(32..40)?)?;
    let (entry_size, entries) = (half(54)?, half(56)?);
    let mut entry = [0; 56];
    for index in 0..u64::from(entries) {
        let at = table.checked_add(index * u64::from(entry_size))?;
        file.read_exact_at(&mut entry, at).ok()?;
        if u32::from_ne_bytes(entry[..4].try_into().ok()?) != PT_INTERP {
            continue;
        }
        let mut loader = vec![0; long(&entry[32..40])?.min(4096) as usize];
        file.read_exact_at(&mut loader, long(&entry[8..16])?).ok()?;
        let musl = loader.windows(7).any(|w| w == b"ld-musl");
        return musl.then_some(Obstacle::Musl);
    }
    // The loader itself, called as a program, loads libraries.
    let name = path.file_name()?.as_bytes();
    (!name.starts_with(b"ld-linux") && !name.starts_with(b"ld.so")).then_some(Obstacle::Static)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interpreters_are_found_also_behind_env() {
        let shell = Program::find(OsStr::new("sh")).unwrap().path;
        assert_eq!(interpreter(b" /bin/bash -e"), Path::new("/bin/bash"));
        assert_eq!(interpreter(b"/usr/bin/env sh"), shell);
        assert_eq!(interpreter(b"/usr/bin/env -S A=1 sh -e"), shell);
        assert_eq!(
            interpreter(b"/usr/bin/env no-such"),
            Path::new("/usr/bin/env")
        );
    }

    #[test]
    fn a_dynamic_program_has_no_obstacle() {
        let program = Program::find(OsStr::new("ls")).unwrap();
        assert_eq!(program.obstacle(), None);
    }

    #[test]
    fn headers_of_other_programs_are_told_apart() {
        let own = fs::read("/proc/self/exe").unwrap();
        let own_start: [u8; 20] = own[..20].try_into().unwrap();
        let look = |bytes: &[u8]| {
            let file = tempfile::NamedTempFile::new().unwrap();
            fs::write(file.path(), bytes).unwrap();
            elf_obstacle(file.as_file(), Path::new("p"), bytes, &own_start)
        };
        assert_eq!(look(&own), None);
        let mut other = own[..64].to_vec();
        other[18] ^= 1;
        assert_eq!(look(&other), Some(Obstacle::OtherMachine));
        let mut word_size = own[..64].to_vec();
        word_size[4] = 1;
        assert_eq!(look(&word_size), Some(Obstacle::OtherMachine));
        let mut no_segments = own[..64].to_vec();
        no_segments[56..58].fill(0);
        assert_eq!(look(&no_segments), Some(Obstacle::Static));
        assert_eq!(look(&own[..30]), None); // cut off: the system refuses it
        let mut musl = own.clone();
        let at = musl.windows(8).position(|w| w == b"ld-linux").unwrap();
        musl[at..at + 8].copy_from_slice(b"ld-musl-");
        assert_eq!(look(&musl), Some(Obstacle::Musl));
    }
}
