//! `analyze ratios`: which layers of converted files share.

use std::path::PathBuf;

use headshare_jobs::{AnalyzeRatios, Error};

use super::picture::PictureArgs;
use crate::cli::Exit;
use crate::cli::stdio;
use crate::process::output::Output;
use crate::render::analyze::ratios::render;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// Files that `convert` has written.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    picture: PictureArgs,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

impl Args {
    pub(super) fn run(self, out: &Output) -> Result<Exit, Error> {
        let json = self.json;
        let taken = stdio::taken(self.picture.written().as_slice(), json)?;
        let found = self.job().run(out)?;
        out.result_beside(taken, &found, json, render)?;
        Ok(Exit::Done)
    }

    pub(in crate::cli) fn job(self) -> AnalyzeRatios {
        AnalyzeRatios {
            files: self.files,
            picture: self.picture.output,
            force: self.picture.force,
        }
    }
}
