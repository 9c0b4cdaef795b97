//! `eval generate`: arguments and output; the work is in
//! [`crate::eval::generate`].

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use headshare_runtime::{Context, ContextParams};
use serde::Serialize;

use super::{Common, Measured};
use crate::cli::llama_cpp::{OneModel, context_size, own_if_0};
use crate::cli::output::{Output, grouped};
use crate::cli::run::RunError;
use crate::cli::{Exit, interrupt};
use crate::eval::bleu::Bleu;
use crate::eval::generate::{Params, Prompt, generate};
use crate::eval::task_file::task_name;
use crate::input::text;

/// How close a model's continuations come to references.
///
/// Each prompt is continued greedily; the result is corpus BLEU as sacreBLEU
/// defines it (13a tokens, up to 4-grams, exp smoothing), 0 to 100. The file has
/// one object a line, or a JSON array of them: {"prompt": ..., "reference": ...},
/// or "references" with a list.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
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

/// What `eval generate` has to say; the shape of its JSON. Times in ms.
#[derive(Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    measured: Measured,
    task: String,
    #[serde(flatten)]
    bleu: Bleu,
    n: usize,
    truncated: usize,
    tokens: usize,
    ms: f64,
    texts: Vec<String>,
}

impl Args {
    pub(super) fn common(&self) -> &Common {
        &self.common
    }

    pub(super) fn run(self, out: &Output) -> anyhow::Result<Exit> {
        let prompts = Prompt::read(&self.task, self.limit.map(|n| n as usize))?;
        let subject = self.common.load(self.model.path(), out)?;
        // Positions that a model does not have cannot be evaluated at all.
        let positions = subject.model.n_positions().unwrap_or(u32::MAX);
        let params = ContextParams {
            n_ctx: (self.ctx_size).map(|n_ctx| own_if_0(n_ctx, &subject.model).min(positions)),
            n_threads: self.common.threads,
            reproducible: true,
            stop: interrupt::stop_flag(),
            ..ContextParams::default()
        };
        let mut context = Context::new(&Arc::clone(&subject.model), &params)?;
        context.check_generative().map_err(RunError::bad_input)?;
        if self.n_predict >= context.n_ctx() {
            let message = format!(
                "{} tokens to generate (-n) leave no room for a prompt in a context of {} tokens",
                self.n_predict,
                context.n_ctx()
            );
            let hint = "generate less, or make the context larger (-c) if the model has positions";
            return Err(RunError::usage(message, Some(hint)).into());
        }
        let started = Instant::now();
        let bar = out.bar("generate", prompts.len() as u64, false);
        let params = Params {
            n_predict: self.n_predict as usize,
            until: self.until,
        };
        let generated = generate(&mut context, &prompts, &params, &mut |done, bleu| {
            bar.set_position(done as u64);
            bar.set_message(format!("[{done}/{}] BLEU {:.2}", prompts.len(), bleu.bleu));
        });
        bar.finish_and_clear();
        let generated = generated.with_context(|| {
            format!(
                "{} on {}",
                self.model.path().display(),
                text::name(&self.task)
            )
        })?;
        if generated.truncated > 0 {
            out.warning(&format!(
                "{} prompts were longer than the context leaves room for, and lost their left end",
                generated.truncated
            ));
        }
        let report = Report {
            measured: Measured::from(&subject),
            task: task_name(&self.task),
            bleu: generated.bleu,
            n: prompts.len(),
            truncated: generated.truncated,
            tokens: generated.n_tokens,
            ms: started.elapsed().as_secs_f64() * 1000.0,
            texts: generated.texts,
        };
        out.result(&report, self.common.json, render)?;
        Ok(Exit::Done)
    }
}

fn render(report: &Report) -> String {
    let Bleu {
        bleu,
        precisions: [p1, p2, p3, p4],
        brevity_penalty,
        hypothesis_len,
        reference_len,
    } = report.bleu;
    format!(
        "{}\n\n{}: {} prompts\nBLEU {bleu:.2}   {p1:.1}/{p2:.1}/{p3:.1}/{p4:.1} (BP {brevity_penalty:.3}, \
         {} tokens against {})",
        report.measured,
        report.task,
        grouped(report.n as i128),
        grouped(hypothesis_len as i128),
        grouped(reference_len as i128),
    )
}
