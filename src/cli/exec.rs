//! `exec`: an unmodified llama.cpp program that can read converted files.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::Exit;
use super::output::Output;
use crate::exec::{ConvertedFiles, Program, exec};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A converted file that the program opens without having it among its
    /// arguments.
    #[arg(long, value_name = "FILE")]
    model: Vec<PathBuf>,
    /// Let the program say on stderr what of each file it shares.
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
    pub(super) fn run(self, out: &Output) -> anyhow::Result<Exit> {
        let (name, arguments) = self.command.split_first().expect("clap requires it");
        let program = Program::find(name)?;
        let mut files = ConvertedFiles::new(self.max_mappings, self.perf);
        for path in &self.model {
            files.add_model(path)?;
        }
        files.add_arguments(arguments)?;
        if let Some(path) = std::env::var_os("LLAMA_ARG_MODEL") {
            files.add_if_converted(Path::new(&path))?;
        }
        for remark in &files.remarks {
            out.remark(remark);
        }
        if files.is_empty() {
            out.remark(
                "none of the arguments is a converted file; --model names one that is \
                 not an argument",
            );
        }
        Err(exec(&files, &program, name, arguments).into())
    }
}
