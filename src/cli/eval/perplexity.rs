//! `eval perplexity`: how well a model predicts a text.

use std::path::PathBuf;

use headshare_jobs::{Error, Perplexity};

use super::common::{Common, Fast};
use crate::cli::Exit;
use crate::cli::llama_cpp::{OneModel, context_size};
use crate::eval::perplexity::MIN_CTX;
use crate::process::output::Output;
use crate::render::eval::perplexity::render;

/// How well a model predicts a text, and how far it is from another model.
///
/// The figures are those of llama.cpp's llama-perplexity. The text is cut into
/// windows of --ctx tokens, and the second half of each window is scored.
/// Perplexities can be compared only for the same text, window and vocabulary.
///
/// With --base, a reference model reads the same tokens. Then the result also
/// has the mean, median, 99th percentile and maximum of the Kullback-Leibler
/// divergence from it; how often both models find the same token most probable;
/// the ratio of the perplexities; and how much the probability of the actual
/// token changes. These are the figures of llama-perplexity --kl-divergence,
/// without a file of logits.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
How to take the last fifth of a file, from the beginning of a line:
  tail -c \"$(( $(wc -c < text.txt) / 5 ))\" text.txt | tail -n +2 > last-fifth.txt")]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    model: OneModel,
    /// The text to measure perplexity on (UTF-8); - reads standard input.
    #[arg(short = 'f', long, alias = "file", value_name = "FILE")]
    text: PathBuf,
    /// Tokens in each window; 0 means what the model was trained with.
    #[arg(short, long, alias = "ctx-size", value_name = "N", default_value_t = 512,
          value_parser = context_size(MIN_CTX..=1 << 24))]
    ctx: u32,
    /// Evaluate only this many windows, from the beginning.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    chunks: Option<u64>,
    /// A reference model to compare with, usually the source.
    #[arg(long, value_name = "FILE")]
    base: Option<PathBuf>,
    /// Most tokens that are evaluated at once, in several windows or in a part
    /// of one. A smaller number needs less memory.
    #[arg(short, long, value_name = "N", default_value_t = 2048,
          value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    batch_size: u32,
    #[command(flatten)]
    fast: Fast,
    #[command(flatten)]
    common: Common,
}

impl Args {
    pub(in crate::cli) fn run(self, out: &Output) -> Result<Exit, Error> {
        self.common.begin(out);
        let json = self.common.json;
        out.result(&self.job().run(out)?, json, render)?;
        Ok(Exit::Done)
    }

    pub(in crate::cli) fn job(self) -> Perplexity {
        Perplexity {
            file: self.model.path().to_owned(),
            text: self.text,
            base: self.base,
            ctx: self.ctx,
            chunks: self.chunks,
            batch_size: self.batch_size,
            resolve: self.common.resolve,
            fast: self.fast.fast,
            threads: self.common.threads.threads,
        }
    }
}
