//! `exec`: an unmodified llama.cpp program that can read converted files.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use headshare_jobs::Error;

use super::Exit;
use crate::exec::{ConvertedFiles, ExecError, Program, exec};
use crate::process::failure;
use crate::process::output::Output;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A converted file that the program opens but that is not among its
    /// arguments.
    #[arg(long, value_name = "FILE")]
    model: Vec<PathBuf>,
    /// Print on stderr how much of each file is shared.
    #[arg(long)]
    perf: bool,
    /// Mappings that a process may have, instead of vm.max_map_count.
    #[arg(long, value_name = "N", hide = true)]
    max_mappings: Option<u64>,
    /// The program and its arguments.
    #[arg(last = true, required = true, value_name = "PROGRAM ARGS")]
    command: Vec<OsString>,
}

impl Args {
    /// Runs the program; returns only where that is not possible.
    pub(super) fn run(self, out: &Output) -> Result<Exit, Error> {
        match self.exec(out) {
            ExecError::Input(error) => Err(error.into()),
            error => {
                failure::print(&error.to_string(), hint(&error));
                Ok(exit(&error))
            }
        }
    }

    fn exec(&self, out: &Output) -> ExecError {
        let (name, arguments) = self.command.split_first().expect("clap requires it");
        let prepared =
            Program::find(name).and_then(|program| Ok((program, self.files(arguments)?)));
        let (program, files) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => return error,
        };
        for remark in &files.remarks {
            out.remark(remark);
        }
        if files.is_empty() {
            out.remark(
                "none of the arguments is a converted file; --model names one that is \
                 not an argument",
            );
        }
        exec(&files, &program, name, arguments)
    }

    fn files(&self, arguments: &[OsString]) -> Result<ConvertedFiles, ExecError> {
        let mut files = ConvertedFiles::new(self.max_mappings, self.perf);
        for path in &self.model {
            files.add_model(path)?;
        }
        files.add_arguments(arguments)?;
        if let Some(path) = std::env::var_os("LLAMA_ARG_MODEL") {
            files.add_if_converted(Path::new(&path))?;
        }
        Ok(files)
    }
}

/// As shells have it.
fn exit(error: &ExecError) -> Exit {
    match error {
        ExecError::NotFound { .. } => Exit::NotFound,
        ExecError::Refused { .. } => Exit::CannotRun,
        ExecError::Input(_) | ExecError::CannotWork { .. } | ExecError::Prepare { .. } => {
            Exit::Failed
        }
    }
}

fn hint(error: &ExecError) -> Option<&'static str> {
    matches!(error, ExecError::CannotWork { .. })
        .then_some("give it the plain file: headshare-gguf expand FILE -o PLAIN.gguf")
}
