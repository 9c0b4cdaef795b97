//! A run from its files to the file that it writes.

use std::path::Path;

use headshare_convert::convert::variant::{EMBEDDING, Variant};
use headshare_convert::convert::{self, Fitted};
use headshare_convert::input::text::is_stdio;
use headshare_convert::input::{InputError, ModelFile};
use headshare_convert::model::in_layer;
use headshare_convert::plan::{Edit, Plan};
use headshare_convert::repair::choose::Units;
use headshare_files::{AtomicFile, FileId};
use headshare_format::alias::format_digest;
use headshare_format::{Gguf, PageSize, TensorInfo};
use headshare_stitch::MappedFile;
use headshare_train::checkpoint::Earlier;
use headshare_train::loss::check_alike;
use headshare_train::{Config, Packed, Settings, Train, Windows, has_scales, pack};
use serde::Serialize;
use serde_json::json;

use super::encode::{Encoded, Encoding};
use super::learn::Subject;
use super::log::{At, Log};
use super::state::{Run, choice};
use super::text::Tokens;
use super::{Method, TrainModel, TrainedModel};
use crate::convert::{Calibration, Change, Convert, Converted, Stats, read_text, unplanned};
use crate::error::Context as _;
use crate::{Advice, Error, Ui, Unit};

/// The paper trains for this part of a pass over the text.
const PASSES: f64 = 0.5;

