//! `analyze predictions`: how well the divergence of plans is predicted.

use std::path::PathBuf;

use headshare_jobs::{AnalyzePredictions, Error};

use super::picture::PictureArgs;
use crate::cli::Exit;
use crate::cli::calibration::{SpendArgs, StatsArgs};
use crate::cli::fit::FitArgs;
use crate::cli::stdio;
use crate::process::output::Output;
use crate::render::analyze::predictions::render;

#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("text").args(["calibrate"]))]
#[command(group = clap::ArgGroup::new("fitted").args(["fit"]))]
#[command(group = clap::ArgGroup::new("measured").args(["fit"]))]
#[command(mut_arg("fit", |arg| arg.required(true)))]
pub(in crate::cli) struct Args {
    /// The model, a plain GGUF file.
    src: PathBuf,
    #[command(flatten)]
    fit: FitArgs,
    /// The text (UTF-8) that plans are measured and made with; `self` is what the model
    /// writes itself.
    #[arg(long, value_name = "TEXT")]
    calibrate: PathBuf,
    #[command(flatten)]
    stats: StatsArgs,
    #[command(flatten)]
    spend: SpendArgs,
    /// How many random plans are made. Each takes as long as fitting 8 windows and
    /// measuring 8 others.
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
            budget: self.fit.budget(calibration, self.stats.stats())?,
            source: self.src,
            plans: self.plans,
            seed: self.seed,
            picture: self.picture.output,
            force: self.picture.force,
        })
    }
}
