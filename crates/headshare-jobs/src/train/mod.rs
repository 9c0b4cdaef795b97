//! Trains a model whose heads share weights, or shall share them.

mod curves;
mod device;
mod encode;
mod importance;
mod log;
mod state;
mod steps;
mod text;

use std::path::{Path, PathBuf};

use candle_core::Device;
use headshare_convert::convert::variant::{EMBEDDING, Variant};
use headshare_convert::convert::{self, Fitted};
use headshare_convert::input::text::is_stdio;
use headshare_convert::input::{InputError, ModelFile};
use headshare_convert::model::{Part, RowsRange};
use headshare_convert::plan::{Edit, Plan};
use headshare_convert::quantize::types::Wanted;
use headshare_convert::repair::choose::Units;
use headshare_files::{AtomicFile, FileId};
use headshare_format::alias::format_digest;
use headshare_format::{PageSize, TensorInfo};
use headshare_stitch::MappedFile;
use headshare_train::checkpoint::Earlier;
use headshare_train::loss::check_alike;
use headshare_train::loss::pairs::HeadPairs;
use headshare_train::sharing::{keep_silent, shared_blocks};
use headshare_train::{Config, Model, Packed, Progress, Settings, Train, Trainer, Windows, pack};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::convert::{Calibration, Change, Convert, Converted, read_text, unplanned};
use crate::error::Context as _;
use crate::{Error, Ui, Unit};
pub use device::TrainOn;
use encode::{Encoded, Encoding};
pub(crate) use importance::ranking;
use log::{At, Log};
pub use state::Checkpoint;
use state::{Run, choice};
pub use steps::TrainingSpeed;
use text::Tokens;

/// The paper trains for this part of a pass over the text.
const PASSES: f64 = 0.5;

/// Bytes beside what a run is known to take: logits, copies, the program.
const BESIDE: usize = 512 << 20;

/// The pages of the file that is written.
const PAGE: PageSize = PageSize::KIB_4;

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
    /// What it is trained on.
    #[serde(default)]
    pub device: TrainOn,
    /// The model that distillation learns from, a plain GGUF file of the same
    /// vocabulary; by default the source.
    #[serde(with = "crate::path::option")]
    pub teacher: Option<PathBuf>,
    /// The types that tensors get; by default those that they had.
    pub quantize: Option<Wanted>,
    /// Steps; by default half a pass over the text, as in the paper.
    pub steps: Option<u64>,
    /// A file for the state, to go on from.
    pub checkpoint: Option<Checkpoint>,
    /// A file for the figures of each step, as JSON lines.
    #[serde(with = "crate::path::option")]
    pub log: Option<PathBuf>,
    /// A file for a picture of the losses over the steps, `.svg` or `.png`.
    #[serde(with = "crate::path::option")]
    pub curves: Option<PathBuf>,
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

/// What a file says of its training.
#[derive(Serialize)]
struct TrainedBy<'a> {
    method: Method,
    steps: u64,
    /// The step whose weights were taken, and the loss on what was held out.
    best: Option<(u64, f64)>,
    settings: &'a Settings,
    /// Settings of the steps before.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    earlier: Vec<Earlier>,
    /// Digest of the text.
    text: String,
    windows: usize,
    held_out: usize,
    window: u32,
    /// Digest of the model that was learned from, where that is not the source.
    teacher: Option<String>,
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
    /// The loss on what was held out before the first step, in nats a token.
    pub start: Option<f64>,
    /// The step with the lowest such loss, whose weights were taken, and that loss: step 0
    /// where training made nothing better; absent where nothing was held out, and where pairs
    /// stay apart: the last weights are taken then.
    pub best: Option<(u64, f64)>,
    /// The figures of the first step, of this run where it went on from another.
    pub first: Option<Progress>,
    /// The last step's.
    pub last: Option<Progress>,
    /// How fast the steps of this run were.
    pub speed: Option<TrainingSpeed>,
    /// Of each pair of heads that was pulled together, the distance before and after.
    pub distances: Vec<PairDistance>,
}

/// How far apart a pair of heads was, and is: the sum over what is shared of the Frobenius
/// norm of the difference.
#[derive(Debug, Clone, Serialize)]
pub struct PairDistance {
    /// The unit that uses the other's weights.
    pub alias: String,
    /// The unit whose weights are used.
    pub donor: String,
    /// What is shared.
    pub parts: Vec<Part>,
    /// Before training.
    pub before: f64,
    /// After it.
    pub after: f64,
}

