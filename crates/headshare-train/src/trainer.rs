//! The training loop as a value: steps, evaluations, checkpoints.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde::Serialize;

use crate::adam::Moments;
use crate::checkpoint::{self, Checkpoint, Checkpoints, Earlier, Position};
use crate::error::TrainError;
use crate::loss::pairs::HeadPairs;
use crate::loss::{self, Distillation, Losses, Objective};
use crate::model::Model;
use crate::pack::Packed;
use crate::parameters::Gradients;
use crate::random::shuffled;
use crate::settings::Settings;
use crate::trained::{Ready, Trained};
use crate::windows::Windows;

/// What a run says of itself after each step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Progress {
    /// Steps done.
    pub step: u64,
    /// Steps in all.
    pub steps: u64,
    /// The language-model loss over the step's tokens, in nats a token, where the model predicted
    /// any: pairs can be pulled together without.
    pub language: Option<f64>,
    /// The divergence from the other model, in nats a token.
    pub distillation: Option<f64>,
    /// The relative distance from the other model's residual stream, where it counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hidden: Option<f64>,
    /// L_w before the step.
    pub distance: Option<f64>,
    /// The weighted sum, which is what was made smaller.
    pub loss: f64,
    /// The same over the held-out windows after the step, of predictions alone, where it was
    /// evaluated. Paired heads share there, unless they are to stay apart.
    pub evaluation: Option<f64>,
    /// The step's learning rate.
    pub rate: f64,
    /// The norm of the gradients before they were clipped.
    pub gradient_norm: f64,
    /// Tokens a second.
    pub tokens_per_second: f64,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// All steps are done.
    Done,
    /// It was asked to stop, and its state is in the checkpoint.
    Stopped,
}

/// A model in training.
pub struct Trainer<'a> {
    model: Model,
    settings: Settings,
    data: Packed,
    teacher: Option<&'a Model>,
    pairs: Option<HeadPairs>,
    checkpoints: Option<Checkpoints>,
    trained: Trained,
    sums: Gradients,
    position: Position,
    /// The trained tensors' numbers at the best evaluation.
    best: Vec<Vec<f32>>,
    /// Whether the checkpoint is this run's: read or written by it.
    has_state: bool,
    /// The state is to be written as soon as its loss and gradients are known to be numbers.
    owes_state: bool,
    /// The order of this pass over the windows, with its number.
    order: Option<(u64, Vec<usize>)>,
    /// Whether [`begin`](Self::begin) has evaluated what is to be evaluated.
    has_begun: bool,
}

impl<'a> Trainer<'a> {
    /// Begins to train `model`; `teacher` is the other model of the distillation, and
    /// `pairs` are heads to pull together.
    ///
    /// # Errors
    /// When the settings make no sense together, or the model has nothing of what is
    /// to be trained.
    pub fn new(
        model: Model,
        settings: Settings,
        data: Packed,
        teacher: Option<&'a Model>,
        pairs: Option<HeadPairs>,
        checkpoints: Option<Checkpoints>,
    ) -> Result<Self, TrainError> {
        let train = settings.check(teacher.is_some(), pairs.is_some())?;
        data.train.check(model.vocabulary())?;
        let trained = Trained::new(&model, train, settings.seed)?;
        let position = Position::begin(&settings, &data, checkpoints.as_ref());
        Ok(Self {
            sums: trained.sums(&model),
            model,
            settings,
            data,
            teacher,
            pairs,
            checkpoints,
            trained,
            position,
            best: Vec::new(),
            has_state: false,
            owes_state: false,
            order: None,
            has_begun: false,
        })
    }

    /// Goes on where the checkpoint at `path` was written; the rest of the run is the
    /// same, byte for byte. Where `changes` are allowed, it may take its steps in another way:
    /// their number, rates and clipping, the optimiser's options, evaluations.
    ///
    /// # Errors
    /// When the checkpoint cannot be read, or is of another model or other arguments.
    pub fn resume(&mut self, path: &Path, changes: bool) -> Result<(), TrainError> {
        let mut read = Checkpoint::read(path)?;
        read.position.check(path, &self.position, changes)?;
        let (mut values, mut moments, mut best) = (Vec::new(), Vec::new(), Vec::new());
        let has_best = read.position.best.is_some();
        for tensor in self.trained.list() {
            let len = tensor.moments.first.len();
            let mut take = |kind| read.take(path, kind, &tensor.name, len);
            values.push(take("values")?);
            moments.push(Moments {
                first: take("first")?,
                second: take("second")?,
            });
            if has_best {
                best.push(take("best")?);
            }
        }
        self.trained.set_moments(moments)?;
        self.trained.restore(&mut self.model, values)?;
        self.best = best;
        if self.settings.evaluate_every == 0 {
            // Nothing is compared from here on, so the last numbers are taken.
            self.best.clear();
            read.position.best = None;
        }
        let settings = std::mem::take(&mut self.position.settings);
        self.position = read.position;
        if self.position.settings != settings {
            let until = self.position.step;
            let settings = std::mem::replace(&mut self.position.settings, settings);
            self.position.earlier.push(Earlier { until, settings });
        }
        self.has_state = self.checkpoints.as_ref().is_some_and(|c| c.path == path);
        Ok(())
    }

