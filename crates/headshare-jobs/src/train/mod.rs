//! Trains a model whose heads share weights, or shall share them.

mod encode;
mod importance;
mod log;
mod text;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use candle_core::Device;
use headshare_convert::convert::variant::Variant;
use headshare_convert::convert::{self, Fitted};
use headshare_convert::input::text::is_stdio;
use headshare_convert::input::{InputError, ModelFile};
use headshare_convert::plan::Plan;
use headshare_files::{AtomicFile, FileId};
use headshare_format::PageSize;
use headshare_stitch::MappedFile;
use headshare_train::loss::pairs::HeadPairs;
use headshare_train::sharing::{keep_silent, shared_blocks};
use headshare_train::{Checkpoints, Model, Packed, Progress, Settings, Trainer, Windows, pack};
use serde::{Deserialize, Serialize};

use crate::convert::{Calibration, Change, Convert, Converted};
use crate::error::Context as _;
use crate::{Error, Ui, Unit};
use encode::Output;
pub(crate) use importance::ranking;
use log::Log;
use text::Tokens;

/// The paper trains for this part of a pass over the text.
const PASSES: f64 = 0.5;

/// Trains a model and writes it, with its heads shared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainModel {
    /// The model, a plain GGUF file.
    #[serde(with = "crate::path")]
    pub source: PathBuf,
    /// The file to write.
    #[serde(with = "crate::path")]
    pub output: PathBuf,
    /// When heads share.
    pub method: Method,
    /// Which heads do, and what else changes.
    pub change: Change,
    /// Refits the layers after what has changed before training begins, on a text.
    pub repair: Option<Calibration>,
    /// The text to train on, UTF-8. The weights are fitted to it when they get their types
    /// again.
    pub text: Calibration,
    /// The part of the text, its end, that is held out.
    pub held_out: f64,
    /// How it is trained.
    pub settings: Settings,
    /// Steps; by default half a pass over the text, as in the paper.
    pub steps: Option<u64>,
    /// A file for the state, to go on from.
    pub checkpoint: Option<Checkpoint>,
    /// A file for the figures of each step, as JSON lines.
    #[serde(with = "crate::path::option")]
    pub log: Option<PathBuf>,
    /// Replaces outputs that are there.
    pub force: bool,
}

/// When heads share in training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// From the beginning: what is shared is one parameter.
    Tied,
    /// Afterwards: pairs of heads are pulled together while the model is trained (the
    /// paper's PostShare).
    Postshare,
}

/// Where the state of a run is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The file.
    #[serde(with = "crate::path")]
    pub file: PathBuf,
    /// Steps after which it is written again.
    pub every: u64,
    /// Goes on from what is there.
    pub resume: bool,
}

/// What training has made.
#[derive(Debug, Clone, Serialize)]
pub struct TrainedModel {
    /// The file, and what it saves.
    #[serde(flatten)]
    pub converted: Converted,
    /// Windows of the text that were trained on, and that were held out.
    pub windows: [usize; 2],
    /// Tokens of each.
    pub window: usize,
    /// Steps that were taken.
    pub steps: u64,
    /// The step with the lowest loss on what was held out, whose weights were taken, and
    /// that loss in nats a token; absent where nothing was held out, and where heads are
    /// pulled together: the last weights are taken then.
    pub best: Option<(u64, f64)>,
    /// The figures of the first step, of this run where it went on from another.
    pub first: Option<Progress>,
    /// The last step's.
    pub last: Option<Progress>,
    /// Of each pair of heads that was pulled together, the distance before and after.
    pub distances: Vec<[f64; 2]>,
}

impl TrainModel {
    /// Does it. The state and the figures are written meanwhile.
    ///
    /// # Errors
    /// When a file is bad, the model cannot be trained, the loss is no number any more, or
    /// an output cannot be written.
    pub fn run(&self, ui: &dyn Ui) -> Result<TrainedModel, Error> {
        let source = ModelFile::open_plain(&self.source)?;
        let resumes = self.checkpoint.as_ref().is_some_and(|c| c.resume);
        let change = Convert {
            repair: self.repair.clone(),
            // A run that goes on writes again what it has written.
            force: self.force || resumes,
            ..Convert::new(&self.source, &self.output, self.change.clone())
        };
        self.check(&change.input_files(&source)?, resumes)?;
        let (plan, fitted) = change.planned(&source, ui)?;
        let Some(mut plan) = plan else {
            return Err(Error::usage("there is no plan to train for"));
        };
        let digest = convert::digest_of(&source);
        convert::check_source(&plan, &source, &digest)?;
        plan.source = digest;
        let data = self.windows(ui)?;
        let steps = self.steps_for(&data);
        // Postshare trains the model as it is.
        let fitted = match self.method {
            Method::Tied => fitted,
            Method::Postshare => Fitted::default(),
        };
        let prepared = convert::prepare(&source, Some(plan.clone()), fitted, PageSize::KIB_4)?;
        let unchanged = Variant::unchanged(&source);
        let (variant, rows) = match self.method {
            Method::Tied => (&prepared.variant, shared_blocks(&plan, &prepared.variant)?),
            Method::Postshare if plan.reshapes() => {
                return Err(Error::usage(
                    "postshare pulls units together; what else a plan changes is for tied",
                ));
            }
            Method::Postshare => (&unchanged, shared_blocks(&plan, &unchanged)?),
        };
        let ties = match self.method {
            Method::Tied => rows.concat(),
            Method::Postshare => Vec::new(),
        };
        let mut model = Model::load(variant, &ties, &Device::Cpu)?;
        keep_silent(&mut model, &plan, variant)?;
        let pairs = match self.method {
            Method::Tied => None,
            Method::Postshare => Some(HeadPairs::new(&model, variant, &rows)?),
        };
        let before = pairs.as_ref().map(|pairs| pairs.distances(&model));
        let teacher = (self.settings.distillation > 0.0)
            .then(|| Model::load(&unchanged, &[], &Device::Cpu))
            .transpose()?;
        let mut settings = self.settings.clone();
        settings.schedule.steps = steps;
        let checkpoints = self.checkpoint.as_ref().map(|checkpoint| Checkpoints {
            path: checkpoint.file.clone(),
            every: checkpoint.every,
            model: plan.source.clone(),
            arguments: self.arguments(&plan),
        });
        let mut trainer = Trainer::new(
            model,
            settings,
            data.clone(),
            teacher.as_ref(),
            pairs.clone(),
            checkpoints,
        )?;
        if let Some(checkpoint) = self.checkpoint.as_ref().filter(|c| c.resume) {
            trainer.resume(&checkpoint.file)?;
        }
        let mut log = Log::open(self.log.as_deref(), trainer.step_count())?;
        let (first, last) = self.train(&mut trainer, steps, &mut log, ui)?;
        let best = trainer.best();
        let model = trainer.into_best()?;
        let after = pairs.as_ref().map(|pairs| pairs.distances(&model));
        let distances = before
            .into_iter()
            .flatten()
            .zip(after.into_iter().flatten());
        let distances = distances.map(|(before, after)| [before, after]).collect();
        let output = Output {
            path: &self.output,
            force: self.force,
            text: &self.text,
        };
        let converted = encode::write(output, &source, variant, &plan, model, &rows, ui)?;
        let held = data.held_out.as_ref().map_or(0, Windows::count);
        Ok(TrainedModel {
            converted,
            windows: [data.train.count(), held],
            window: data.train.length(),
            steps,
            best,
            first,
            last,
            distances,
        })
    }

