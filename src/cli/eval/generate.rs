//! `eval generate`: how close a model's continuations come to references.

use std::path::PathBuf;

use headshare_jobs::{ContinuePrompts, ContinuedPrompts, Error};

use super::common::{Common, line};
use crate::cli::Exit;
use crate::cli::llama_cpp::{OneModel, context_size};
use crate::cli::output::{Output, grouped};
use crate::eval::bleu::Bleu;

/// How close a model's continuations come to references.
///
/// Each prompt is continued greedily; the result is corpus BLEU as sacreBLEU
/// defines it (13a tokens, up to 4-grams, exp smoothing), 0 to 100. The file has
/// one object a line, or a JSON array of them: {"prompt": ..., "reference": ...},
/// or "references" with a list.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    model: OneModel,
    /// Prompts and references: jsonl, or a JSON array; - reads standard input.
    #[arg(long, value_name = "FILE")]
    task: PathBuf,
    /// Tokens to generate for each prompt, at most.
    #[arg(short, long, value_name = "N", default_value_t = 128,
          value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    n_predict: u32,
    /// Text that ends a continuation; may be given several times.
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    until: Vec<String>,
    /// Only the first prompts.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Tokens of context; 0 takes what the model was trained with [default: 4096, or
    /// what the model was trained with if that is less]
    #[arg(short, long, value_name = "N", value_parser = context_size(2..=u32::MAX))]
    ctx_size: Option<u32>,
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

    pub(in crate::cli) fn job(self) -> ContinuePrompts {
        ContinuePrompts {
            file: self.model.path().to_owned(),
            task: self.task,
            n_predict: self.n_predict,
            until: self.until,
            limit: self.limit,
            ctx_size: self.ctx_size,
            resolve: self.common.resolve,
            threads: self.common.threads,
        }
    }
}

fn render(done: &ContinuedPrompts) -> String {
    let Bleu {
        bleu,
        precisions: [p1, p2, p3, p4],
        brevity_penalty,
        hypothesis_len,
        reference_len,
    } = done.bleu;
    format!(
        "{}\n\n{}: {} prompts\nBLEU {bleu:.2}   {p1:.1}/{p2:.1}/{p3:.1}/{p4:.1} (BP {brevity_penalty:.3}, \
         {} tokens against {})",
        line(&done.measured),
        done.task,
        grouped(done.n as i128),
        grouped(hypothesis_len as i128),
        grouped(reference_len as i128),
    )
}