    /// The model as it is now.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Lets the last layers keep their activations, as [`Model::keep_layers`].
    pub fn keep_layers(&mut self, count: usize) {
        self.model.keep_layers(count);
    }

    /// About the bytes that a run takes when no layer keeps its activations: numbers,
    /// gradients, moments, the best so far, the other model, and what a pass over a batch keeps
    /// of each layer, and of one layer beside.
    pub fn bytes(&self) -> usize {
        let config = self.model.config();
        let tokens = self.settings.batch * self.data.train.length();
        let stream = 4 * tokens * config.width;
        let best = match self.settings.evaluate_every {
            0 => 0,
            _ => 4 * self.trained.count(),
        };
        let others = match self.settings.hidden > 0.0 {
            true => stream * config.layers.len(),
            false => 0,
        };
        let held = [
            self.model.parameters().bytes(),
            self.sums.bytes(),
            self.trained.bytes(),
            best,
            self.teacher.map_or(0, |model| model.parameters().bytes()),
            others,
            stream * (config.layers.len() + 1),
            // With the gradients of each.
            2 * self.model.layer_bytes(tokens),
        ];
        held.into_iter().sum()
    }

    /// Steps in all.
    pub fn all_steps(&self) -> u64 {
        self.settings.schedule.steps
    }

    /// Steps done.
    pub fn step_count(&self) -> u64 {
        self.position.step
    }

    /// The held-out loss before the first step, where it was evaluated.
    pub fn start(&self) -> Option<f64> {
        self.position.start
    }

    /// The best evaluation: after which step it was, and its loss.
    pub fn best(&self) -> Option<(u64, f64)> {
        self.position.best
    }

    /// Settings of the beginning of the run, where they were others.
    pub fn earlier(&self) -> &[Earlier] {
        &self.position.earlier
    }

    /// Whether the checkpoint is this run's: read or written by it.
    pub fn has_state(&self) -> bool {
        self.has_state
    }

    /// The heads to pull together.
    pub fn pairs(&self) -> Option<&HeadPairs> {
        self.pairs.as_ref()
    }

    /// The model at its best evaluation, or as it is where there was none.
    ///
    /// # Errors
    /// As [`Trained::restore`].
    pub fn into_best(mut self) -> Result<Model, TrainError> {
        if self.position.best.is_some() {
            self.trained.restore(&mut self.model, self.best)?;
        }
        Ok(self.model)
    }

    /// Evaluates the model before the first step: training that makes nothing better changes
    /// nothing. Also where a run that went on is evaluated from here on only.
    ///
    /// # Errors
    /// When the loss is no number.
    pub fn begin(&mut self) -> Result<(), TrainError> {
        let step = self.position.step;
        let evaluates = self.settings.evaluate_every > 0;
        let is_due = step == 0 || self.position.best.is_none();
        if evaluates && is_due && !std::mem::replace(&mut self.has_begun, true) {
            let loss = self.evaluate(step)?;
            if step == 0 {
                self.position.start = loss;
            }
        }
        Ok(())
    }

