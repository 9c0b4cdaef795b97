//! `expand`: the plain GGUF that a converted file stands for.

use std::path::PathBuf;

use headshare_jobs::{Error, Expand};

use super::Exit;
use super::stdio::{self, Written};
use crate::process::output::Output;
use crate::render::expand::render;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A file that `convert` has written.
    file: PathBuf,
    /// The plain GGUF to write; - writes to standard output.
    #[arg(short, long, value_name = "OUT.gguf")]
    output: PathBuf,
    /// Replace the output if it exists.
    #[arg(long)]
    force: bool,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

impl Args {
    pub(super) fn run(self, out: &Output) -> Result<Exit, Error> {
        let json = self.json;
        let written = Written {
            flag: "-o",
            path: &self.output,
            binary: true,
        };
        let streams = stdio::taken(&[written], json)?;
        out.result_beside(streams, &self.job().run(out)?, json, render)?;
        Ok(Exit::Done)
    }

    pub(super) fn job(self) -> Expand {
        Expand {
            file: self.file,
            output: self.output,
            force: self.force,
        }
    }
}
