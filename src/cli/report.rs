//! `report`: what sharing does to one model, next to what else could be done with
//! it for the same bytes.

use std::path::PathBuf;

use headshare_jobs::{Error, MakeReport, MeasuredChoice, PICTURE};

use super::Exit;
use super::bench::TestArgs;
use super::eval::KindArg;
use super::output::Output;
use super::plan::{MatchArgs, parse_ratio};
use super::repair::RepairArgs;
use super::stdio;
use crate::eval::choice::Kind;
use crate::eval::perplexity::MIN_CTX;
use crate::report::markdown;

/// Measure what sharing does to a model, next to what else could be done for
/// the same bytes.
///
/// Converts SRC at each ratio and measures each file: bytes, resident bytes of
/// the weights, perplexity and divergence from the source, tasks, and speed in
/// turns with the source. Beside each stands its rival: the plain file that is
/// as small because part of its tensors are stored one type lower.
///
/// DIR holds the result (report.md, report.json, quality.svg, quality.png) and
/// what was measured (cells). The same command goes on where it was stopped;
/// what changed inputs make stale is measured again, and nothing else. Another
/// build of this program makes all of it stale.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Ratio 0 shares nothing but what is byte-equal: in self-merges, that is a lot.
A text that was used to choose or repair anything cannot tell how good it became.
Speed and memory are those of a machine with nothing else to do: while another
program has the model mapped, pages count half.")]
pub(super) struct Args {
    /// The model, a plain GGUF file.
    src: PathBuf,
    /// Shares of the units, from 0 to 1, that use another unit's weights.
    #[arg(long, value_name = "A,...", required = true, value_delimiter = ',',
        value_parser = parse_ratio, allow_negative_numbers = true)]
    ratios: Vec<f64>,
    /// The text that perplexity is of, UTF-8; - reads standard input.
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Questions for eval choice: jsonl, or the zip of MMLU or C-Eval; - reads
    /// standard input. May be given several times.
    #[arg(long = "task", value_name = "FILE")]
    tasks: Vec<PathBuf>,
    /// How to score the questions, where the fields do not tell (see eval
    /// choice --help).
    #[arg(long, value_enum, requires = "tasks")]
    kind: Option<KindArg>,
    /// The folder of the report; a report that is in it is continued.
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    #[command(flatten)]
    matching: MatchArgs,
    #[command(flatten)]
    repair: RepairArgs,
    /// Tokens of a window of the text.
    #[arg(short, long, value_name = "N", default_value_t = 512,
          value_parser = clap::value_parser!(u32).range(i64::from(MIN_CTX)..=1 << 24))]
    ctx: u32,
    /// Evaluate only this many windows, from the beginning.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    chunks: Option<u64>,
    /// Only the first questions of each task, and of each subject.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    #[command(flatten)]
    test: TestArgs,
    /// Threads [default: one a physical core, fewer while other programs are busy]
    #[arg(short, long, value_parser = clap::value_parser!(u32).range(1..=512))]
    threads: Option<u32>,
    /// Times that speed is measured.
    #[arg(short, long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    repetitions: u32,
    /// Keep the models that were made, in DIR/files.
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
        stdio::check_inputs(texts.chain(tasks).chain(self.repair.streams()))?;
        let measures = self.repair.measures(self.matching.is_given(), false)?;
        let repair = self.repair.calibration();
        Ok(MakeReport {
            measured: (measures && repair.is_some()).then(|| MeasuredChoice {
                units: self.repair.units(),
                stats: self.repair.stats(),
            }),
            repair,
            source: self.src,
            ratios: self.ratios,
            text: self.text,
            tasks: self.tasks,
            kind: self.kind.map(Kind::from),
            output: self.output,
            function: self.matching.function(),
            ctx: self.ctx,
            chunks: self.chunks,
            limit: self.limit,
            test: self.test.test()?,
            threads: self.threads,
            repetitions: self.repetitions,
            keep: self.keep,
        })
    }
}
