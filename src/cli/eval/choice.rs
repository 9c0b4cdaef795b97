//! `eval choice`: how well a model answers multiple-choice questions.

use std::path::PathBuf;

use clap::ValueEnum;
use headshare_jobs::{Choice, ChoiceFigures, ChoiceResults, Error, TaskFigures};

use super::common::{Common, line};
use crate::cli::llama_cpp::{OneModel, context_size};
use crate::cli::output::{Output, grouped};
use crate::cli::{Exit, stdio};
use crate::eval::choice::Kind;
use crate::eval::choice::summary::Summary;

/// How well a model answers multiple-choice questions.
///
/// Each choice is scored by the log-probability that the model gives it after
/// the question, in the conventions of lm-evaluation-harness: accuracy by the
/// sum over the choice's tokens, accuracy_norm by that sum over its length in
/// characters, with standard errors.
///
/// The fields of the first row tell the form of a file:
/// {query, choices, gold}; {context_options, continuation, gold} (WinoGrande's
/// partial scoring); {context, continuation} or {text} (LAMBADA: accuracy is
/// how often the model itself would have written the last word, and there is a
/// perplexity); PIQA, OpenBookQA, BoolQ, ARC, HellaSwag, SIQA, WinoGrande and
/// RACE (passage, question, options) as they are published; the zip files of
/// MMLU and C-Eval (5 examples from dev, each subject and the mean); and MMLU's
/// rows {question, choices, answer, subject}, which have no examples. PIQA and
/// SIQA, whose labels are published apart, need the label in the row, and
/// OpenBookQA as its authors publish it ({question: {stem, choices}, answerKey})
/// has ARC's fields: it needs --kind choices.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Models that keep a state instead of a KV cache (Mamba, RWKV and hybrids) are
always evaluated choice by choice.

Items longer than the context lose tokens at their left end, as in the harness;
their number is in the result. Rows with a query are put as they are, but for a
query that announces a `Question:`, which is completed by `Answer:`; --kind
choices and --kind question force one or the other.")]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    model: OneModel,
    /// Questions: jsonl, a JSON array, or the zip of MMLU or C-Eval; - reads
    /// standard input. May be given several times.
    #[arg(long = "task", value_name = "FILE", required = true)]
    tasks: Vec<PathBuf>,
    /// How to score, where the fields do not tell.
    #[arg(long, value_enum)]
    kind: Option<KindArg>,
    /// Only the first questions of each task, and of each subject.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Tokens of context that an item may have [default: what the model was trained
    /// with, as 0 says]
    #[arg(short, long, value_name = "N", value_parser = context_size(2..=1 << 24))]
    ctx_size: Option<u32>,
    /// Evaluate every choice by itself: slow; to check the batches against.
    #[arg(long)]
    unbatched: bool,
    #[command(flatten)]
    common: Common,
}

/// How items are scored; names of tasks stand for what is usual for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum KindArg {
    /// The query as it is, then each choice.
    #[value(aliases = ["openbookqa", "hellaswag", "race"])]
    Choices,
    /// `Question: ...`, a line with `Answer:`, then each choice.
    #[value(aliases = ["piqa", "boolq", "arc", "siqa"])]
    Question,
    /// The choices listed as A, B, ...; the letters are scored.
    #[value(aliases = ["mmlu", "ceval"])]
    Letters,
    /// One continuation after each of several contexts.
    #[value(aliases = ["winogrande"])]
    Partial,
    /// Whether the model would write the continuation.
    #[value(aliases = ["lambada"])]
    LastWord,
}

impl From<KindArg> for Kind {
    fn from(kind: KindArg) -> Self {
        match kind {
            KindArg::Choices => Self::Choices,
            KindArg::Question => Self::Question,
            KindArg::Letters => Self::Letters,
            KindArg::Partial => Self::Partial,
            KindArg::LastWord => Self::LastWord,
        }
    }
}

impl Args {
    pub(in crate::cli) fn run(self, out: &Output) -> Result<Exit, Error> {
        self.common.begin(out);
        stdio::check_inputs(self.tasks.iter().map(|path| ("--task", path.as_path())))?;
        let json = self.common.json;
        out.result(&self.job().run(out)?, json, render)?;
        Ok(Exit::Done)
    }

    pub(in crate::cli) fn job(self) -> Choice {
        Choice {
            file: self.model.path().to_owned(),
            tasks: self.tasks,
            kind: self.kind.map(Kind::from),
            limit: self.limit,
            ctx_size: self.ctx_size.unwrap_or(0),
            unbatched: self.unbatched,
            resolve: self.common.resolve,
            threads: self.common.threads,
        }
    }
}

fn render(figures: &ChoiceFigures) -> String {
    let results = match &figures.results {
        ChoiceResults::One(task) => render_task(task),
        ChoiceResults::Several(all) => {
            let tasks: Vec<_> = all.tasks.iter().map(render_task).collect();
            format!(
                "{}\n\nmean of {} tasks: accuracy {}, accuracy_norm {:.4}",
                tasks.join("\n\n"),
                all.tasks.len(),
                with_error(all.accuracy, all.stderr),
                all.accuracy_norm
            )
        }
    };
    format!("{}\n\n{results}", line(&figures.measured))
}

fn render_task(task: &TaskFigures) -> String {
    let Summary { accuracy, kind, .. } = &task.summary;
    let mut lines = vec![
        format!(
            "{}: {} questions, scored as {}",
            task.summary.task,
            grouped(accuracy.n as i128),
            kind.name()
        ),
        format!(
            "accuracy       {}",
            with_error(accuracy.accuracy, accuracy.stderr)
        ),
        format!(
            "accuracy_norm  {}",
            with_error(accuracy.accuracy_norm, accuracy.stderr_norm)
        ),
    ];
    if let Some(perplexity) = task.summary.perplexity {
        lines.push(format!("perplexity     {perplexity:.4}"));
    }
    if let Some(mean) = task.summary.mean_of_subjects {
        lines.push(format!(
            "subjects       {mean:.4} (mean of their accuracies)"
        ));
    }
    let width = |subject: &String| subject.chars().count();
    let names = task.summary.subjects.iter().map(|s| &s.subject);
    let widest = names.map(width).max().unwrap_or(0);
    for subject in &task.summary.subjects {
        lines.push(format!(
            "  {:widest$}  {}  of {}",
            subject.subject,
            with_error(subject.accuracy.accuracy, subject.accuracy.stderr),
            subject.accuracy.n
        ));
    }
    lines.join("\n")
}

fn with_error(value: f64, stderr: Option<f64>) -> String {
    match stderr {
        Some(stderr) => format!("{value:.4} ± {stderr:.4}"),
        None => format!("{value:.4}"),
    }
}
