//! `inspect`: what a GGUF file holds, and what it shares.

use std::path::PathBuf;

use headshare_jobs::{Error, Inspect};

use super::Exit;
use crate::process::output::Output;
use crate::render::inspect::render;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A GGUF file, plain or converted.
    file: PathBuf,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

impl Args {
    pub(super) fn run(self, out: &Output) -> Result<Exit, Error> {
        let json = self.json;
        out.result(&self.job().run(out)?, json, render)?;
        Ok(Exit::Done)
    }

    pub(super) fn job(self) -> Inspect {
        Inspect { file: self.file }
    }
}
