//! `eval choice`: arguments and output; the scoring is in
//! [`crate::eval::choice`].

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context as _;
use clap::ValueEnum;
use headshare_runtime::{Context, ContextParams, Model};
use serde::Serialize;

use super::{Common, Measured, Subject};
use crate::cli::llama_cpp::{OneModel, context_size, own_if_0};
use crate::cli::output::{Output, grouped};
use crate::cli::run::RunError;
use crate::cli::{Exit, interrupt, stdio};
use crate::eval::choice::encode::encode;
use crate::eval::choice::plan::{Limits, Plan};
use crate::eval::choice::score::{DECODE, Scores, check, plan_alone, score, score_alone};
use crate::eval::choice::summary::{Summary, Verdict};
use crate::eval::choice::{Kind, SHOTS, Task};
use crate::input::text;

/// Tokens of the items that are in the context side by side, at most.
const TOKENS: usize = 480;
/// Sequences that there are at once, at most.
const SEQUENCES: usize = 64;

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
pub(super) struct Args {
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

/// What a task gave; the shape of its JSON. Times in ms.
#[derive(Debug, Serialize)]
struct TaskReport {
    #[serde(flatten)]
    summary: Summary,
    /// Tokens that were evaluated.
    tokens: usize,
    ms: f64,
}

/// Several tasks: the unweighted means of their accuracies.
#[derive(Debug, Serialize)]
struct Tasks {
    accuracy: f64,
    accuracy_norm: f64,
    stderr: Option<f64>,
    n: usize,
    tasks: Vec<TaskReport>,
}

/// What `eval choice` has to say; the shape of its JSON.
#[derive(Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    measured: Measured,
    #[serde(flatten)]
    result: Results,
}

/// One task has its figures at the top.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Results {
    One(Box<TaskReport>),
    Several(Tasks),
}

impl Args {
    pub(super) fn common(&self) -> &Common {
        &self.common
    }

    pub(super) fn run(self, out: &Output) -> anyhow::Result<Exit> {
        stdio::check_inputs(self.tasks.iter().map(|path| ("--task", path.as_path())))?;
        let limit = self.limit.map(|n| n as usize);
        let kind = self.kind.map(Kind::from);
        let tasks = (self.tasks.iter())
            .map(|path| Task::read(path, kind, limit))
            .collect::<Result<Vec<_>, _>>()?;
        for (task, path) in tasks.iter().zip(&self.tasks) {
            Self::warn_of_examples(task, path, out);
        }
        let subject = self.common.load(self.model.path(), out)?;
        let mut reports = Vec::with_capacity(tasks.len());
        for (task, path) in tasks.iter().zip(&self.tasks) {
            reports.push(self.task(task, path, &subject, out)?);
        }
        let report = Report {
            measured: Measured::from(&subject),
            result: match <[TaskReport; 1]>::try_from(reports) {
                Ok([one]) => Results::One(Box::new(one)),
                Err(several) => Results::Several(Tasks::of(several)),
            },
        };
        out.result(&report, self.common.json, render)?;
        Ok(Exit::Done)
    }

    /// Figures of MMLU and C-Eval are comparable with five examples in front.
    fn warn_of_examples(task: &Task, path: &Path, out: &Output) {
        for (shots, subjects) in task.short_of_examples() {
            out.warning(&format!(
                "{}: {shots} solved examples instead of {SHOTS} in front of the questions of {}",
                text::name(path),
                subjects.join(", ")
            ));
        }
    }