/// The paper's N: of each of q, k and v as many pairs as share it.
fn pair_count(plan: &Plan) -> usize {
    let of = |part: &Part| plan.shares().filter(|s| s.parts.contains(part)).count();
    Part::ALL.iter().map(of).max().unwrap_or(0)
}

impl TrainModel {
    /// Does it. The state and the figures are written meanwhile.
    ///
    /// # Errors
    /// When a file is bad, the model cannot be trained, the loss is no number any more, or
    /// an output cannot be written.
    pub fn run(&self, ui: &dyn Ui) -> Result<TrainedModel, Error> {
        // One for both models: what is made on two cannot meet.
        let device = self.device.device()?;
        let source = ModelFile::open_plain(&self.source)?;
        let teacher = self
            .teacher
            .as_deref()
            .map(ModelFile::open_plain)
            .transpose()?;
        let resumes = self.checkpoint.as_ref().is_some_and(|c| c.resume);
        let change = Convert {
            repair: self.repair.clone(),
            // A run that goes on writes again what it has written.
            force: self.force || resumes,
            ..Convert::new(&self.source, &self.output, self.change.clone())
        };
        let mut inputs = change.input_files(&source)?;
        inputs.extend(teacher.iter().map(|file| file.file.id()));
        let inputs = self.check(&inputs, resumes)?;
        self.check_models(&source, teacher.as_ref())?;
        for file in teacher.iter().chain([&source]) {
            file.require_numbers()?;
        }
        let text = read_text(&self.text.text)?;
        let data = self.windows(&text, ui)?;
        let steps = self.steps_for(&data);
        let mut settings = self.settings.clone();
        settings.schedule.steps = steps;
        let said = settings.clone();
        let digest = convert::digest_of(&source);
        let teacher_digest = teacher.as_ref().map(convert::digest_of);
        let run = Run {
            checkpoint: self.checkpoint.as_ref(),
            model: &digest,
            arguments: json!({
                "method": self.method,
                "device": self.device,
                "window": self.text.window,
                "held_out": self.held_out,
                "teacher": teacher_digest,
                "choice": choice(&self.change),
            }),
        };
        let has_state = run.check_state(&settings, &data, ui)?;
        let at = match &self.checkpoint {
            Some(checkpoint) if checkpoint.resume && !has_state => {
                At::BeforeState(checkpoint.every)
            }
            _ => At::Step(0),
        };
        Log::check(self.log.as_deref(), at, self.force)?;
        let unchanged = Variant::unchanged(&source);
        let encoding = Encoding {
            text: &self.text,
            wanted: self.quantize.as_ref(),
        };
        let train: Train = self.settings.train.parse().map_err(Error::usage)?;
        let about = || source.path().display();
        encoding.check(&unchanged).about(about)?;
        if encoding.fits(train, source.gguf.tensors()) {
            // That there is too little text or memory is not to come out at the end.
            self.text.check_numbers(&source, text.clone())?;
        }
        let (plan, start) = self.planned(&change, &source, ui)?;
        let prepared = convert::prepare(&source, Some(plan.clone()), start.clone(), PAGE)?;
        let variant = match self.method {
            Method::Tied => &prepared.variant,
            Method::Postshare => &unchanged,
        };
        let rows = match plan.shares().next() {
            Some(_) => shared_blocks(&plan, variant)?,
            None => Vec::new(),
        };
        encoding.check(variant).about(about)?;
        let model = self.model((train, &device), &plan, variant, &rows)?;
        let teacher_model = self.teacher_model(&device, &unchanged, teacher.as_ref())?;
        let pairs = match self.method {
            Method::Tied => None,
            Method::Postshare => Some(HeadPairs::new(&model, variant, &rows, pair_count(&plan))?),
        };
        let before = pairs.as_ref().map(|pairs| pairs.distances(&model));
        let checkpoints = run.checkpoints(Some((&plan, &start)));
        let mut trainer = Trainer::new(
            model,
            settings,
            data.clone(),
            teacher_model.as_ref(),
            pairs.clone(),
            checkpoints,
        )?;
        self.keep_layers(&mut trainer, ui);
        if let Some(checkpoint) = self.checkpoint.as_ref().filter(|_| has_state) {
            trainer.resume(&checkpoint.file, checkpoint.changes)?;
        }
        let at = match at {
            At::Step(_) => At::Step(trainer.step_count()),
            before => before,
        };
        let mut log = Log::open(self.log.as_deref(), at, self.force)?;
        let a_step = self.settings.batch * self.settings.accumulate * data.train.length();
        let state = self.checkpoint.as_ref().map(|c| c.file.as_path());
        let taken = steps::take(&mut trainer, (train, a_step), state, &mut log, ui);
        // Also of a run that failed: they may show why.
        let drawn = self.draw(log.steps(), &inputs, ui);
        let taken = taken?;
        drawn?;
        let (start_loss, best) = (trainer.start(), trainer.best());
        let earlier = trainer.earlier().to_vec();
        let mut model = trainer.into_best()?;
        drop(teacher_model);
        let after = pairs.as_ref().map(|pairs| pairs.distances(&model));
        let distances = before
            .into_iter()
            .flatten()
            .zip(after.into_iter().flatten());
        let distances = (plan.shares().zip(distances))
            .map(|(share, (before, after))| PairDistance {
                alias: share.alias().to_string(),
                donor: share.donor().to_string(),
                parts: share.parts.clone(),
                before,
                after,
            })
            .collect();
        let mut plan = plan;
        match (self.method, self.settings.apart) {
            (Method::Postshare, true) => plan.edits.clear(),
            _ => model.parameters_mut().tie(variant, &rows.concat())?,
        }
        let held_out = data.held_out.as_ref().map_or(0, Windows::count);
        let by = TrainedBy {
            method: self.method,
            steps,
            best,
            settings: &said,
            earlier,
            text: format_digest(&blake3::hash(text.as_bytes())),
            windows: data.train.count(),
            held_out,
            window: self.text.window,
            teacher: teacher_digest,
        };
        let by = serde_json::to_string(&by).map_err(Error::failed)?;
        let encoded = encoding.encode((&source, variant), &plan, start, model, ui)?;
        let converted = self.write(&change, &source, plan, encoded, by, ui)?;
        Ok(TrainedModel {
            converted,
            windows: [data.train.count(), held_out],
            window: data.train.length(),
            steps,
            start: start_loss,
            best,
            first: taken.first,
            last: taken.last,
            speed: taken.speed,
            distances,
        })
    }