/// The pages of the file that is written.
const PAGE: PageSize = PageSize::KIB_4;

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
            force: self.force,
            ..Convert::new(&self.source, &self.output, self.change(resumes))
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
        let train: Train = self.settings.train.parse().map_err(Error::usage)?;
        self.check_scales(train, &source, ui)?;
        let steps = self.steps_for(&data);
        let mut settings = self.settings.clone();
        settings.schedule.steps = steps;
        let said = settings.clone();
        let digest = source.digest().to_owned();
        let teacher_digest = teacher.as_ref().map(|file| file.digest().to_owned());
        let encoding = Encoding {
            text: &self.text,
            wanted: self.quantize.as_ref(),
        };
        let reads_text = encoding.reads_text(train, source.gguf.tensors());
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
                // What decides the codes that trained numbers get.
                "encoding": {
                    "quantize": self.quantize,
                    "windows": reads_text.then_some(self.text.windows),
                },
            }),
        };
        let resumed = run.check_state(&settings, &data, ui)?;
        let at = match (&self.checkpoint, resumed) {
            (Some(checkpoint), None) if checkpoint.resume => At::BeforeState(checkpoint.every),
            (_, step) => At::Step(step.unwrap_or(0)),
        };
        Log::check(self.log.as_deref(), at, self.force)?;
        let unchanged = Variant::unchanged(&source);
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
        encoding.check(variant).about(about)?;
        // That there is no room is not to come out at the end, either.
        encoding.check_room((&self.output, prepared.output_bytes), train, variant)?;
        let learnt = self.learnt(
            Subject {
                device: &device,
                train,
                plan: &plan,
                variant,
                unchanged: &unchanged,
                teacher: teacher.as_ref(),
                inputs: &inputs,
            },
            &data,
            settings,
            (run.checkpoints(Some((&plan, &start))), at),
            ui,
        )?;
        let mut plan = plan;
        if self.stays_apart() {
            plan.edits.clear();
        }
        let held_out = data.held_out.as_ref().map_or(0, Windows::count);
        let by = TrainedBy {
            method: self.method,
            steps,
            best: learnt.best,
            settings: &said,
            earlier: learnt.earlier,
            text: format_digest(&blake3::hash(text.as_bytes())),
            windows: data.train.count(),
            held_out,
            window: self.text.window,
            teacher: teacher_digest,
        };
        let by = serde_json::to_string(&by).map_err(Error::failed)?;
        let encoded = encoding.encode((&source, variant), &plan, start, learnt.model, ui)?;
        let converted = self.write(&change, &source, plan, encoded, by, ui)?;
        // Not before: a model is worth more than figures and pictures of its training.
        self.draw(&learnt.figures, &inputs, ui)?;
        if let Some(error) = learnt.taken.failed {
            return Err(error);
        }
        Ok(TrainedModel {
            converted,
            windows: [data.train.count(), held_out],
            window: data.train.length(),
            steps,
            start: learnt.start,
            best: learnt.best,
            first: learnt.taken.first,
            last: learnt.taken.last,
            speed: learnt.taken.speed,
            distances: learnt.distances,
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
        convert::check_source(&plan, source)?;
        source.digest().clone_into(&mut plan.source);
        match self.method {
            Method::Tied => Ok((plan, planned.fitted)),
            Method::Postshare if plan.reshapes() => Err(Error::usage(
                "postshare pulls units together; what else a plan changes is for tied",
            )),
            Method::Postshare => Ok((plan, Fitted::default())),
        }
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

    /// What changes. A run that was broken off may have measured already what it chooses by.
    fn change(&self, resumes: bool) -> Change {
        let mut change = self.change.clone();
        if let Change::Measure { stats, .. } = &mut change
            && let Stats::Save(path) = stats
            && resumes
            && path.exists()
        {
            *stats = Stats::Load(std::mem::take(path));
        }
        change
    }

    /// Finds out early that there are no scales to train.
    fn check_scales(&self, train: Train, source: &ModelFile, ui: &dyn Ui) -> Result<(), Error> {
        if train != Train::Scales {
            return Ok(());
        }
        let tensors = source.gguf.tensors();
        let has = |info: &TensorInfo| has_scales(info.ggml_type);
        let of_heads = |info: &&TensorInfo| {
            let stems = [
                "attn_q.weight",
                "attn_k.weight",
                "attn_v.weight",
                "attn_qkv.weight",
            ];
            in_layer(&info.name).is_some_and(|(_, part)| stems.contains(&part))
        };
        let pulls = self.method == Method::Postshare && self.settings.gamma > 0.0;
        if pulls && !tensors.iter().filter(of_heads).any(has) {
            let problem =
                "no q, k or v is quantized with scales: nothing could pull heads together";
            let words = "--train all and attention train numbers of any type";
            return Err(
                Error::usage(format!("{}: {problem}", source.path().display()))
                    .advise(Advice::Words(words.into())),
            );
        }
        if !tensors.iter().any(has) {
            ui.remark(
                "note: no tensor is quantized with scales, so norms and biases alone are trained",
            );
        }
        Ok(())
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
        if let Some(problem) = other_tokens(&teacher.gguf, &source.gguf) {
            return Err(Error::bad_input(problem).about(about()));
        }
        if self.settings.hidden > 0.0 {
            check_alike(&theirs, &own).about(about)?;
        }
        Ok(())
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
        // The state first: with one, the others are figures of its run.
        let state = self.checkpoint.as_ref().map(|c| &c.file);
        let stats = match &self.change {
            Change::Measure {
                stats: Stats::Save(path),
                ..
            } => Some(path),
            _ => None,
        };
        taken.extend(stats.map(|path| std::path::absolute(path).ok()));
        for path in state.into_iter().chain(&self.log).chain(&self.curves) {
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
            let free = AtomicFile::check(path, self.force || resumes, &inputs);
            free.map_err(|error| match Error::from(error) {
                error if Some(path) == state && error.advice == Some(Advice::Overwrite) => {
                    error.advise(Advice::ResumeOrOverwrite)
                }
                error => error,
            })?;
        }
        Ok(inputs)
    }

    /// The text's windows.
    fn windows(&self, text: &str, ui: &dyn Ui) -> Result<Packed, Error> {
        let Tokens { text, begin } = Tokens::of(&self.source, text)?;
        let packed = pack(&text, self.text.window as usize, begin, self.held_out);
        let packed = packed.about(|| self.text.text.display())?;
        let is_repaired_with = |repair: &Calibration| repair.text == self.text.text;
        match packed.held_out {
            None => ui.remark("note: nothing is held out, so the last step's weights are taken"),
            Some(_) if self.settings.evaluate_every == 0 => ui.remark(
                "note: nothing is evaluated, so the last step's weights are taken, and what is held out serves nothing (--held-out 0 trains on it, too)",
            ),
            Some(_)
                if self.method == Method::Tied
                    && self.repair.as_ref().is_some_and(is_repaired_with) =>
            {
                ui.remark(
                    "note: the repair also reads windows that are held out of training: losses on them may be lower than on other text",
                );
            }
            Some(_) => {}
        }
        Ok(packed)
    }

    fn steps_for(&self, data: &Packed) -> u64 {
        let a_step = (self.settings.batch * self.settings.accumulate).max(1) as f64;
        let half = (PASSES * data.train.count() as f64 / a_step).ceil() as u64;
        self.steps.unwrap_or(half.max(1))
    }
}

/// How the tokens of `teacher` differ from those of `own`, which has as many, if they do.
fn other_tokens(teacher: &Gguf, own: &Gguf) -> Option<String> {
    let tokens = |gguf: &'_ Gguf| {
        let list = gguf.array_value("tokenizer.ggml.tokens").ok().flatten();
        list.and_then(|list| {
            list.strs()
                .map(|all| all.into_iter().map(str::to_owned).collect::<Vec<_>>())
        })
    };
    let (theirs, ours) = (tokens(teacher)?, tokens(own)?);
    let other = theirs
        .iter()
        .zip(&ours)
        .position(|(theirs, ours)| theirs != ours);
    if let Some(token) = other {
        let (theirs, ours) = (&theirs[token], &ours[token]);
        return Some(format!(
            "its token {token} is {theirs:?}, and {ours:?} in the model"
        ));
    }
    let begin = |gguf: &Gguf| gguf.u64_value("tokenizer.ggml.bos_token_id").ok().flatten();
    (begin(teacher) != begin(own))
        .then(|| "begins texts with another token than the model".to_owned())
}
