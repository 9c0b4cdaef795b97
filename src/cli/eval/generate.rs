//! `eval generate`: how close a model's continuations come to references.

use std::path::PathBuf;

use headshare_jobs::{ContinuePrompts, Error};

use super::common::Common;
use crate::cli::Exit;
use crate::cli::llama_cpp::{OneModel, context_size};
use crate::cli::stdio;
use crate::process::output::Output;
use crate::render::eval::generate::render;

/// How close a model's continuations come to references.
///
/// Each prompt is continued greedily. The result is corpus BLEU from 0 to 100,
/// as sacreBLEU defines it (13a tokens, up to 4-grams, exp smoothing), and
/// METEOR (equal words, then equal stems, then synonyms where a list of them is
/// given; for English). The file has one JSON object in each line, or a JSON array of them: {"prompt": ...,
/// "reference": ...}, or "references" with a list.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    model: OneModel,
    /// File with prompts and references: JSON lines or a JSON array; - reads
    /// standard input.
    #[arg(long, value_name = "FILE")]
    task: PathBuf,
    /// Most tokens to generate for each prompt.
    #[arg(short, long, value_name = "N", default_value_t = 128,
          value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    n_predict: u32,
    /// End a continuation before this text. Can be given several times.
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    until: Vec<String>,
    /// Word list for METEOR: words of one line mean the same.
    #[arg(long, value_name = "FILE")]
    synonyms: Option<PathBuf>,
    /// Use only the first N prompts.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Context size in tokens; 0 means what the model was trained with
    /// [default: 4096, or what the model was trained with if that is less]
    #[arg(short, long, value_name = "N", value_parser = context_size(2..=u32::MAX))]
    ctx_size: Option<u32>,
    #[command(flatten)]
    common: Common,
}

impl Args {
    pub(in crate::cli) fn run(self, out: &Output) -> Result<Exit, Error> {
        self.common.begin(out);
        let synonyms = self
            .synonyms
            .iter()
            .map(|path| ("--synonyms", path.as_path()));
        stdio::check_inputs(synonyms.chain([("--task", self.task.as_path())]))?;
        let json = self.common.json;
        out.result(&self.job().run(out)?, json, render)?;
        Ok(Exit::Done)
    }

    pub(in crate::cli) fn job(self) -> ContinuePrompts {
        ContinuePrompts {
            file: self.model.path().to_owned(),
            task: self.task,
            n_predict: self.n_predict,
            until: self.until,
            synonyms: self.synonyms,
            limit: self.limit,
            ctx_size: self.ctx_size,
            resolve: self.common.resolve,
            threads: self.common.threads.threads,
        }
    }
}
