//! `bench`: speed, load time and memory of several files or ways to load one,
//! side by side.

use std::path::PathBuf;

use clap::ValueEnum;
use headshare_jobs::{Advice, Bench, Error, Resolve, SpeedTest};

use super::Exit;
use super::llama_cpp::Gpu;
use super::values::resolve;
use crate::process::output::Output;
use crate::render::bench;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// GGUF files, plain or converted.
    #[arg(value_name = "FILE", required_unless_present_any = ["stock", "models"])]
    files: Vec<PathBuf>,
    /// One more file, given as llama-bench expects it.
    #[arg(short, long = "model", value_name = "FILE")]
    models: Vec<PathBuf>,
    /// A plain file to compare with. It is measured in three ways: loaded by
    /// llama.cpp itself with mmap, by llama.cpp itself without mmap, and as
    /// `run` loads it. The first of these is the reference.
    #[arg(long, value_name = "FILE")]
    stock: Option<PathBuf>,
    #[command(flatten)]
    test: TestArgs,
    /// Numbers of threads, with commas between them; each is measured. "auto"
    /// is one for each physical core, and fewer while other programs are busy,
    /// as for `run`.
    #[arg(short, long, value_delimiter = ',', default_value = "auto", value_parser = threads)]
    threads: Vec<Threads>,
    /// Keep this many processors busy while measuring, as other programs would.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=512))]
    busy: u32,
    #[command(flatten)]
    gpu: Gpu,
    /// How often each configuration is measured.
    #[arg(short, long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    repetitions: u32,
    /// How shared blocks of converted files are loaded; with commas between
    /// several ways, each is measured.
    #[arg(long, value_delimiter = ',', default_value = "auto", value_parser = resolve())]
    resolve: Vec<Resolve>,
    /// Format of the result.
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

/// What is run, the same for every configuration; llama-bench's flags.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct TestArgs {
    /// Tokens of the prompt; 0 means that prefill is not measured.
    #[arg(short = 'p', long, default_value_t = 512)]
    n_prompt: u32,
    /// Tokens to generate; 0 means that decode is not measured.
    #[arg(short = 'n', long, default_value_t = 128)]
    n_gen: u32,
    /// Most tokens of the prompt that are handed to llama.cpp at once.
    #[arg(short, long, default_value_t = 2048, value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: u32,
    /// Most tokens that are computed at once (-ub).
    #[arg(long, visible_alias = "ub", default_value_t = 512,
          value_parser = clap::value_parser!(u32).range(1..))]
    ubatch_size: u32,
}

impl TestArgs {
    /// The test, where there is anything to measure.
    pub(super) fn test(&self) -> Result<SpeedTest, Error> {
        if self.n_prompt == 0 && self.n_gen == 0 {
            let error = Error::usage("-p 0 -n 0 leaves nothing to measure");
            return Err(error.advise(Advice::MeasureSomething));
        }
        Ok(SpeedTest {
            n_prompt: self.n_prompt,
            n_gen: self.n_gen,
            n_batch: self.batch_size,
            n_ubatch: self.ubatch_size,
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For the terminal: a table of speeds, and one of memory.
    Table,
    /// One Markdown table, as llama-bench prints it.
    Md,
    /// A JSON array with llama-bench's field names.
    Json,
}

/// A number of threads; `None` leaves it to the runtime.
type Threads = Option<u32>;

fn threads(text: &str) -> Result<Threads, String> {
    if text == "auto" {
        return Ok(None);
    }
    match text.parse() {
        Ok(n @ 1..=512) => Ok(Some(n)),
        _ => Err("it is not \"auto\" and no number from 1 to 512".to_owned()),
    }
}

impl Args {
    pub(super) fn run(self, out: &Output) -> Result<Exit, Error> {
        let output = self.output;
        self.gpu.remark(out);
        let rows = self.job()?.run(out)?;
        out.result(&rows, output == Format::Json, |rows| match output {
            Format::Md => bench::markdown(rows),
            _ => bench::table(rows),
        })?;
        Ok(Exit::Done)
    }

    pub(super) fn job(self) -> Result<Bench, Error> {
        Ok(Bench {
            test: self.test.test()?,
            stock: self.stock,
            files: self.files.into_iter().chain(self.models).collect(),
            threads: self.threads,
            busy: self.busy,
            repetitions: self.repetitions,
            resolve: self.resolve,
        })
    }
}
