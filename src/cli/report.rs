//! `report`: what sharing, or making it fit into so many bytes, does to one model, next to
//! what else could be done with it for the same bytes.

use std::path::PathBuf;

use headshare_jobs::{Error, Fits, MakeReport, MeasuredChoice, PICTURE};

use super::Exit;
use super::bench::TestArgs;
use super::calibration::bytes;
use super::eval::KindArg;
use super::fit::MovesArgs;
use super::llama_cpp::Threads;
use super::plan::parse_ratio;
use super::repair::RepairArgs;
use super::stdio;
use super::values::match_functions;
use crate::eval::choice::Kind;
use crate::eval::perplexity::MIN_CTX;
use crate::matching::MatchFunction;
use crate::process::output::Output;
use crate::report::markdown;

/// Measure what sharing, or fewer bytes, do to a model, and compare it with the
/// plain alternative.
///
/// SRC is converted at each ratio of --ratios, or to each size of --fit, and each file
/// is measured: bytes, weights in memory, perplexity, divergence from the source,
/// tasks, and speed in turns with the source. Beside each file stands the plain
/// alternative: the plain file that is as small because part of its tensors are stored
/// one type lower. With --fit, llama.cpp's files of at most that size stand there:
/// plain types, the same with an importance matrix, and its largest mixture that fits.
///
/// DIR holds the result (report.md, report.json, quality.svg, quality.png, and
/// match and subjects as pictures where they are asked for) and the measurements
/// (cells). If a report was stopped, the same command
/// continues it. What depends on a changed input, or on another build of this
/// program, is measured again; nothing else is.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("about").args(["ratios", "fit"]).required(true))]
#[command(group = clap::ArgGroup::new("fitted").args(["repair", "fit"]))]
#[command(group = clap::ArgGroup::new("measured").args(["repair", "fit"]).multiple(true))]
#[command(after_long_help = "\
Ratio 0 shares only what is byte-equal. In self-merges, that is a lot.

Do not measure on a text that was used to choose or repair anything: the result
would be too good.

Measure on a machine that does nothing else. Busy programs change the speed, and
pages that another program maps as well count half.")]
pub(super) struct Args {
    /// The model, a plain GGUF file.
    src: PathBuf,
    /// The shares of all units, from 0 to 1, that use another unit's weights,
    /// with commas between them. A unit is an attention head or, with
    /// grouped-query attention, a KV group.
    #[arg(long, value_name = "A,...", value_delimiter = ',', value_parser = parse_ratio,
        allow_negative_numbers = true)]
    ratios: Vec<f64>,
    /// Make the best model of at most so many bytes, such as 90M or 88000000, for each of
    /// these sizes, with commas between them, as `convert --fit` does, instead of sharing.
    #[arg(long, value_name = "BYTES,...", value_delimiter = ',', value_parser = bytes,
        requires = "calibrate", conflicts_with_all = ["repair", "functions"])]
    fit: Vec<u64>,
    #[command(flatten)]
    moves: MovesArgs,
    /// The text that --fit measures and fits on (UTF-8), and that llama.cpp's files get
    /// their importance matrix of; - reads standard input.
    #[arg(long, value_name = "TEXT", requires = "fit")]
    calibrate: Option<PathBuf>,
    /// The text to measure perplexity on (UTF-8); - reads standard input.
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// File with questions for `eval choice`: JSON lines, a JSON array, or the
    /// zip file of MMLU, C-Eval or CMMLU; - reads standard input. Can be given several
    /// times.
    #[arg(long = "task", value_name = "FILE")]
    tasks: Vec<PathBuf>,
    /// How to score the questions, if the fields of the file do not tell (see
    /// `eval choice --help`).
    #[arg(long, value_enum, requires = "tasks")]
    kind: Option<KindArg>,
    /// Tell accuracies by subject, too, for tasks that have subjects, such as the
    /// zip files of MMLU and CMMLU: in a table, and in DIR/subjects.svg, the source
    /// and each converted file side by side.
    #[arg(long, requires = "tasks")]
    subjects: bool,
    /// The folder of the report. If there is a report in it, it is continued.
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Which parts of two units are compared [default: qk]. Several can be given,
    /// with commas between them: each has its files at every ratio, and
    /// DIR/match.svg shows perplexity over ratio for each.
    #[arg(
        long = "match",
        value_name = "FUNCTION,...",
        value_parser = match_functions(),
        value_delimiter = ','
    )]
    functions: Vec<MatchFunction>,
    #[command(flatten)]
    repair: RepairArgs,
    /// Tokens in each window of the text.
    #[arg(short, long, value_name = "N", default_value_t = 512,
          value_parser = clap::value_parser!(u32).range(i64::from(MIN_CTX)..=1 << 24))]
    ctx: u32,
    /// Evaluate only this many windows, from the beginning.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    chunks: Option<u64>,
    /// Use only the first N questions of each task, and of each subject.
    #[arg(long, value_name = "N", requires = "tasks",
          value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    #[command(flatten)]
    test: TestArgs,
    #[command(flatten)]
    threads: Threads,
    /// How often speed is measured.
    #[arg(short, long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    repetitions: u32,
    /// Keep the models in DIR/files.
    #[arg(long)]
    keep: bool,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

impl Args {
    pub(super) fn run(self, out: &Output) -> Result<Exit, Error> {
        let json = self.json;
        let report = self.job()?.run(out)?;
        out.result(&report, json, |report| markdown::render(report, PICTURE))?;
        Ok(Exit::Done)
    }

    pub(super) fn job(self) -> Result<MakeReport, Error> {
        stdio::refuse(&self.output, "-o", "a report is a folder")?;
        self.repair.check_outputs()?;
        let texts = std::iter::once(("--text", self.text.as_path()));
        let tasks = self.tasks.iter().map(|path| ("--task", path.as_path()));
        let calibrate = self.calibrate.as_deref().map(|path| ("--calibrate", path));
        let streams = self.repair.streams().chain(calibrate);
        stdio::check_inputs(texts.chain(tasks).chain(streams))?;
        let measures = self.repair.measures(!self.functions.is_empty(), false)?;
        let repair = self.repair.calibration();
        let fit = self.calibrate.map(|text| Fits {
            sizes: self.fit,
            types: self.moves.types(),
            time: self.moves.time(),
            calibration: self.repair.calibrate_on(&text),
            stats: self.repair.stats(),
        });
        Ok(MakeReport {
            fit,
            measured: (measures && repair.is_some()).then(|| MeasuredChoice {
                units: self.repair.units(),
                stats: self.repair.stats(),
            }),
            repair,
            source: self.src,
            ratios: self.ratios,
            text: self.text,
            tasks: self.tasks,
            subjects: self.subjects,
            kind: self.kind.map(Kind::from),
            output: self.output,
            functions: self.functions,
            ctx: self.ctx,
            chunks: self.chunks,
            limit: self.limit,
            test: self.test.test()?,
            threads: self.threads.threads,
            repetitions: self.repetitions,
            keep: self.keep,
        })
    }
}
