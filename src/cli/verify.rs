//! `verify`: a converted file against its digests and its source.

use std::path::PathBuf;

use headshare_jobs::{Error, Verify};

use super::Exit;
use crate::process::output::Output;
use crate::render::verify::render;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A file that `convert` has written, also a plain one of other shapes or types.
    file: PathBuf,
    /// The file that it was made from. Every row is compared with it, except in
    /// tensors that were computed anew.
    #[arg(long, value_name = "SRC.gguf")]
    source: Option<PathBuf>,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

impl Args {
    pub(super) fn run(self, out: &Output) -> Result<Exit, Error> {
        let json = self.json;
        let job = self.job();
        let report = job.run(out)?;
        out.result(&report, json, |report| render(&job.file, report))?;
        Ok(match report.ok {
            true => Exit::Done,
            false => Exit::CheckFailed,
        })
    }

    pub(super) fn job(self) -> Verify {
        Verify {
            file: self.file,
            source: self.source,
        }
    }
}
