//! How well a model answers multiple-choice questions; the scoring is in
//! [`headshare_eval::eval::choice`].

use std::path::{Path, PathBuf};
use std::time::Instant;

use headshare_convert::input::text;
use headshare_eval::eval::choice::encode::{ChoiceError, Encoded, encode};
use headshare_eval::eval::choice::schedule::{Limits, Schedule};
use headshare_eval::eval::choice::score::{
    DECODE, Scores, check, schedule_alone, score, score_alone,
};
use headshare_eval::eval::choice::summary::{Summary, Verdict};
use headshare_eval::eval::choice::{Item, Kind, SHOTS, Task};
use headshare_runtime::{Context, ContextParams, Model};
use serde::{Deserialize, Serialize};

use super::subject::{MeasuredFile, Subject};
use crate::context::in_positions;
use crate::error::Context as _;
use crate::load::Resolve;
use crate::{Error, Ui, Unit};

/// Tokens of the items that are in the context side by side, at most.
const TOKENS: usize = 480;
/// Sequences that there are at once, at most.
const SEQUENCES: usize = 64;

/// Measures how well a model answers multiple-choice questions, by the
/// log-probability of each choice, in the conventions of lm-evaluation-harness.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// The model, plain or converted.
    #[serde(with = "crate::path")]
    pub file: PathBuf,
    /// Questions: jsonl, a JSON array, or the zip of MMLU or C-Eval.
    #[serde(with = "crate::path::list")]
    pub tasks: Vec<PathBuf>,
    /// How to score, where the fields do not tell.
    pub kind: Option<Kind>,
    /// Only the first questions of each task, and of each subject.
    pub limit: Option<u32>,
    /// Tokens of context that an item may have; 0 takes what the model was trained
    /// with.
    pub ctx_size: u32,
    /// Evaluates every choice by itself: slow; to check the batches against.
    pub unbatched: bool,
    /// How shared blocks are brought into memory.
    pub resolve: Resolve,
    /// Computes with weights as F16 that ggml multiplies slowly as they are. The
    /// figures are not quite those of the file as it runs.
    pub fast: bool,
    /// Threads; by default one a physical core, fewer while other programs are
    /// busy.
    pub threads: Option<u32>,
}

/// How well a model answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChoiceFigures {
    /// The model.
    #[serde(flatten)]
    pub measured: MeasuredFile,
    /// Its answers.
    #[serde(flatten)]
    pub results: ChoiceResults,
}

/// One task has its figures at the top.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ChoiceResults {
    /// Of one task.
    One(Box<TaskFigures>),
    /// Of several.
    Several(SeveralTasks),
}

/// What a task gave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskFigures {
    /// Its accuracies.
    #[serde(flatten)]
    pub summary: Summary,
    /// Tokens that were evaluated.
    pub tokens: usize,
    /// Time that it took, in ms.
    pub ms: f64,
}

/// Several tasks, with the unweighted means of their accuracies.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SeveralTasks {
    /// By the sum of log-probabilities.
    pub accuracy: f64,
    /// By the sum over the choice's length.
    pub accuracy_norm: f64,
    /// Standard error of `accuracy`.
    pub stderr: Option<f64>,
    /// Questions of all.
    pub n: usize,
    /// Each task.
    pub tasks: Vec<TaskFigures>,
}

impl Choice {
    /// Of `file` on one task, as it is scored when nothing else is said.
    pub fn new(file: impl Into<PathBuf>, task: impl Into<PathBuf>) -> Self {
        Self {
            file: file.into(),
            tasks: vec![task.into()],
            kind: None,
            limit: None,
            ctx_size: 0,
            unbatched: false,
            resolve: Resolve::Auto,
            fast: false,
            threads: None,
        }
    }

    /// Does it.
    ///
    /// # Errors
    /// When there is no task, a file is bad, an item does not fit in the context,
    /// or the model computes nonsense.
    pub fn run(&self, ui: &dyn Ui) -> Result<ChoiceFigures, Error> {
        if self.tasks.is_empty() {
            return Err(Error::usage("there is no task to answer"));
        }
        let limit = self.limit.map(|n| n as usize);
        let tasks = (self.tasks.iter())
            .map(|path| Task::read(path, self.kind, limit))
            .collect::<Result<Vec<_>, _>>()?;
        for (task, path) in tasks.iter().zip(&self.tasks) {
            warn_of_examples(task, path, ui);
        }
        let subject = Subject::load(&self.file, self.resolve, self.fast, ui)?;
        let n_ctx = item_context(&subject.model, self.ctx_size);
        let vocab = subject.model.vocab();
        // What does not fit is found before anything is answered.
        let encoded = (tasks.iter().zip(&self.tasks))
            .map(|(task, path)| encode(task, &vocab, n_ctx as usize).about(|| self.of_task(path)))
            .collect::<Result<Vec<_>, _>>()?;
        let mut done = Vec::with_capacity(tasks.len());
        for ((task, path), items) in tasks.iter().zip(&self.tasks).zip(&encoded) {
            done.push(self.task((task, items, path), &subject, ui)?);
        }
        Ok(ChoiceFigures {
            measured: subject.measured(),
            results: match <[TaskFigures; 1]>::try_from(done) {
                Ok([one]) => ChoiceResults::One(Box::new(one)),
                Err(several) => ChoiceResults::Several(SeveralTasks::of(several)),
            },
        })
    }

