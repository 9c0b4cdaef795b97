//! `convert`: a smaller file in which heads share their weights.

use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::builder::TypedValueParser;
use headshare_jobs::{Change, Convert, Converted, Error};

use super::Exit;
use super::output::{Output, grouped, percent};
use super::plan::{MatchArgs, bounds, parse_ratio, render as render_plan, render_saved};
use super::repair::{RepairArgs, render as render_repair};
use super::stdio;
use crate::plan::Plan;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The model, a plain GGUF file.
    src: PathBuf,
    /// The file to write.
    #[arg(short, long, value_name = "OUT.gguf")]
    output: PathBuf,
    #[command(flatten)]
    what: What,
    #[command(flatten)]
    matching: MatchArgs,
    #[command(flatten)]
    repair: RepairArgs,
    /// Page size, in bytes, of the machines that will run the file.
    #[arg(long, value_name = "BYTES", default_value = "4096",
        value_parser = PossibleValuesParser::new(["4096", "16384", "65536"])
            .map(|text| text.parse::<u64>().expect("one of the listed numbers")))]
    page_size: u64,
    /// Show what would be done and what it saves, and write no model. Sizes are
    /// exact, unless "at most" stands before them: then they depend on what a
    /// repair finds.
    #[arg(long)]
    dry_run: bool,
    /// Replace the output if it exists.
    #[arg(long)]
    force: bool,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct What {
    /// Let this share of all units, from 0 to 1, use another unit's weights. A
    /// unit is an attention head or, with grouped-query attention, a KV group.
    #[arg(long, value_name = "A", value_parser = parse_ratio, allow_negative_numbers = true)]
    ratio: Option<f64>,
    /// Store byte-equal weights once. `expand` gives the source back byte for
    /// byte.
    #[arg(long, conflicts_with_all = ["function", "repair"])]
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
        stdio::refuse(
            &self.output,
            "-o",
            "a converted file's header is written last",
        )?;
        self.repair.check_outputs()?;
        let plan = self.what.plan.as_deref();
        let plan_input = plan.map(|path| ("--plan", path));
        stdio::check_inputs(plan_input.into_iter().chain(self.repair.streams()))?;
        let measures = (self.repair).measures(self.matching.is_given(), plan.is_some())?;
        let repair = self.repair.calibration();
        let change = match (self.what.ratio, self.what.plan) {
            (_, Some(file)) => Change::Plan { file },
            (Some(ratio), _) if measures && repair.is_some() => Change::Measure {
                ratio,
                units: self.repair.units(),
                stats: self.repair.stats(),
            },
            (Some(ratio), _) => Change::Match {
                ratio,
                function: self.matching.function(),
            },
            (None, None) => Change::Lossless,
        };
        Ok(Convert {
            source: self.src,
            output: self.output,
            change,
            repair,
            page_size: self.page_size,
            dry_run: self.dry_run,
            force: self.force,
        })
    }
}

fn render(done: &Converted) -> String {
    match &done.plan {
        Some(plan) if plan.reshapes() => {
            render_repair(done.repair.as_ref()) + &render_variant(done, plan)
        }
        Some(plan) => render_repair(done.repair.as_ref()) + &render_plan(plan, &done.sizes()),
        None => format!(
            "{}: byte-equal tensors and head blocks are stored once\n{}",
            done.source.path,
            render_saved(&done.sizes())
        ),
    }
}

/// What is said about a model with other shapes or types.
fn render_variant(done: &Converted, plan: &Plan) -> String {
    let mut doings = Vec::new();
    let mut say = |n: usize, what: &str| {
        if n > 0 {
            doings.push(format!("{n} {what}"));
        }
    };
    say(plan.narrows().count(), "feed-forward layers are narrower");
    say(plan.stores().count(), "tensors are stored at another type");
    let units = (plan.shares().count(), plan.drops().count());
    if let Some(all) = plan.choice.units.filter(|_| units != (0, 0)) {
        let (shared, gone) = units;
        doings.insert(
            0,
            format!("of {all} units {gone} go and {shared} use another unit's weights"),
        );
    }
    let mut text = format!(
        "{}: {} ({})\n",
        done.source.path,
        doings.join(", "),
        plan.choice
    );
    let [most, least] = bounds(done.at_most);
    text += &format!(
        "  file:     {} -> {most}{} bytes ({least}{} saved)\n  resident: {least}{} bytes saved\n",
        grouped(done.source.bytes),
        grouped(done.output.bytes),
        percent(done.saved.file_bytes, done.source.bytes),
        grouped(done.saved.resident_bytes)
    );
    if let Some(architecture) = &done.plain {
        text += &format!(
            "  a plain GGUF of llama.cpp's {architecture} architecture: any llama.cpp runs it\n"
        );
    }
    text
}
