//! `plan`: which heads would share, and what that saves.

use std::path::PathBuf;

use headshare_jobs::{Error, Job, MakePlan, PlanToFit};

use super::Exit;
use super::calibration::{SpendArgs, StatsArgs};
use super::fit::FitArgs;
use super::stdio::{self, Written};
use super::values::{match_functions, needed};
use crate::matching::MatchFunction;
use crate::process::output::Output;
use crate::render::plan::render;

#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("text").args(["calibrate"]))]
#[command(group = clap::ArgGroup::new("fitted").args(["fit"]))]
#[command(group = clap::ArgGroup::new("measured").args(["fit"]))]
#[command(mut_arg("fit", |arg| arg.conflicts_with_all(["function", "ratio"])))]
pub(super) struct Args {
    /// The model, a plain GGUF file.
    src: PathBuf,
    #[command(flatten)]
    matching: MatchArgs,
    /// The share of all units, from 0 to 1, that use another unit's weights. A
    /// unit is an attention head or, with grouped-query attention, a KV group.
    #[arg(long, value_name = "A", default_value_t = 0.3, value_parser = parse_ratio,
        allow_negative_numbers = true)]
    ratio: f64,
    #[command(flatten)]
    fit: FitArgs,
    /// Measure with this text (UTF-8) what --fit chooses by; `self` is what the model writes
    /// itself.
    #[arg(long, value_name = "TEXT", requires = "fit")]
    calibrate: Option<PathBuf>,
    #[command(flatten)]
    stats: StatsArgs,
    #[command(flatten)]
    spend: SpendArgs,
    /// Write the plan to this file, for `convert --plan`; - writes to standard
    /// output.
    #[arg(short, long, value_name = "PLAN.json")]
    output: Option<PathBuf>,
    /// Replace the output if it exists.
    #[arg(long)]
    force: bool,
    /// Print the plan as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, clap::Args)]
pub(super) struct MatchArgs {
    /// Which parts of two units are compared [default: qk]
    #[arg(long = "match", value_name = "FUNCTION", value_parser = match_functions())]
    function: Option<MatchFunction>,
}

impl MatchArgs {
    /// The match function.
    pub(super) fn function(self) -> MatchFunction {
        self.function.unwrap_or_default()
    }

    /// Whether one was asked for.
    pub(super) fn is_given(self) -> bool {
        self.function.is_some()
    }
}

pub(super) fn parse_ratio(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(ratio) if (0.0..=1.0).contains(&ratio) => Ok(ratio),
        _ => Err("must be a number from 0 to 1".to_owned()),
    }
}

impl Args {
    pub(super) fn run(self, out: &Output) -> Result<Exit, Error> {
        let json = self.json;
        let written = self.output.as_deref().map(|path| Written {
            flag: "-o",
            path,
            binary: false,
        });
        let taken = stdio::taken(written.as_slice(), json)?;
        let job = self.job()?;
        let planned = match &job {
            Job::PlanToFit(job) => job.run(out)?,
            Job::Plan(job) => job.run(out)?,
            _ => unreachable!("`plan` makes plans"),
        };
        out.result_beside(taken, &planned, json, render)?;
        Ok(Exit::Done)
    }

    pub(super) fn job(self) -> Result<Job, Error> {
        self.fit.refuse_alone()?;
        let calibrates = [("--calibrate", self.calibrate.is_some())];
        needed("--fit", self.fit.is_given(), calibrates)?;
        let Some(text) = self.calibrate.as_deref().filter(|_| self.fit.is_given()) else {
            return Ok(Job::Plan(MakePlan {
                source: self.src,
                function: self.matching.function(),
                ratio: self.ratio,
                output: self.output,
                force: self.force,
            }));
        };
        self.stats.check_outputs()?;
        let texts = std::iter::once(("--calibrate", text));
        stdio::check_inputs(texts.chain(self.stats.streams()))?;
        let calibration = self.spend.calibrate_on(text);
        Ok(Job::PlanToFit(PlanToFit {
            budget: self.fit.budget(calibration, self.stats.stats())?,
            source: self.src,
            output: self.output,
            force: self.force,
        }))
    }
}