    /// What an error is about.
    fn of_task(&self, path: &Path) -> String {
        format!("{} on {}", self.file.display(), text::name(path))
    }

    fn task(
        &self,
        (task, items, path): (&Task, &[Encoded], &Path),
        subject: &Subject,
        ui: &dyn Ui,
    ) -> Result<TaskFigures, Error> {
        let started = Instant::now();
        let of_task = || self.of_task(path);
        // States are not shared as the tokens of a KV cache are.
        let alone = self.unbatched || subject.model.keeps_states();
        let schedule = if alone {
            schedule_alone(items)
        } else {
            let limits = Limits {
                tokens: TOKENS,
                sequences: SEQUENCES,
            };
            Schedule::new(items, limits)
        };
        let size = |n: usize| u32::try_from(n).map_err(Error::failed);
        let params = ContextParams {
            n_ctx: Some(size(schedule.n_ctx.next_multiple_of(256))?),
            n_batch: DECODE as u32,
            n_ubatch: DECODE as u32,
            n_seq_max: size(schedule.n_sequences)?,
            kv_unified: true,
            n_threads: self.threads,
            reproducible: true,
            stop: ui.stop(),
            ..ContextParams::default()
        };
        let mut context = Context::new(&subject.model, &params)?;
        context.check_generative()?;
        let bar = ui.bar("choice", schedule.n_tokens as u64, Unit::Parts);
        let mut so_far = Counter::new(task);
        let mut watch = |scores: &[Scores], tokens: usize| {
            bar.set(tokens as u64);
            bar.say(&so_far.count(scores));
        };
        let scores = if alone {
            score_alone(&mut context, items, &mut watch)
        } else {
            score(&mut context, items, &schedule, &mut watch)
        };
        drop(bar);
        let scores = scores.map_err(ChoiceError::from).about(of_task)?;
        check(task, &scores).about(of_task)?;
        let truncated = items.iter().filter(|item| item.truncated).count();
        if truncated > 0 {
            ui.warning(&format!(
                "{}: {truncated} items are longer than {} tokens and lost their left end",
                text::name(path),
                item_context(&subject.model, self.ctx_size)
            ));
        }
        Ok(TaskFigures {
            summary: Summary::new(task, &scores, truncated),
            tokens: schedule.n_tokens,
            ms: started.elapsed().as_secs_f64() * 1000.0,
        })
    }
}

/// Figures of MMLU and C-Eval are comparable with five examples in front.
fn warn_of_examples(task: &Task, path: &Path, ui: &dyn Ui) {
    for (shots, subjects) in task.short_of_examples() {
        ui.warning(&format!(
            "{}: {shots} solved examples instead of {SHOTS} in front of the questions of {}",
            text::name(path),
            subjects.join(", ")
        ));
    }
}

/// Tokens of context that an item may have with `model`, where `asked` of them are
/// asked for, or 0 for the model's own.
pub fn item_context(model: &Model, asked: u32) -> u32 {
    in_positions(asked, model)
}

/// The accuracy so far, for the progress bar.
struct Counter<'t> {
    task: &'t Task,
    items: Vec<&'t Item>,
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

impl SeveralTasks {
    fn of(tasks: Vec<TaskFigures>) -> Self {
        let count = tasks.len().max(1) as f64;
        let mean = |of: fn(&TaskFigures) -> f64| tasks.iter().map(of).sum::<f64>() / count;
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

#[cfg(test)]
mod tests {
    use headshare_eval::eval::choice::summary::{Accuracy, SubjectSummary};

    use super::*;
    use crate::Resolved;
    use crate::json::from_json;

    fn figures(n: usize) -> TaskFigures {
        let accuracy = Accuracy {
            accuracy: 1.0 / 3.0,
            accuracy_norm: 0.1 + 0.2,
            stderr: None,
            stderr_norm: Some(1e-9),
            n,
        };
        let subject = SubjectSummary {
            subject: "s".into(),
            shots: Some(2),
            accuracy,
        };
        TaskFigures {
            summary: Summary {
                task: "t".into(),
                metric: Default::default(),
                kind: Kind::LastWord,
                form: "text".into(),
                shots: None,
                accuracy,
                perplexity: Some(2.5),
                mean_of_subjects: None,
                truncated: 1,
                subjects: vec![subject; n],
            },
            tokens: 7,
            ms: 0.7,
        }
    }

    #[test]
    fn figures_are_read_as_they_were_written() {
        let several = SeveralTasks::of(vec![figures(0), figures(2)]);
        for results in [
            ChoiceResults::One(Box::new(figures(0))),
            ChoiceResults::One(Box::new(figures(2))),
            ChoiceResults::Several(several),
        ] {
            let written = ChoiceFigures {
                measured: MeasuredFile {
                    file: "m.gguf".into(),
                    bytes: 1 << 40,
                    resolve: Resolved::FoldMap,
                    as_f16: None,
                },
                results,
            };
            let json = serde_json::to_string(&written).unwrap();
            assert_eq!(
                from_json::<ChoiceFigures>(&json).unwrap(),
                written,
                "{json}"
            );
        }
    }
}
