//! Running a llama.cpp program that nobody here built, so that it can read
//! converted files: which of the files it is given are converted, the plan for
//! them, and becoming that program with the preload library in it.
//!
//! Child processes inherit all of it, so wrappers and scripts work; a child
//! that runs with other privileges, or without the environment, does not.

mod error;
mod program;

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use headshare_files::FileError;
use headshare_format::alias::AliasTable;
use headshare_format::{Gguf, LogicalLayout, PageSize, VirtualGguf};
use headshare_preload::{FileIdentity, HandedPlan};
use headshare_stitch::MappedFile;

use crate::input::InputError;
pub use error::{ExecError, Obstacle};
pub use program::Program;

/// The converted files that the program is going to be able to read.
#[derive(Debug)]
pub struct ConvertedFiles {
    plan: HandedPlan,
    page: PageSize,
    known: Vec<FileIdentity>,
    /// What to tell the user about files that are left as they are.
    pub remarks: Vec<String>,
}

impl ConvertedFiles {
    /// No files yet. Processes may have `max_mappings` mappings; `None` takes
    /// the system's limit. With `report`, programs say what was shared.
    pub fn new(max_mappings: Option<u64>, report: bool) -> Self {
        let max_mappings = max_mappings.unwrap_or_else(system_max_mappings);
        Self {
            plan: HandedPlan::new(max_mappings, report),
            page: headshare_stitch::page_size(),
            known: Vec::new(),
            remarks: Vec::new(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.plan.is_empty()
    }

    /// Adds the file at `path`, which was named as a model.
    ///
    /// # Errors
    /// When it cannot be opened or is no valid GGUF file.
    pub fn add_model(&mut self, path: &Path) -> Result<(), InputError> {
        let file = MappedFile::open(path)?;
        let gguf = Gguf::parse(&file).map_err(InputError::content(path))?;
        if !self.add(&file, &gguf)? {
            self.remarks.push(format!(
                "{}: a plain GGUF: programs can read it without exec",
                path.display()
            ));
        }
        Ok(())
    }

    /// Adds the converted files among a program's arguments: an argument as a
    /// whole, or what follows its `=`. Everything else is the program's.
    ///
    /// # Errors
    /// When a converted file cannot be opened or its alias table is bad.
    pub fn add_arguments(&mut self, arguments: &[OsString]) -> Result<(), InputError> {
        for argument in arguments {
            let value = argument.as_bytes().splitn(2, |&b| b == b'=').nth(1);
            for candidate in [Some(argument.as_bytes()), value].into_iter().flatten() {
                self.add_if_converted(Path::new(OsStr::from_bytes(candidate)))?;
            }
        }
        Ok(())
    }

    /// Adds the file at `path` if it is one, and converted.
    ///
    /// # Errors
    /// As [`add_arguments`](Self::add_arguments).
    pub fn add_if_converted(&mut self, path: &Path) -> Result<(), InputError> {
        if !path.metadata().is_ok_and(|m| m.is_file()) || !begins_as_gguf(path) {
            return Ok(());
        }
        let file = MappedFile::open(path)?;
        match Gguf::parse(&file) {
            Ok(gguf) => {
                self.add(&file, &gguf)?;
            }
            Err(error) => self
                .remarks
                .push(format!("{}: left to the program: {error}", path.display())),
        }
        Ok(())
    }

    /// Adds a converted file; false for a plain one.
    fn add(&mut self, file: &MappedFile, gguf: &Gguf) -> Result<bool, InputError> {
        let path = file.path();
        let content = || InputError::content(path);
        let Some(table) = AliasTable::read(gguf).map_err(content())? else {
            return Ok(false);
        };
        let io = |source| FileError::Io {
            path: path.to_owned(),
            action: "open",
            source,
        };
        let metadata = file.file().metadata().map_err(io)?;
        let identity = FileIdentity {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        };
        if !self.known.contains(&identity) {
            let view = VirtualGguf::new(gguf, &table, LogicalLayout::Pages(self.page))
                .map_err(content())?;
            let absolute = path.canonicalize().map_err(io)?;
            let stitch = view.stitch_plan(self.page);
            self.plan
                .add(absolute.as_os_str().as_bytes(), identity, &view, &stitch);
            self.known.push(identity);
        }
        Ok(true)
    }
}

/// Becomes `program`, called `name`, with `arguments`; returns only if that
/// fails. Without converted files it runs as if it had been called directly.
pub fn exec(
    files: &ConvertedFiles,
    program: &Program,
    name: &OsStr,
    arguments: &[OsString],
) -> ExecError {
    use std::os::unix::process::CommandExt;

    let refused = |source| ExecError::Refused {
        program: program.path().to_owned(),
        source,
    };
    let mut command = std::process::Command::new(program.path());
    command.arg0(name).args(arguments);
    if files.is_empty() {
        return refused(command.exec());
    }
    if let Some(obstacle) = program.obstacle() {
        return ExecError::CannotWork {
            program: program.path().to_owned(),
            obstacle,
        };
    }
    // Lives until the program has it.
    let handover = match headshare_preload::hand_over(&files.plan) {
        Ok(handover) => handover,
        Err(source) => {
            return ExecError::Prepare {
                program: program.path().to_owned(),
                source,
            };
        }
    };
    command.envs(handover.environment.iter().map(|(k, v)| (k, v)));
    refused(command.exec())
}

fn begins_as_gguf(path: &Path) -> bool {
    let mut magic = [0; 4];
    let read = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut magic));
    read.is_ok() && &magic == b"GGUF"
}

/// vm.max_map_count, or its default.
fn system_max_mappings() -> u64 {
    std::fs::read_to_string("/proc/sys/vm/max_map_count")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(65530)
}