    /// What changes in `source`, and the data that training begins with: postshare trains
    /// the model as it is.
    fn planned(
        &self,
        change: &Convert,
        source: &ModelFile,
        ui: &dyn Ui,
    ) -> Result<(Plan, Fitted), Error> {
        let planned = change.planned(source, self.method == Method::Tied, ui)?;
        let mut plan = planned.plan.unwrap_or_else(unplanned);
        let digest = convert::digest_of(source);
        convert::check_source(&plan, source, &digest)?;
        plan.source = digest;
        match self.method {
            Method::Tied => Ok((plan, planned.fitted)),
            Method::Postshare if plan.reshapes() => Err(Error::usage(
                "postshare pulls units together; what else a plan changes is for tied",
            )),
            Method::Postshare => Ok((plan, Fitted::default())),
        }
    }

    /// The model to train: what shares `rows` from the beginning is one parameter.
    fn model(
        &self,
        (train, device): (Train, &Device),
        plan: &Plan,
        variant: &Variant<'_>,
        rows: &[Vec<(RowsRange, RowsRange)>],
    ) -> Result<Model, Error> {
        let ties = match self.method {
            Method::Tied => rows.concat(),
            Method::Postshare => Vec::new(),
        };
        let mut model = Model::load(variant, &ties, device)?;
        if train == Train::Scales {
            model.parameters_mut().keep_codes(variant)?;
        }
        keep_silent(&mut model, plan, variant)?;
        Ok(model)
    }