    /// Finds out early what cannot be; `inputs` are files beside the text that are read.
    fn check(&self, inputs: &[FileId], resumes: bool) -> Result<(), Error> {
        let text = &self.text.text;
        if is_stdio(text) || text == Path::new("self") {
            return Err(Error::usage(
                "the text to train on is read twice: it must be a file",
            ));
        }
        let measures = matches!(self.change, Change::Measure { .. });
        if self.method == Method::Postshare && self.repair.is_some() && !measures {
            return Err(Error::usage(
                "postshare trains the model as it is: there is nothing to repair before",
            ));
        }
        let mut inputs = inputs.to_vec();
        inputs.push(MappedFile::open(text).map_err(InputError::from)?.id());
        AtomicFile::check(&self.output, self.force, &inputs)?;
        let mut taken = vec![std::path::absolute(&self.output).ok()];
        let state = self.checkpoint.iter().map(|c| &c.file);
        for path in self.log.iter().chain(state) {
            if is_stdio(path) {
                return Err(Error::usage(
                    "figures and the state of a run go to files, not to standard output",
                ));
            }
            let absolute = std::path::absolute(path).ok();
            if taken.contains(&absolute) {
                let file = path.display();
                return Err(Error::usage(format!("{file} is named for two outputs")));
            }
            taken.push(absolute);
            AtomicFile::check(path, self.force || resumes, &inputs)?;
        }
        Ok(())
    }

    /// The text's windows.
    fn windows(&self, ui: &dyn Ui) -> Result<Packed, Error> {
        let Tokens { text, begin } = Tokens::read(&self.source, &self.text.text)?;
        let packed = pack(&text, self.text.window as usize, begin, self.held_out);
        let packed = packed.about(|| self.text.text.display())?;
        if packed.held_out.is_none() {
            ui.remark("note: nothing is held out, so the last step's weights are taken");
        }
        Ok(packed)
    }

    fn steps_for(&self, data: &Packed) -> u64 {
        let a_step = (self.settings.batch * self.settings.accumulate).max(1) as f64;
        let half = (PASSES * data.train.count() as f64 / a_step).ceil() as u64;
        self.steps.unwrap_or(half.max(1))
    }

    /// What decides the run beside settings and windows.
    fn arguments(&self, plan: &Plan) -> String {
        let of = (self.method, &self.repair, plan.to_json());
        serde_json::to_string(&of).unwrap_or_default()
    }

    fn train(
        &self,
        trainer: &mut Trainer<'_>,
        steps: u64,
        log: &mut Log,
        ui: &dyn Ui,
    ) -> Result<(Option<Progress>, Option<Progress>), Error> {
        let bar = ui.bar("training", steps, Unit::Parts);
        bar.set(trainer.step_count());
        let (mut first, mut last) = (None, None);
        let mut failed = None;
        let mut said = String::new();
        let stop = AtomicBool::new(false);
        trainer.run(&stop, &mut |progress| {
            bar.set(progress.step);
            if let Some(held_out) = progress.evaluation {
                said = format!(", held out {held_out:.4}");
            }
            let left = (progress.steps - progress.step) as f64;
            let a_step = self.settings.batch * self.settings.accumulate * self.text.window as usize;
            let seconds = left * a_step as f64 / progress.tokens_per_second.max(1e-9);
            bar.say(&format!(
                "[{}/{}] loss {:.4}{said}, {:.0} tokens/s, {:.0} s left",
                progress.step, progress.steps, progress.loss, progress.tokens_per_second, seconds
            ));
            if let Err(error) = log.add(progress) {
                failed = Some(error);
                stop.store(true, std::sync::atomic::Ordering::Relaxed);
            }
            first.get_or_insert_with(|| progress.clone());
            last = Some(progress.clone());
        })?;
        match failed {
            Some(error) => Err(error),
            None => Ok((first, last)),
        }
    }
}
