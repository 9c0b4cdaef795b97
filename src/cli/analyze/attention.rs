//! `analyze attention`: how alike heads attend, and whether those with like
//! weights do.

use std::path::PathBuf;

use headshare_jobs::{AnalyzeAttention, Error};

use super::picture::PictureArgs;
use crate::cli::Exit;
use crate::cli::llama_cpp::Log;
use crate::cli::plan::parse_ratio;
use crate::cli::stdio;
use crate::cli::values::match_functions;
use crate::matching::MatchFunction;
use crate::process::output::Output;
use crate::render::analyze::attention::render;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// A GGUF file, plain or converted.
    file: PathBuf,
    /// The text that the model reads; - reads standard input.
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Tokens in each window.
    #[arg(short, long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(2..=131_072))]
    ctx: u32,
    /// Number of windows to average over, from the beginning of the text.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    windows: u32,
    /// Which parts of two units are compared. Several can be given, with commas
    /// between them; the text is read once.
    #[arg(
        long = "match",
        value_name = "FUNCTION",
        value_parser = match_functions(),
        value_delimiter = ',',
        default_value = "qk"
    )]
    functions: Vec<MatchFunction>,
    /// Also look at the units that would share at this ratio.
    #[arg(long, value_name = "A", default_value_t = 0.3, value_parser = parse_ratio,
        allow_negative_numbers = true)]
    ratio: f64,
    /// Number of threads [default: one for each physical core]
    #[arg(short, long, value_parser = clap::value_parser!(u32).range(1..=512))]
    threads: Option<u32>,
    #[command(flatten)]
    picture: PictureArgs,
    #[command(flatten)]
    log: Log,
    /// Print the result, with all similarities, as JSON.
    #[arg(long)]
    json: bool,
}

impl Args {
    pub(super) fn run(self, out: &Output) -> Result<Exit, Error> {
        let json = self.json;
        self.log.begin();
        let taken = stdio::taken(self.picture.written().as_slice(), json)?;
        let found = self.job().run(out)?;
        out.result_beside(taken, &found, json, render)?;
        Ok(Exit::Done)
    }

    pub(in crate::cli) fn job(self) -> AnalyzeAttention {
        AnalyzeAttention {
            file: self.file,
            text: self.text,
            ctx: self.ctx,
            windows: self.windows,
            functions: self.functions,
            ratio: self.ratio,
            threads: self.threads,
            picture: self.picture.output,
            force: self.picture.force,
        }
    }
}
