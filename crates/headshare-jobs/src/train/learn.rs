//! The training itself: from a plan and its data to trained weights.

use candle_core::Device;
use headshare_convert::convert::variant::Variant;
use headshare_convert::input::ModelFile;
use headshare_convert::model::{Part, RowsRange};
use headshare_convert::plan::Plan;
use headshare_eval::analyze::curves::Step;
use headshare_files::FileId;
use headshare_train::checkpoint::Earlier;
use headshare_train::loss::pairs::HeadPairs;
use headshare_train::sharing::{keep_silent, shared_blocks};
use headshare_train::{Checkpoints, Model, Packed, Settings, Train, Trainer};

use super::log::{At, Log};
use super::steps::{self, Steps};
use super::{Method, PairDistance, TrainModel};
use crate::{Error, Ui};

/// Bytes beside what a run is known to take: logits, copies, the program.
const BESIDE: usize = 512 << 20;

/// What is trained.
pub(super) struct Subject<'a> {
    /// On what.
    pub device: &'a Device,
    /// Which of its weights.
    pub train: Train,
    /// What of the source changes.
    pub plan: &'a Plan,
    /// What training begins with.
    pub variant: &'a Variant<'a>,
    /// The source as it is.
    pub unchanged: &'a Variant<'a>,
    /// The model to learn from, where that is not the source.
    pub teacher: Option<&'a ModelFile>,
    /// The files that are read, which nothing may overwrite.
    pub inputs: &'a [FileId],
}

/// What has come of it.
pub(super) struct Learnt {
    /// The model with its best weights; what the plan shares is equal, unless pairs stay apart.
    pub model: Model,
    /// The steps of this run.
    pub taken: Steps,
    /// The figures of all steps that are known.
    pub figures: Vec<Step>,
    /// As [`Trainer::start`].
    pub start: Option<f64>,
    /// As [`Trainer::best`].
    pub best: Option<(u64, f64)>,
    /// As [`Trainer::earlier`].
    pub earlier: Vec<Earlier>,
    /// How far apart pairs were that were pulled together, and are.
    pub distances: Vec<PairDistance>,
}

/// The paper's N: of each of q, k and v as many pairs as share it.
fn pair_count(plan: &Plan) -> usize {
    let of = |part: &Part| plan.shares().filter(|s| s.parts.contains(part)).count();
    Part::ALL.iter().map(of).max().unwrap_or(0)
}

impl TrainModel {
    /// Trains `subject` on `data`, from the state of `checkpoints` on where the log is not at its
    /// first step.
    pub(super) fn learnt(
        &self,
        subject: Subject<'_>,
        data: &Packed,
        settings: Settings,
        (checkpoints, at): (Option<Checkpoints>, At),
        ui: &dyn Ui,
    ) -> Result<Learnt, Error> {
        let Subject { plan, variant, .. } = subject;
        let rows = match plan.shares().next() {
            Some(_) => shared_blocks(plan, variant)?,
            None => Vec::new(),
        };
        let model = self.model(&subject, &rows)?;
        let teacher = self.teacher_model(&subject)?;
        let pairs = match self.method {
            Method::Tied => None,
            Method::Postshare => Some(HeadPairs::new(&model, variant, &rows, pair_count(plan))?),
        };
        let before = pairs.as_ref().map(|pairs| pairs.distances(&model));
        let mut trainer = Trainer::new(
            model,
            settings,
            data.clone(),
            teacher.as_ref(),
            pairs.clone(),
            checkpoints,
        )?;
        // How much memory another device has is not known here.
        if subject.device.is_cpu() {
            self.keep_layers(&mut trainer, ui);
        }
        if self.settings.schedule.warmup >= trainer.all_steps() && self.settings.schedule.warmup > 0
        {
            ui.remark(
                "note: --warmup is no shorter than training: the learning rate rises to its end",
            );
        }
        if let (Some(checkpoint), At::Step(1..)) = (&self.checkpoint, at) {
            trainer.resume(&checkpoint.file, checkpoint.changes)?;
        }
        let mut log = Log::open(self.log.as_deref(), at, self.force)?;
        let a_step = self.settings.batch * self.settings.accumulate * data.train.length();
        let state = self.checkpoint.as_ref().map(|c| c.file.as_path());
        let taken = steps::take(&mut trainer, (subject.train, a_step), state, &mut log, ui);
        let figures = log.into_steps();
        let taken = match taken {
            Ok(taken) => taken,
            Err(error) => {
                // They may show why.
                if let Err(error) = self.draw(&figures, subject.inputs, ui) {
                    ui.warning(&error.to_string());
                }
                return Err(error);
            }
        };
        let (start, best) = (trainer.start(), trainer.best());
        let earlier = trainer.earlier().to_vec();
        let mut model = trainer.into_best()?;
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
        if !self.stays_apart() {
            model.parameters_mut().tie(variant, &rows.concat())?;
        }
        Ok(Learnt {
            model,
            taken,
            figures,
            start,
            best,
            earlier,
            distances,
        })
    }

    /// The model to train: what shares `rows` from the beginning is one parameter.
    fn model(
        &self,
        subject: &Subject<'_>,
        rows: &[Vec<(RowsRange, RowsRange)>],
    ) -> Result<Model, Error> {
        let Subject { plan, variant, .. } = subject;
        let ties = match self.method {
            Method::Tied => rows.concat(),
            Method::Postshare => Vec::new(),
        };
        let mut model = Model::load(variant, &ties, subject.device)?;
        if subject.train == Train::Scales {
            model.parameters_mut().keep_codes(variant)?;
        }
        keep_silent(&mut model, plan, variant)?;
        Ok(model)
    }

    /// The model to learn from, where there is one.
    fn teacher_model(&self, subject: &Subject<'_>) -> Result<Option<Model>, Error> {
        if !self.settings.learns_from_other() {
            return Ok(None);
        }
        let loaded = match subject.teacher {
            Some(file) => Model::load(&Variant::unchanged(file), &[], subject.device),
            None => Model::load(subject.unchanged, &[], subject.device),
        };
        Ok(Some(loaded?))
    }

    /// Whether pairs are pulled together and do not share then.
    pub(super) fn stays_apart(&self) -> bool {
        self.method == Method::Postshare && self.settings.apart
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
}
