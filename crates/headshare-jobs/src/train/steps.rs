//! The steps of a run, told as they are done.

use std::sync::atomic::{AtomicBool, Ordering};

use headshare_train::{Progress, Train, Trainer, speed};
use serde::Serialize;

use super::log::Log;
use crate::error::Context as _;
use crate::{Error, Ui, Unit};

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
}

/// Takes the steps that are left, of `tokens` each, and adds each to `log`.
pub(super) fn take(
    trainer: &mut Trainer<'_>,
    (train, tokens): (Train, usize),
    log: &mut Log,
    ui: &dyn Ui,
) -> Result<Steps, Error> {
    let products = speed::products(TRIES).about(|| "products of matrices")?;
    let list = trainer.model().parameters().list();
    let parameters: usize = list.iter().map(|p| p.values().len()).sum();
    let bar = ui.bar("training", trainer.all_steps(), Unit::Parts);
    bar.set(trainer.step_count());
    let mut steps = Steps::default();
    let (mut seconds, mut done) = (0.0, 0);
    let mut failed = None;
    let mut said = String::new();
    let stop = AtomicBool::new(false);
    trainer.run(&stop, &mut |progress| {
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
            (progress.steps - progress.step) as f64 * took
        ));
        if let Err(error) = log.add(progress) {
            failed = Some(error);
            stop.store(true, Ordering::Relaxed);
        }
        steps.first.get_or_insert_with(|| progress.clone());
        steps.last = Some(progress.clone());
    })?;
    if let Some(error) = failed {
        return Err(error);
    }
    let of_all = matches!(train, Train::All | Train::Scales);
    steps.speed = (done > 0).then(|| TrainingSpeed {
        tokens: done as f64 / seconds,
        operations: of_all.then(|| speed::work(parameters, done) / seconds),
        products,
    });
    Ok(steps)
}