    /// [Begins](Self::begin), and runs the steps that are left. `progress` is called after each;
    /// when `stop` is set, the run ends after the step.
    ///
    /// # Errors
    /// When a loss or a gradient is no number, which says at which step, or the
    /// checkpoint cannot be written. A checkpoint that is there is of a good state: one
    /// that is due is written once the next step has found its loss and its gradients to be
    /// numbers.
    pub fn run(
        &mut self,
        stop: &AtomicBool,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<Ended, TrainError> {
        self.begin()?;
        while self.position.step < self.settings.schedule.steps {
            let said = self.step()?;
            progress(&said);
            let last = self.position.step == self.settings.schedule.steps;
            let stopped = !last && stop.load(Ordering::Relaxed);
            let every = self.checkpoints.as_ref().map_or(0, |c| c.every);
            let due = every > 0 && self.position.step.is_multiple_of(every);
            if last || stopped {
                self.prove(last)?;
                self.write_checkpoint()?;
            } else {
                self.owes_state |= due;
            }
            if stopped {
                return Ok(Ended::Stopped);
            }
        }
        Ok(Ended::Done)
    }

    /// One step, and the evaluation that may follow it.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn step(&mut self) -> Result<Progress, TrainError> {
        let start = Instant::now();
        let step = self.position.step + 1;
        let (batch, accumulate) = (self.settings.batch, self.settings.accumulate);
        let (losses, distance, loss, ready) = self.gradients(step)?;
        let computed = start.elapsed();
        if std::mem::take(&mut self.owes_state) {
            self.write_checkpoint()?;
        }
        let start = Instant::now();
        let rate = self.settings.schedule.rate(self.position.step);
        let optimiser = (self.settings.adam, rate, step);
        let (sums, clip) = (&self.sums, self.settings.clip);
        (self.trained).apply(&mut self.model, sums, &ready, optimiser, clip)?;
        self.position.step = step;
        self.position.windows += (batch * accumulate) as u64;
        let seconds = (computed + start.elapsed()).as_secs_f64();
        let every = self.settings.evaluate_every;
        let due = every > 0 && (step.is_multiple_of(every) || step == self.settings.schedule.steps);
        let a_token = |sum: f64| sum / losses.tokens.max(1) as f64;
        Ok(Progress {
            step,
            steps: self.settings.schedule.steps,
            language: (losses.tokens > 0).then(|| a_token(losses.language)),
            distillation: self.teacher.map(|_| a_token(losses.distillation)),
            hidden: (self.settings.hidden > 0.0).then(|| a_token(losses.hidden)),
            distance,
            loss,
            evaluation: match due {
                true => self.evaluate(step)?,
                false => None,
            },
            rate,
            gradient_norm: ready.norm,
            tokens_per_second: (batch * accumulate * self.data.train.length()) as f64 / seconds,
        })
    }

    /// The losses of the next step, the distance of pairs, the weighted sum of all, and the
    /// gradients' sums, made ready for the optimiser.
    ///
    /// # Errors
    /// When one is no finite number, which is said of `step`.
    fn gradients(&mut self, step: u64) -> Result<(Losses, Option<f64>, f64, Ready), TrainError> {
        let (batch, accumulate) = (self.settings.batch, self.settings.accumulate);
        self.sums.clear();
        let batches: Vec<Windows> = (0..accumulate)
            .map(|i| self.batch(self.position.windows + (i * batch) as u64))
            .collect();
        let tokens: usize = batches.iter().map(loss::predicted).sum();
        let objective = self.objective();
        let mut losses = Losses::default();
        if objective.language > 0.0 || objective.distillation.is_some() {
            for windows in &batches {
                let weight = 1.0 / tokens as f32;
                let more =
                    loss::add_gradients(&self.model, windows, &objective, weight, &self.sums)?;
                losses.add(&more);
            }
        }
        let gamma = self.settings.gamma;
        let pairs = self.pairs.as_ref();
        let distance = pairs.map(|pairs| pairs.add_gradients(&self.model, gamma, &self.sums));
        let loss = losses.total(&objective) + f64::from(gamma) * distance.unwrap_or(0.0);
        self.finite(step, "loss", loss)?;
        self.sums.fold_ties(self.model.parameters());
        let ready = self.trained.ready(&self.model, &self.sums)?;
        self.finite(step, "norm of the gradients", ready.norm)?;
        Ok((losses, distance, loss, ready))
    }

    /// Finds numbers that are of no use before they are written: the next step would have
    /// numbers as its loss and its gradients. After the `last` step, an evaluation tells enough
    /// where there is no state to go on from.
    fn prove(&mut self, last: bool) -> Result<(), TrainError> {
        let evaluates = self.settings.evaluate_every > 0 && self.data.held_out.is_some();
        if self.checkpoints.is_some() || !(last && evaluates) {
            self.gradients(self.position.step)?;
        }
        Ok(())
    }

