//! `convert`: a smaller file, in which heads share their weights, or quantized.

use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::builder::TypedValueParser;
use headshare_jobs::{Change, Convert, Error, Removal};

use super::Exit;
use super::fit::FitArgs;
use super::plan::{MatchArgs, parse_ratio};
use super::quantize::QuantizeArgs;
use super::repair::RepairArgs;
use super::stdio;
use super::values::{baselines, needed};
use crate::baseline::Baseline;
use crate::input::text::is_stdio;
use crate::process::output::Output;
use crate::render::convert::render;

#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("text").args(["repair", "calibrate"]).multiple(true))]
#[command(group = clap::ArgGroup::new("fitted").args(["repair", "quantize", "fit", "plan"])
    .multiple(true))]
#[command(group = clap::ArgGroup::new("measured").args(["repair", "fit"]).multiple(true))]
#[command(group = clap::ArgGroup::new("reader").args(["baseline", "quantize", "fit", "plan"])
    .multiple(true))]
#[command(group = clap::ArgGroup::new("work").args(["ratio", "lossless", "plan", "quantize", "fit"])
    .multiple(true).required(true))]
#[command(mut_arg("fit", |arg| arg.conflicts_with_all(["quantize", "imatrix", "save_imatrix",
    "strength", "ridge", "damping", "ratio", "lossless", "plan", "repair"])))]
#[command(mut_arg("save_stats", |arg| arg.help_heading(MEASURING)))]
#[command(mut_arg("stats", |arg| arg.help_heading(MEASURING)))]
#[command(mut_arg("memory", |arg| arg.help_heading(MEASURING)))]
#[command(mut_arg("windows", |arg| arg.help_heading(MEASURING)))]
#[command(mut_arg("window", |arg| arg.help_heading(MEASURING)))]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// The model, a plain GGUF file.
    src: PathBuf,
    /// The file to write.
    #[arg(short, long, value_name = "OUT.gguf", help_heading = OUTPUT,
        required_unless_present = "dry_run")]
    output: Option<PathBuf>,
    #[command(flatten, next_help_heading = "What to do")]
    what: What,
    #[command(flatten, next_help_heading = SHARING)]
    matching: MatchArgs,
    /// Remove units instead, as other methods do: as many parameters of attention as
    /// sharing at --ratio saves, by this measure of importance. They are dropped from
    /// llama models and silenced in others, which saves nothing.
    #[arg(long, value_name = "HOW", value_parser = baselines(), requires = "ratio",
        help_heading = SHARING,
        conflicts_with_all = ["function", "choose", "units", "stats", "save_stats"])]
    baseline: Option<Baseline>,
    /// With --baseline, silence units also where they could be dropped.
    #[arg(long, requires = "baseline", help_heading = SHARING)]
    silence: bool,
    #[command(flatten, next_help_heading = SHARING)]
    repair: RepairArgs,
    #[command(flatten, next_help_heading = "Quantizing")]
    quantize: QuantizeArgs,
    #[command(flatten, next_help_heading = "Fitting into a size")]
    fit: FitArgs,
    /// Leave byte-equal weights as many times as they are there, instead of storing them
    /// once. If no heads share either, the output is a plain GGUF file.
    #[arg(long, conflicts_with = "lossless", help_heading = SHARING)]
    keep_duplicates: bool,
    /// Page size, in bytes, of the machines that will run the file.
    #[arg(long, value_name = "BYTES", default_value = "4096", help_heading = OUTPUT,
        value_parser = PossibleValuesParser::new(["4096", "16384", "65536"])
            .map(|text| text.parse::<u64>().expect("one of the listed numbers")))]
    page_size: u64,
    /// Show what would be done and what it saves, and write no model. Sizes are
    /// exact, unless "at most" stands before them: then they depend on what a
    /// repair finds. With --fit, -o FILE.svg draws what other sizes would cost.
    #[arg(long, help_heading = OUTPUT)]
    dry_run: bool,
    /// Replace the output if it exists.
    #[arg(long, help_heading = OUTPUT)]
    force: bool,
    /// Print the result as JSON.
    #[arg(long, help_heading = OUTPUT)]
    json: bool,
}

const OUTPUT: &str = "Output";
const MEASURING: &str = "Text, memory and time";
const SHARING: &str = "Sharing";

const EXAMPLES: &str = "\
Examples:
  The best file of at most 64 MB:
    convert MODEL.gguf --fit 64000000 --calibrate TEXT -o OUT.gguf
  A type of llama-quantize:
    convert MODEL-f16.gguf --quantize q4_K_M --calibrate TEXT -o OUT.gguf
  A self-merge, without loss:
    convert MODEL.gguf --lossless -o OUT.gguf";

