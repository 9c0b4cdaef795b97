//! `analyze predictions`: how well the divergence of plans is predicted.

use std::path::PathBuf;

use headshare_jobs::{AnalyzePredictions, Budget, Error};

use super::picture::PictureArgs;
use crate::cli::Exit;
use crate::cli::calibration::{SpendArgs, StatsArgs, bytes};
use crate::cli::fit::MovesArgs;
use crate::cli::stdio;
use crate::process::output::Output;
use crate::render::analyze::predictions::render;

#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("text").args(["calibrate"]))]
#[command(group = clap::ArgGroup::new("fitted").args(["fit"]))]
#[command(group = clap::ArgGroup::new("measured").args(["fit"]))]
pub(in crate::cli) struct Args {
    /// The model, a plain GGUF file.
    src: PathBuf,
    /// The size that the random plans have: at most so many bytes, and at least 95% of them,
    /// such as 88000000 or 84M.
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    fit: u64,
    #[command(flatten)]
    moves: MovesArgs,
    /// The text (UTF-8) that plans are measured and made with; `self` is what the model
    /// writes itself.
    #[arg(long, value_name = "TEXT")]
    calibrate: PathBuf,
    #[command(flatten)]
    stats: StatsArgs,
    #[command(flatten)]
    spend: SpendArgs,
    /// How many random plans are made. Each takes as long as fitting up to 8 windows and
    /// measuring up to 8 others.
    #[arg(long, value_name = "N", default_value = "20",
        value_parser = clap::value_parser!(u32).range(2..=1000))]
    plans: u32,
    /// What they are drawn with.
    #[arg(long, value_name = "N", default_value = "1")]
    seed: u64,
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
        let found = self.job()?.run(out)?;
        out.result_beside(taken, &found, json, render)?;
        Ok(Exit::Done)
    }

    pub(in crate::cli) fn job(self) -> Result<AnalyzePredictions, Error> {
        self.stats.check_outputs()?;
        let text = std::iter::once(("--calibrate", self.calibrate.as_path()));
        stdio::check_inputs(text.chain(self.stats.streams()))?;
        let calibration = self.spend.calibrate_on(&self.calibrate);
        Ok(AnalyzePredictions {
            budget: Budget {
                bytes: Some(self.fit),
                memory: None,
                types: self.moves.types(),
                calibration,
                stats: self.stats.stats(),
                time: self.moves.time(),
            },
            source: self.src,
            plans: self.plans,
            seed: self.seed,
            picture: self.picture.output,
            force: self.picture.force,
        })
    }
}
