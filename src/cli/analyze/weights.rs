//! `analyze weights`: how alike the weights of all heads are.

use std::path::PathBuf;

use headshare_jobs::{AnalyzeWeights, Error};

use super::picture::PictureArgs;
use crate::cli::Exit;
use crate::cli::plan::{MatchArgs, parse_ratio};
use crate::cli::stdio::{self, Written};
use crate::process::output::Output;
use crate::render::analyze::weights::render;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// A GGUF file, plain or converted.
    file: PathBuf,
    #[command(flatten)]
    matching: MatchArgs,
    /// Mark the pairs that would share at this ratio.
    #[arg(long, value_name = "A", default_value_t = 0.3, value_parser = parse_ratio,
        allow_negative_numbers = true)]
    ratio: f64,
    #[command(flatten)]
    picture: PictureArgs,
    /// Write the scores to this file, as a NumPy array of units by units (three
    /// of these with `--match separate`); - writes to standard output.
    #[arg(long, value_name = "FILE.npy")]
    npy: Option<PathBuf>,
    /// Print the result, with all scores, as JSON.
    #[arg(long)]
    json: bool,
}

impl Args {
    pub(super) fn run(self, out: &Output) -> Result<Exit, Error> {
        let json = self.json;
        let npy = self.npy.as_deref().map(|path| Written {
            flag: "--npy",
            path,
            binary: true,
        });
        let outputs: Vec<Written> = self.picture.written().into_iter().chain(npy).collect();
        let taken = stdio::taken(&outputs, json)?;
        let found = self.job().run(out)?;
        out.result_beside(taken, &found, json, render)?;
        Ok(Exit::Done)
    }

    pub(in crate::cli) fn job(self) -> AnalyzeWeights {
        AnalyzeWeights {
            file: self.file,
            function: self.matching.function(),
            ratio: self.ratio,
            picture: self.picture.output,
            npy: self.npy,
            force: self.picture.force,
        }
    }
}
