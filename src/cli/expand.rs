//! `expand`: the plain GGUF that a converted file stands for.

use std::path::PathBuf;

use headshare_jobs::{Error, Expand, Expanded};

use super::Exit;
use super::output::{Output, grouped};
use super::stdio::{self, Written};

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

fn render(done: &Expanded) -> String {
    format!(
        "{}: {} bytes, {}\n",
        done.path,
        grouped(done.bytes),
        match done.lossless {
            true => "the source byte for byte, by its digest",
            false =>
                "shared units written out; what is stored is as it was written, by its digests",
        }
    )
}