    fn task(
        &self,
        task: &Task,
        path: &Path,
        subject: &Subject,
        out: &Output,
    ) -> anyhow::Result<TaskReport> {
        let started = Instant::now();
        let of_task = || format!("{} on {}", self.model.path().display(), text::name(path));
        let n_ctx = item_context(&subject.model, self.ctx_size);
        let items = encode(task, &subject.model.vocab(), n_ctx as usize).with_context(of_task)?;
        // States are not shared as the tokens of a KV cache are.
        let alone = self.unbatched || subject.model.keeps_states();
        let plan = if alone {
            plan_alone(&items)
        } else {
            let limits = Limits {
                tokens: TOKENS,
                sequences: SEQUENCES,
            };
            Plan::new(&items, limits)
        };
        let params = ContextParams {
            n_ctx: Some(u32::try_from(plan.n_ctx.next_multiple_of(256))?),
            n_batch: DECODE as u32,
            n_ubatch: DECODE as u32,
            n_seq_max: u32::try_from(plan.n_sequences)?,
            kv_unified: true,
            n_threads: self.common.threads,
            reproducible: true,
            stop: interrupt::stop_flag(),
            ..ContextParams::default()
        };
        let mut context = Context::new(&subject.model, &params)?;
        context.check_generative().map_err(RunError::bad_input)?;
        let bar = out.bar("choice", plan.n_tokens as u64, false);
        let mut so_far = Counter::new(task);
        let mut watch = |scores: &[Scores], tokens: usize| {
            bar.set_position(tokens as u64);
            bar.set_message(so_far.count(scores));
        };
        let scores = if alone {
            score_alone(&mut context, &items, &mut watch)
        } else {
            score(&mut context, &items, &plan, &mut watch)
        };
        bar.finish_and_clear();
        let scores = scores.with_context(of_task)?;
        check(task, &scores).with_context(of_task)?;
        let truncated = items.iter().filter(|item| item.truncated).count();
        if truncated > 0 {
            out.warning(&format!(
                "{}: {truncated} items are longer than {n_ctx} tokens and lost their left end",
                text::name(path)
            ));
        }
        Ok(TaskReport {
            summary: Summary::new(task, &scores, truncated),
            tokens: plan.n_tokens,
            ms: started.elapsed().as_secs_f64() * 1000.0,
        })
    }
}

/// Tokens of context that an item may have with `model`, of which the user asked
/// for some number or for none.
pub(in crate::cli) fn item_context(model: &Model, asked: Option<u32>) -> u32 {
    // Positions that a model does not have cannot be evaluated at all.
    let positions = model.n_positions().unwrap_or(u32::MAX);
    own_if_0(asked.unwrap_or(0), model).min(positions)
}

/// The accuracy so far, for the progress bar.
struct Counter<'t> {
    task: &'t Task,
    items: Vec<&'t crate::eval::choice::Item>,
    done: usize,
    right: usize,
}

impl<'t> Counter<'t> {
    fn new(task: &'t Task) -> Self {
        Self {
            task,
            items: task.items().collect(),
            done: 0,
            right: 0,
        }
    }

    fn count(&mut self, scores: &[Scores]) -> String {
        for (item, scores) in self.items.iter().zip(scores).skip(self.done) {
            let verdict = Verdict::of(self.task.kind, item, scores);
            self.right += usize::from(verdict.plain);
            self.done += 1;
        }
        format!(
            "{} [{}/{}] accuracy {:.4}",
            self.task.name,
            self.done,
            self.items.len(),
            self.right as f64 / self.done.max(1) as f64
        )
    }
}

impl Tasks {
    fn of(tasks: Vec<TaskReport>) -> Self {
        let count = tasks.len().max(1) as f64;
        let mean = |of: fn(&TaskReport) -> f64| tasks.iter().map(of).sum::<f64>() / count;
        // Of a sum of independent numbers the squares of the errors add up.
        let squares: Option<f64> = (tasks.iter())
            .map(|task| task.summary.accuracy.stderr.map(|e| e * e))
            .sum();
        Self {
            accuracy: mean(|task| task.summary.accuracy.accuracy),
            accuracy_norm: mean(|task| task.summary.accuracy.accuracy_norm),
            stderr: squares.map(|sum| sum.sqrt() / count),
            n: tasks.iter().map(|task| task.summary.accuracy.n).sum(),
            tasks,
        }
    }
}

fn render(report: &Report) -> String {
    let figures = match &report.result {
        Results::One(task) => render_task(task),
        Results::Several(all) => {
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
    format!("{}\n\n{figures}", report.measured)
}

fn render_task(task: &TaskReport) -> String {
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