#[derive(Debug, clap::Args)]
#[group(multiple = false)]
struct What {
    /// Let this share of all units, from 0 to 1, use another unit's weights. A
    /// unit is an attention head or, with grouped-query attention, a KV group.
    #[arg(long, value_name = "A", value_parser = parse_ratio, allow_negative_numbers = true)]
    ratio: Option<f64>,
    /// Store byte-equal weights once. `expand` gives the source back byte for
    /// byte.
    #[arg(long, conflicts_with_all = ["function", "repair", "quantize"])]
    lossless: bool,
    /// Carry out this plan, written by `plan -o` or by hand; - reads standard
    /// input.
    #[arg(long, value_name = "PLAN.json", conflicts_with = "function")]
    plan: Option<PathBuf>,
}

impl Args {
    pub(super) fn run(self, out: &Output) -> Result<Exit, Error> {
        let json = self.json;
        let done = self.job()?.run(out)?;
        out.result(&done, json, render)?;
        Ok(Exit::Done)
    }

    pub(super) fn job(self) -> Result<Convert, Error> {
        if let Some(output) = &self.output {
            let why = "a converted file's header is written last";
            stdio::refuse(output, "-o", why)?;
        }
        self.repair.check_outputs()?;
        self.quantize.check_outputs()?;
        let plan = self.what.plan.as_deref();
        let plan_input = plan.map(|path| ("--plan", path));
        let texts = self.repair.streams().chain(self.quantize.streams());
        stdio::check_inputs(plan_input.into_iter().chain(texts))?;
        self.refuse_alone()?;
        let measures = (self.repair).measures(self.matching.is_given(), plan.is_some())?;
        let repair = self.repair.calibration();
        let text = self.weighed_text()?;
        let change = match (self.what.ratio, self.what.plan, self.baseline) {
            (_, Some(file), _) => Change::Plan { file },
            (Some(ratio), _, Some(by)) => Change::Baseline(Removal {
                ratio,
                by,
                text,
                silence: self.silence,
            }),
            (Some(ratio), ..) if measures && repair.is_some() => Change::Measure {
                ratio,
                units: self.repair.units(),
                stats: self.repair.stats(),
            },
            (Some(ratio), ..) => Change::Match {
                ratio,
                function: self.matching.function(),
            },
            (None, None, _) => Change::Lossless,
        };
        let fit = match self.quantize.text().filter(|_| self.fit.is_given()) {
            Some(text) => {
                let calibration = self.repair.calibrate_on(text);
                Some(self.fit.budget(calibration, self.repair.stats())?)
            }
            None => None,
        };
        let planned = matches!(change, Change::Plan { .. });
        let quantize = self.quantize.job(&self.repair, planned)?;
        Ok(Convert {
            quantize,
            fit,
            source: self.src,
            output: self.output,
            change,
            keep_duplicates: self.keep_duplicates,
            repair,
            page_size: self.page_size,
            dry_run: self.dry_run,
            force: self.force,
        })
    }

    /// Refuses what says more of something that is not asked for.
    fn refuse_alone(&self) -> Result<(), Error> {
        self.fit.refuse_alone()?;
        self.quantize.refuse_alone()?;
        let has_ratio = self.what.ratio.is_some();
        let given = [
            ("--match", self.matching.is_given()),
            ("--baseline", self.baseline.is_some()),
        ];
        needed("--ratio", has_ratio, given)?;
        let silence = [("--silence", self.silence)];
        needed("--baseline", self.baseline.is_some(), silence)?;
        let chooses = has_ratio || self.what.plan.is_some();
        self.repair.refuse_alone(chooses, self.fit.is_given())
    }

    /// The text that a baseline weighs units with.
    fn weighed_text(&self) -> Result<Option<PathBuf>, Error> {
        let own = self.quantize.text();
        let read_again = self.quantize.is_given() || self.repair.calibration().is_some();
        let text = match self.baseline {
            Some(Baseline::LlmPruner) => {
                let repair = self.repair.calibration().map(|repair| repair.text);
                own.map(PathBuf::from).or(repair)
            }
            Some(Baseline::Magnitude) if own.is_some() && !self.quantize.is_given() => {
                return Err(Error::usage(
                    "--baseline magnitude reads no text; --calibrate is for llm-pruner",
                ));
            }
            _ => return Ok(None),
        };
        match text {
            None => Err(Error::usage(
                "--baseline llm-pruner needs a text for its gradients: --calibrate TEXT",
            )),
            Some(text) if is_stdio(&text) && read_again => Err(Error::usage(
                "the text is read twice, by --baseline llm-pruner too: it must be a file",
            )),
            text => Ok(text),
        }
    }
}