    /// Writes what was trained and `encoded`.
    fn write(
        &self,
        change: &Convert,
        source: &ModelFile,
        mut plan: Plan,
        encoded: Encoded,
        by: String,
        ui: &dyn Ui,
    ) -> Result<Converted, Error> {
        let is_new = |edit: &Edit| match edit {
            Edit::Store(old) => !encoded.stores.iter().any(|new| match new {
                Edit::Store(new) => new.tensor == old.tensor,
                _ => false,
            }),
            _ => true,
        };
        plan.edits.retain(is_new);
        plan.edits.extend(encoded.stores);
        if encoded.file_type.is_some() {
            plan.choice.file_type = encoded.file_type;
        }
        let mut fitted = encoded.fitted;
        fitted.by.trained = Some(by);
        // What was written down before training has no room to be held against.
        fitted.room = Default::default();
        let prepared = convert::prepare(source, Some(plan), fitted, PAGE)?;
        let mut done = change.converted(source, &prepared);
        done.quantized = encoded.quantized;
        let bar = ui.bar("writing", prepared.output_bytes, Unit::Bytes);
        convert::write(&prepared, &self.output, change.force, &|n| bar.set(n))?;
        if done.saved.file_bytes < 0 {
            ui.warning(&format!(
                "the output is {} bytes larger than the source",
                -done.saved.file_bytes
            ));
        }
        Ok(done)
    }

    /// The model to learn from, where there is one.
    fn teacher_model(
        &self,
        device: &Device,
        source: &Variant<'_>,
        teacher: Option<&ModelFile>,
    ) -> Result<Option<Model>, Error> {
        if !self.settings.learns_from_other() {
            return Ok(None);
        }
        let loaded = match teacher {
            Some(file) => Model::load(&Variant::unchanged(file), &[], device),
            None => Model::load(source, &[], device),
        };
        Ok(Some(loaded?))
    }

    /// Finds models early that cannot be trained, or learned from.
    fn check_models(&self, source: &ModelFile, teacher: Option<&ModelFile>) -> Result<(), Error> {
        let config = |file: &ModelFile| Config::of(&file.gguf, file.path());
        let own = config(source)?;
        let Some(teacher) = teacher else {
            return Ok(());
        };
        if !self.settings.learns_from_other() {
            return Err(Error::usage("nothing is learned from the teacher"));
        }
        let about = || teacher.path().display();
        let theirs = config(teacher)?;
        let tokens = |file: &ModelFile| file.gguf.tensor(EMBEDDING).map(TensorInfo::rows);
        let (has, needs) = (tokens(teacher), tokens(source));
        if has != needs {
            let [has, needs] = [has, needs].map(Option::unwrap_or_default);
            let problem = format!("has a vocabulary of {has} tokens, the model one of {needs}");
            return Err(Error::bad_input(problem).about(about()));
        }
        if self.settings.hidden > 0.0 {
            check_alike(&theirs, &own).about(about)?;
        }
        Ok(())
    }

    /// Lets as many layers keep their activations as memory has room for: a quarter
    /// less work for each.
    fn keep_layers(&self, trainer: &mut Trainer<'_>, ui: &dyn Ui) {
        let fixed = trainer.bytes() + BESIDE;
        let tokens = self.settings.batch * self.text.window as usize;
        // Layers' own estimate, and what is in use beside them.
        let a_layer = trainer.model().layer_bytes(tokens) * 5 / 4;
        let bound = usize::try_from(self.text.memory_bound()).unwrap_or(usize::MAX);
        if bound < fixed {
            ui.warning(&format!(
                "training takes about {} MB, more than the {} MB of --memory: fewer windows at once (--batch) take less",
                fixed / 1_000_000,
                bound / 1_000_000
            ));
        }
        trainer.keep_layers(bound.saturating_sub(fixed) / a_layer.max(1));
    }

    /// Finds out early what cannot be; `inputs` are files beside the text that are read.
    /// Returns all that are.
    fn check(&self, inputs: &[FileId], resumes: bool) -> Result<Vec<FileId>, Error> {
        self.check_curves()?;
        let pulls = self.method == Method::Postshare;
        let learns = self.settings.learns_from_other();
        self.settings.check(learns, pulls)?;
        let text = &self.text.text;
        if is_stdio(text) || text == Path::new("self") {
            return Err(Error::usage(
                "the text to train on is read twice: it must be a file",
            ));
        }
        let measures = matches!(self.change, Change::Measure { .. });
        if let (Method::Postshare, Change::Measure { units, .. }) = (self.method, &self.change)
            && *units != Units::Share
        {
            return Err(Error::usage(
                "postshare pulls units together: --units is for tied",
            ));
        }
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
        for path in self.log.iter().chain(&self.curves).chain(state) {
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
        Ok(inputs)
    }

    /// The text's windows.
    fn windows(&self, text: &str, ui: &dyn Ui) -> Result<Packed, Error> {
        let Tokens { text, begin } = Tokens::of(&self.source, text)?;
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
}