    fn objective(&self) -> Objective<'a> {
        let Settings {
            language,
            distillation: divergence,
            hidden,
            ..
        } = self.settings;
        let teacher = self.teacher.filter(|_| divergence > 0.0 || hidden > 0.0);
        Objective {
            language,
            distillation: teacher.map(|teacher| Distillation {
                teacher,
                divergence,
                hidden,
            }),
        }
    }

    /// The windows from number `first` on, counted over all passes over the text, each
    /// of which has its own order.
    fn batch(&mut self, first: u64) -> Windows {
        let count = self.data.train.count();
        let mut which = Vec::with_capacity(self.settings.batch);
        for i in first..first + self.settings.batch as u64 {
            let pass = i / count as u64;
            if self.order.as_ref().is_none_or(|(of, _)| *of != pass) {
                self.order = Some((pass, shuffled(count, self.settings.seed, pass)));
            }
            if let Some((_, order)) = &self.order {
                which.push(order[(i % count as u64) as usize]);
            }
        }
        self.data.train.pick(&which)
    }

    /// The loss over the held-out windows of the model as it would be in the end; keeps the
    /// numbers that are the best so far.
    fn evaluate(&mut self, step: u64) -> Result<Option<f64>, TrainError> {
        let shares = self.pairs.as_ref().filter(|_| !self.settings.apart);
        let loss = match shares {
            Some(pairs) => {
                // Numbers are copied where they change only.
                let apart = self.model.parameters().clone();
                pairs.share(self.model.parameters_mut())?;
                let loss = self.held_out_loss();
                *self.model.parameters_mut() = apart;
                loss?
            }
            None => self.held_out_loss()?,
        };
        let Some(loss) = loss else {
            return Ok(None);
        };
        self.finite(step, "held-out loss", loss)?;
        let keeps = self.pairs.is_none() || shares.is_some();
        if keeps && self.position.best.is_none_or(|(_, best)| loss < best) {
            self.position.best = Some((step, loss));
            let tensors = self.trained.list();
            // In the place of those before: never twice in memory.
            self.best.resize_with(tensors.len(), Vec::new);
            for (best, tensor) in self.best.iter_mut().zip(tensors) {
                best.clear();
                best.extend_from_slice(self.trained.values(tensor, &self.model));
            }
        }
        Ok(Some(loss))
    }

    /// The loss of predictions over the held-out windows, where there are any.
    fn held_out_loss(&self) -> Result<Option<f64>, TrainError> {
        let Some(held_out) = &self.data.held_out else {
            return Ok(None);
        };
        let mut objective = self.objective();
        // What counts in the end are predictions.
        if let Some(of) = &mut objective.distillation {
            of.hidden = 0.0;
            if objective.language == 0.0 && of.divergence == 0.0 {
                of.divergence = 1.0;
            }
        } else if objective.language == 0.0 {
            objective.language = 1.0;
        }
        let all: Vec<usize> = (0..held_out.count()).collect();
        let mut losses = Losses::default();
        for which in all.chunks(self.settings.batch) {
            losses.add(&loss::losses(
                &self.model,
                &held_out.pick(which),
                &objective,
            )?);
        }
        Ok(Some(losses.total(&objective)))
    }

    fn finite(&self, step: u64, what: &'static str, value: f64) -> Result<(), TrainError> {
        if value.is_finite() {
            return Ok(());
        }
        let path = self.checkpoints.as_ref().map(|c| &c.path);
        let kept = path
            .filter(|_| self.has_state)
            .map_or(String::new(), |path| {
                format!("; the last good state is in {}", path.display())
            });
        Err(TrainError::NotFinite {
            step,
            what,
            value,
            kept,
        })
    }

    /// Writes the state to the checkpoint, where there is to be one.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_checkpoint(&mut self) -> Result<(), TrainError> {
        let Some(checkpoints) = &self.checkpoints else {
            return Ok(());
        };
        let mut tensors = Vec::new();
        let best = self.best.iter().map(Some).chain(std::iter::repeat(None));
        for (tensor, best) in self.trained.list().iter().zip(best) {
            let name = |kind: &str| format!("{kind}.{}", tensor.name);
            tensors.push((name("values"), self.trained.values(tensor, &self.model)));
            tensors.push((name("first"), &tensor.moments.first[..]));
            tensors.push((name("second"), &tensor.moments.second[..]));
            tensors.extend(best.map(|best| (name("best"), &best[..])));
        }
        checkpoint::write(&checkpoints.path, &self.position, &tensors)?;
        self.has_state = true;
        Ok(())
    }
}
