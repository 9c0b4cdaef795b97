//! The steps of a run, told as they are done.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use headshare_train::{Ended, Progress, Train, TrainError, Trainer, speed};
use serde::Serialize;

use super::log::Log;
use crate::error::Context as _;
use crate::{Advice, Error, Ui, Unit};

/// Products of large matrices that are timed before training: some tenths of a second.
const TRIES: usize = 4;

/// How fast training was, evaluations not counted.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct TrainingSpeed {
    /// Tokens a second.
    pub tokens: f64,
    /// Floating-point operations a second, as 6 x parameters x tokens / time, where all
    /// parameters are trained.
    pub operations: Option<f64>,
    /// What products of large f32 matrices reached just before, in operations a second.
    pub products: f64,
}

/// What the steps of this run were like.
#[derive(Default)]
pub(super) struct Steps {
    /// The first, and the last.
    pub first: Option<Progress>,
    pub last: Option<Progress>,
    /// Of all of them.
    pub speed: Option<TrainingSpeed>,
    /// Why figures of some of them could not be written.
    pub failed: Option<Error>,
}

/// Takes the steps that are left, of `tokens` each, and adds each to `log`. Where there is
/// a file of the `state`, a run that is to end early ends with it. Figures that cannot be
/// written end nothing.
pub(super) fn take(
    trainer: &mut Trainer<'_>,
    (train, tokens): (Train, usize),
    state: Option<&Path>,
    log: &mut Log,
    ui: &dyn Ui,
) -> Result<Steps, Error> {
    let products = speed::products(TRIES).about(|| "products of matrices")?;
    let list = trainer.model().parameters().list();
    let parameters: usize = list.iter().map(|p| p.values().len()).sum();
    let bar = ui.bar("training", trainer.all_steps(), Unit::Parts);
    bar.set(trainer.step_count());
    let mut steps = Steps::default();
    let mut unwritten = None;
    let (mut seconds, mut done) = (0.0, 0);
    let mut said = String::new();
    let stop = match state {
        Some(_) => ui.stop(),
        None => Arc::<AtomicBool>::default(),
    };
    let mut failed = |error: Error| {
        ui.warning(&format!("{error}: training goes on without"));
        unwritten.get_or_insert(error);
    };
    trainer.begin()?;
    if let Some(start) = trainer.start().filter(|_| trainer.step_count() == 0) {
        log.begin(start).unwrap_or_else(&mut failed);
    }
    let (start, first) = (Instant::now(), trainer.step_count());
    let ended = trainer.run(&stop, &mut |progress| {
        bar.set(progress.step);
        if let Some(held_out) = progress.evaluation {
            said = format!(", held out {held_out:.4}");
        }
        let took = tokens as f64 / progress.tokens_per_second.max(1e-9);
        seconds += took;
        done += tokens;
        bar.say(&format!(
            "[{}/{}] loss {:.4}{said}, {:.0} tokens/s, {:.0} s left",
            progress.step,
            progress.steps,
            progress.loss,
            progress.tokens_per_second,
            (progress.steps - progress.step) as f64 * start.elapsed().as_secs_f64()
                / (progress.step - first).max(1) as f64
        ));
        log.add(progress).unwrap_or_else(&mut failed);
        steps.first.get_or_insert_with(|| progress.clone());
        steps.last = Some(progress.clone());
    });
    drop(bar);
    // From here on Ctrl-C ends the program.
    let was_stopped = stop.swap(true, Ordering::Relaxed);
    let ended = match (ended, state) {
        (Err(error @ TrainError::File(_)), Some(_)) => {
            let resumes = trainer.has_state();
            let error = Error::from(error);
            let is_full = error.advice == Some(Advice::MoreSpace);
            let error = error.about(format!("the state after step {}", trainer.step_count()));
            return Err(match is_full {
                true => error.advise(Advice::MoreSpaceForState { resumes }),
                false => error,
            });
        }
        (ended, _) => ended?,
    };
    steps.failed = unwritten;
    let is_stopped = ended == Ended::Stopped || was_stopped;
    if let (true, Some(state)) = (is_stopped, state) {
        let (step, state) = (trainer.step_count(), state.display());
        let what = format!("stopped after step {step}, with the state in {state}");
        return Err(Error::failed(anyhow::Error::msg(what)).advise(Advice::Resume));
    }
    let of_all = matches!(train, Train::All | Train::Scales);
    steps.speed = (done > 0).then(|| TrainingSpeed {
        tokens: done as f64 / seconds,
        operations: of_all.then(|| speed::work(parameters, done) / seconds),
        products,
    });
    Ok(steps)
}
