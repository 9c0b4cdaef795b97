//! What is measured of each file.

use headshare_eval::report::{Against, FileFacts, Paired, Quality, TaskScore};

use super::cell::{Cell, Measure};
use super::input::{By, Input};
use super::run::Run;
use super::target::Target;
use crate::Error;
use crate::bench::Bench;
use crate::convert::Calibration;
use crate::eval::{
    AgainstBase, Choice, ChoiceFigures, ChoiceResults, Perplexity, PerplexityFigures,
};
use crate::load::Resolve;
use crate::worker::Work;

/// Windows with which types are tried, at most.
const TRIED_WITH: u32 = 8;

/// All measures of a file, in the order in which they are taken.
#[derive(Debug)]
pub(super) struct Measures {
    pub perplexity: Measure<Perplexity>,
    /// One for each task; called by what the task holds, whatever its name and
    /// place.
    pub tasks: Vec<Measure<Choice>>,
    pub speed: Measure<Bench>,
}

impl Measures {
    /// Where their results are kept.
    pub fn cells(&self) -> impl Iterator<Item = &Cell> {
        let tasks = self.tasks.iter().map(|measure| &measure.cell);
        let others = [&self.perplexity.cell, &self.speed.cell];
        others.into_iter().chain(tasks)
    }
}

impl Run<'_> {
    pub fn measures(&self, target: &Target, made: &FileFacts) -> Result<Measures, Error> {
        let file = target.input(made);
        let source = &self.inputs.source;
        let beside = (!target.is_source()).then_some(source);
        let name = &target.name;
        let tasks = self.inputs.tasks.iter().map(|task| {
            let name = format!("{name}.task-{}", short(&task.file.digest));
            self.measure(name, |by| Choice {
                kind: self.job.kind,
                limit: self.job.limit,
                threads: self.job.threads,
                ..Choice::new(file.called(by), task.called(by))
            })
        });
        Ok(Measures {
            tasks: tasks.collect::<Result<_, _>>()?,
            perplexity: self.perplexity(format!("{name}.perplexity"), &file, beside)?,
            speed: self.measure(format!("{name}.speed"), |by| {
                let (stock, files) = match beside {
                    None => (Some(source.called(by)), Vec::new()),
                    Some(source) => (None, vec![source.called(by), file.called(by)]),
                };
                Bench {
                    stock,
                    files,
                    test: self.job.test,
                    threads: vec![self.job.threads],
                    busy: 0,
                    repetitions: self.job.repetitions,
                    resolve: vec![Resolve::Auto],
                }
            })?,
        })
    }

    /// How a file does against its rival, on the same tokens.
    pub fn pair(
        &self,
        (target, made): (&Target, &FileFacts),
        (rival, rival_made): (&Target, &FileFacts),
    ) -> Result<Measure<Perplexity>, Error> {
        let rival = rival.input(rival_made);
        let name = format!("{}.rival", target.name);
        self.perplexity(name, &target.input(made), Some(&rival))
    }

    /// How far a file is from the source on some of the text that is calibrated on.
    pub fn divergence(
        &self,
        target: &Target,
        made: &FileFacts,
        calibration: &Calibration,
    ) -> Result<Measure<Perplexity>, Error> {
        let file = target.input(made);
        let text = self.inputs.fitted.as_ref().unwrap_or(&self.inputs.text);
        self.measure(format!("{}.choice", target.name), |by| Perplexity {
            base: Some(self.inputs.source.called(by)),
            ctx: calibration.window,
            chunks: Some(u64::from(calibration.windows.min(TRIED_WITH))),
            threads: self.job.threads,
            ..Perplexity::new(file.called(by), text.called(by))
        })
    }

    fn perplexity(
        &self,
        name: String,
        file: &Input,
        base: Option<&Input>,
    ) -> Result<Measure<Perplexity>, Error> {
        self.measure(name, |by| Perplexity {
            base: base.map(|base| base.called(by)),
            ctx: self.job.ctx,
            chunks: self.job.chunks,
            threads: self.job.threads,
            ..Perplexity::new(file.called(by), self.inputs.text.called(by))
        })
    }

    /// The job that `make` makes where it calls files in one way or another.
    pub fn measure<J: Work>(
        &self,
        name: String,
        make: impl Fn(By) -> J,
    ) -> Result<Measure<J>, Error> {
        let command = make(By::Name).command_line();
        let command = command
            .iter()
            .map(|word| word.to_string_lossy().into_owned());
        Ok(Measure {
            cell: Cell {
                name,
                key: self.key_of_job(&make(By::Digest))?,
                command: command.collect(),
            },
            job: make(By::Place),
        })
    }
}

/// The beginning of a digest, without the name of the function.
fn short(digest: &str) -> &str {
    let hex = digest.rsplit(':').next().unwrap_or(digest);
    hex.get(..12).unwrap_or(hex)
}

/// What a report tells of a file's perplexity.
pub(super) fn quality(found: PerplexityFigures) -> Quality {
    Quality {
        perplexity: found.perplexity,
        stderr: found.stderr,
        tokens: found.tokens,
        chunks: found.chunks,
        against: found.base.map(|base| Against {
            ratio: base.ratio,
            ratio_stderr: base.ratio_stderr,
            ln_ratio: base.ln_ratio,
            ln_ratio_stderr: base.ln_ratio_stderr,
            kl_mean: base.kl_mean,
            kl_stderr: base.kl_stderr,
            kl_p99: base.kl_p99,
            same_top: base.same_top,
        }),
    }
}

/// How far a file is from the source.
pub(super) fn divergence(found: PerplexityFigures) -> Result<f64, Error> {
    Ok(compared(found)?.kl_mean)
}

fn compared(found: PerplexityFigures) -> Result<AgainstBase, Error> {
    found
        .base
        .ok_or_else(|| Error::failed(anyhow::anyhow!("nothing was compared with {}", found.text)))
}

/// What a report tells of a file against its rival.
pub(super) fn paired(found: PerplexityFigures) -> Result<Paired, Error> {
    let base = compared(found)?;
    Ok(Paired {
        ratio: base.ratio,
        ratio_stderr: base.ratio_stderr,
        ln_ratio: base.ln_ratio,
        ln_ratio_stderr: base.ln_ratio_stderr,
    })
}

/// What a report tells of a task.
pub(super) fn score(found: ChoiceFigures) -> Result<TaskScore, Error> {
    let task = match found.results {
        ChoiceResults::One(task) => task,
        ChoiceResults::Several(all) => {
            let message = format!("{} tasks were answered instead of one", all.tasks.len());
            return Err(Error::failed(anyhow::Error::msg(message)));
        }
    };
    Ok(TaskScore {
        task: task.summary.task,
        metric: task.summary.metric,
        accuracy: task.summary.accuracy,
        subjects: task.summary.subjects,
    })
}
