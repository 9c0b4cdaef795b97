//! A smaller file: some heads share their weights, or are gone, or whatever a plan
//! says.

mod baseline;
mod calibrate;
mod choose;
mod converted;
pub(crate) mod fit;
mod quantize;

use std::path::{Path, PathBuf};

use headshare_convert::convert::{self, ConvertError, Fitted, Foreseen, Prepared};
use headshare_convert::input::ModelFile;
use headshare_convert::input::text::{self, Contents, is_stdio};
use headshare_convert::matching::MatchFunction;
use headshare_convert::plan::Plan;
use headshare_convert::quantize::{QuantizerError, takes as quantize_takes, takes_with_repair};
use headshare_convert::repair::choose::Units;
use headshare_convert::repair::{self, Record, RepairError, SurveyRecord, check_supported};
use headshare_files::{AtomicFile, FileId};
use headshare_format::PageSize;
use serde::{Deserialize, Serialize};

pub use baseline::Removal;
use calibrate::Ready;
pub(crate) use calibrate::is_own;
pub use calibrate::{Calibration, read_text};
pub use choose::Stats;
pub(crate) use choose::check_stats;
pub use converted::{Converted, FileSize, OfType};
pub use fit::{Budget, Changes, InMemory, MadeToFit, OfMemory, OtherSize, Retyped, Tried};
use quantize::Beside;
pub(crate) use quantize::unplanned;
pub use quantize::{FellBack, Quantization, Quantized, With};

use crate::error::Context as _;
use crate::output::is_same_path;
use crate::plan::match_units;
use crate::{Advice, Error, Ui, Unit};

/// Writes a smaller file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Convert {
    /// The model, a plain GGUF file.
    #[serde(with = "crate::path")]
    pub source: PathBuf,
    /// The file to write; a dry run does without.
    #[serde(default, with = "crate::path::option")]
    pub output: Option<PathBuf>,
    /// What changes, beside what is byte-equal: that is stored once.
    pub change: Change,
    /// Unless it stays as often as it is there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keep_duplicates: bool,
    /// Refits the layers after what has changed, on a text.
    pub repair: Option<Calibration>,
    /// Gives tensors other types.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantize: Option<Quantization>,
    /// Makes the best model for so many bytes; what changes is chosen by itself then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fit: Option<Budget>,
    /// Page size in bytes of the machines that will run the file.
    pub page_size: u64,
    /// Only says what would be done and what it saves.
    pub dry_run: bool,
    /// Replaces outputs that are there.
    pub force: bool,
}

/// What a conversion changes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Nothing: expanding gives the source back byte for byte.
    Lossless,
    /// Units that are alike by their weights share.
    Match {
        /// Share of the units, from 0 to 1.
        ratio: f64,
        /// Which parts of two units are compared.
        function: MatchFunction,
    },
    /// Units are removed by a measure of their importance.
    Baseline(Removal),
    /// Units share or are dropped, chosen by what that does to the running model; needs the
    /// text of a repair.
    Measure {
        /// Share of the units, from 0 to 1.
        ratio: f64,
        /// What becomes of them.
        units: Units,
        /// What is done with what was measured.
        stats: Stats,
    },
    /// What a plan says.
    Plan {
        /// A plan file.
        #[serde(with = "crate::path")]
        file: PathBuf,
    },
}

/// A conversion that is not laid out yet.
#[cfg(feature = "train")]
pub(crate) struct Planned {
    pub plan: Option<Plan>,
    pub fitted: Fitted,
    pub quantized: Option<Quantized>,
}

impl Convert {
    /// Converts `source` to `output`, for pages of 4 KiB, without fitting anything.
    pub fn new(source: impl Into<PathBuf>, output: impl Into<PathBuf>, change: Change) -> Self {
        Self {
            output: Some(output.into()),
            ..Self::unwritten(source, change)
        }
    }

    /// The same without a file to write, for a dry run.
    pub(crate) fn unwritten(source: impl Into<PathBuf>, change: Change) -> Self {
        Self {
            source: source.into(),
            output: None,
            change,
            keep_duplicates: false,
            repair: None,
            quantize: None,
            fit: None,
            page_size: 4096,
            dry_run: false,
            force: false,
        }
    }

    /// Does it.
    ///
    /// # Errors
    /// When a file is bad, the change does not fit the model, or the output cannot
    /// be written.
    pub fn run(&self, ui: &dyn Ui) -> Result<Converted, Error> {
        match &self.fit {
            Some(budget) => budget.with_text_in_a_file(|budget| self.made_to_fit(budget, ui)),
            None => {
                self.check_settings()?;
                self.carry_out(&ModelFile::open_plain(&self.source)?, None, ui)
            }
        }
    }

    /// Finds out what cannot be before any file is opened.
    fn check_settings(&self) -> Result<(), Error> {
        self.page()?;
        if self.keep_duplicates && self.change == Change::Lossless && self.quantize.is_none() {
            return Err(Error::usage(
                "nothing would change if equal weights stay as often as they are there",
            ));
        }
        Ok(())
    }

    /// The file to write.
    fn written(&self) -> Result<&Path, Error> {
        (self.output.as_deref())
            .ok_or_else(|| Error::usage("only a dry run does without a file to write"))
    }

    fn is_output(&self, path: &Path) -> bool {
        (self.output.as_deref()).is_some_and(|output| is_same_path(path, output))
    }

    /// The pages that shared weights are laid out for.
    fn page(&self) -> Result<PageSize, Error> {
        PageSize::new(self.page_size).ok_or_else(|| {
            Error::usage(format!(
                "{} bytes are no page: it is a power of two",
                self.page_size
            ))
        })
    }

    /// Converts `source`, by a plan that is `given` or chosen.
    fn carry_out(
        &self,
        source: &ModelFile,
        given: Option<Plan>,
        ui: &dyn Ui,
    ) -> Result<Converted, Error> {
        let page = self.page()?;
        let plan_file = self.plan_file()?;
        let inputs = self.inputs(source, plan_file.as_ref())?;
        if !self.dry_run {
            AtomicFile::check(self.written()?, self.force, &inputs)?;
        }
        if let (Change::Measure { .. }, Some(quantization)) = (&self.change, &self.quantize) {
            // A wrong type is found before units are measured for minutes.
            quantization.changes(source)?;
        }
        let prepared_repair = self.prepare_repair(source, ui)?;
        let (mut plan, choice) = match given {
            Some(plan) => (Some(plan), None),
            None => self.choose(
                source,
                plan_file.as_ref(),
                prepared_repair.as_ref(),
                &inputs,
                ui,
            )?,
        };
        // What is only copied shows it soon enough.
        if self.repair.is_some() || self.quantize.is_some() {
            self.check_read(source, plan.as_ref())?;
        }
        if self.keep_duplicates {
            plan.get_or_insert_with(unplanned).keep_duplicates = true;
        }
        let (fitted, record, quantized) =
            (self.fit(source, &mut plan, choice, prepared_repair.as_ref(), ui))
                .map_err(|error| self.name_plan(error))?;
        // A model of other shapes says which file it was made of; a dry run does
        // not see whether it is that file in any other way.
        if let Some(plan) = &mut plan
            && (plan.reshapes() || self.dry_run)
        {
            convert::check_source(plan, source).map_err(|e| self.name_plan(e.into()))?;
            source.digest().clone_into(&mut plan.source);
        }
        let foreseen = match self.dry_run {
            true => convert::foresee(source, plan, fitted, page),
            false => convert::prepare(source, plan, fitted, page).map(Foreseen::exactly),
        };
        let Foreseen { prepared, is_exact } = foreseen.map_err(|e| self.name_plan(e.into()))?;
        let mut done = self.converted(source, &prepared);
        if !is_exact {
            done.at_most = true;
            done.plain = None;
        }
        done.repair = record;
        done.quantized = quantized;
        if !self.dry_run {
            let bar = ui.bar("writing", prepared.output_bytes, Unit::Bytes);
            let digest = convert::write(&prepared, self.written()?, self.force, &|n| bar.set(n))
                .map_err(|e| self.name_plan(e.into()))?;
            if let Some(plan) = &mut done.plan {
                plan.source = digest;
            }
        }
        let types_of_plan = matches!(self.change, Change::Plan { .. })
            && self.quantize.is_none()
            && done
                .plan
                .as_ref()
                .is_some_and(|plan| plan.stores().next().is_some());
        if types_of_plan && self.repair.is_none() {
            ui.remark(
                "note: without a text, weights are only rounded to the types that the plan gives",
            );
        }
        if prepared.saved.file_bytes < 0 {
            let why = match prepared.headshare {
                Some(_) => format!(
                    ": too little is shared for pages of {} bytes",
                    self.page_size
                ),
                None => String::new(),
            };
            ui.warning(&format!(
                "the output is {} bytes larger than the source{why}",
                -prepared.saved.file_bytes
            ));
        }
        Ok(done)
    }

    /// Reads the text of a repair, where one is wanted.
    fn prepare_repair(&self, source: &ModelFile, ui: &dyn Ui) -> Result<Option<Ready>, Error> {
        let Some(calibration) = &self.repair else {
            return Ok(None);
        };
        check_supported(&convert::attention_map(source)?).about(|| source.path().display())?;
        let takes = match &self.quantize {
            Some(_) => takes_with_repair(source),
            None => repair::takes(source),
        };
        // Units are chosen by measuring in a dry run, too.
        let is_read = !self.dry_run || matches!(self.change, Change::Measure { .. });
        calibration.prepare(source, takes, is_read, ui).map(Some)
    }

    /// The plan of what changes, and what it was chosen by where that was measured.
    fn choose(
        &self,
        source: &ModelFile,
        plan_file: Option<&Contents>,
        repair: Option<&Ready>,
        inputs: &[FileId],
        ui: &dyn Ui,
    ) -> Result<(Option<Plan>, Option<SurveyRecord>), Error> {
        let plan = match &self.change {
            Change::Lossless => return Ok((None, None)),
            Change::Match { ratio, function } => match_units(source, *function, *ratio, ui)?,
            Change::Baseline(removal) => removal.plan(source, ui)?,
            Change::Measure {
                ratio,
                units,
                stats,
            } => {
                let Some(repair) = repair else {
                    return Err(Error::usage(
                        "units can be chosen by measuring only with a text to repair with",
                    ));
                };
                let wanted = choose::Wanted {
                    ratio: *ratio,
                    units: *units,
                    stats,
                    force: self.force,
                    inputs,
                };
                let (plan, record) = wanted.choose(source, repair, ui)?;
                return Ok((Some(plan), Some(record)));
            }
            Change::Plan { file } => {
                let contents = plan_file.map_or(&[][..], |contents| contents);
                Plan::from_json(contents).about(|| text::name(file))?
            }
        };
        Ok((Some(plan), None))
    }

    /// The plan, and what is fitted to a text where that is so, without writing anything.
    #[cfg(feature = "train")]
    pub(crate) fn planned(
        &self,
        source: &ModelFile,
        fits: bool,
        ui: &dyn Ui,
    ) -> Result<Planned, Error> {
        let plan_file = self.plan_file()?;
        let inputs = self.inputs(source, plan_file.as_ref())?;
        let repair = self.prepare_repair(source, ui)?;
        let (mut plan, choice) =
            self.choose(source, plan_file.as_ref(), repair.as_ref(), &inputs, ui)?;
        self.check_read(source, plan.as_ref())?;
        let (fitted, _, quantized) = match fits {
            true => self.fit(source, &mut plan, choice, repair.as_ref(), ui)?,
            false => Default::default(),
        };
        Ok(Planned {
            plan,
            fitted,
            quantized,
        })
    }

    /// The files that are read, which nothing may overwrite.
    #[cfg(feature = "train")]
    pub(crate) fn input_files(&self, source: &ModelFile) -> Result<Vec<FileId>, Error> {
        self.inputs(source, self.plan_file()?.as_ref())
    }

    /// Checks a plan that was read, before much is computed by it.
    fn check_read(&self, source: &ModelFile, plan: Option<&Plan>) -> Result<(), Error> {
        match (&self.change, plan) {
            (Change::Plan { .. }, Some(plan)) => {
                convert::check(source, plan, self.quantize.is_some())
                    .map_err(|error| self.name_plan(error.into()))
            }
            _ => Ok(()),
        }
    }

    fn plan_file(&self) -> Result<Option<Contents>, Error> {
        match &self.change {
            Change::Plan { file } => Ok(Some(Contents::open(file)?)),
            _ => Ok(None),
        }
    }

    /// Fits what `plan` makes of `source`; adds the types of a quantized model to it.
    fn fit(
        &self,
        source: &ModelFile,
        plan: &mut Option<Plan>,
        choice: Option<SurveyRecord>,
        repair: Option<&Ready>,
        ui: &dyn Ui,
    ) -> Result<(Fitted, Option<Record>, Option<Quantized>), Error> {
        // A plan that only stores once what is equal says no types to fit.
        let is_empty = plan.as_ref().is_some_and(|plan| plan.edits.is_empty());
        let quantize = (self.quantize.as_ref()).filter(|of| of.wanted.is_some() || !is_empty);
        let Some(quantization) = quantize else {
            let (Some(plan), Some(repair)) = (plan.as_ref(), repair) else {
                return Ok((Fitted::default(), None, None));
            };
            let (fitted, record) = repair.fit(source, plan, choice, self.dry_run, ui)?;
            return Ok((fitted, record, None));
        };
        let repairs = match repair {
            Some(_) => true,
            None => quantization.repairs(source, plan.as_ref()),
        };
        let typed = quantization.assign(source, plan.take(), ui)?;
        *plan = Some(typed.plan.clone());
        let kept = match quantization.calibration() {
            Some(_) => typed.kept(source)?,
            None => 0,
        };
        let prepare = |calibration: &Calibration| {
            let mut takes = match repairs {
                true => takes_with_repair(source),
                false => quantize_takes(source),
            };
            takes.kept = takes.kept.saturating_add(kept);
            calibration.prepare(source, takes, !self.dry_run, ui)
        };
        let own;
        let ready = match (quantization.calibration(), repair) {
            (None, None) => None,
            (Some(calibration), None) => {
                own = prepare(calibration)?;
                Some(&own)
            }
            (Some(calibration), Some(repair)) if self.repair.as_ref() == Some(calibration) => {
                let is_file = !is_stdio(&calibration.text) && !is_own(&calibration.text);
                match kept > 0 && is_file {
                    // What is shared was not known before. (What comes from standard input, or is
                    // written by the model, is there once only.)
                    true => {
                        own = prepare(calibration)?;
                        Some(&own)
                    }
                    false => Some(repair),
                }
            }
            _ => {
                return Err(Error::usage(
                    "what is repaired and what is quantized beside it are fitted to one text",
                )
                .advise(Advice::OneText));
            }
        };
        if !repairs && ready.is_some() && typed.plan.is_about_units() {
            ui.remark(
                "note: what follows units that share or are dropped is quantized, not repaired (--repair does both)",
            );
        }
        let beside = repairs.then_some(Beside { choice });
        let dry_run = self.dry_run;
        let (fitted, record, done) =
            quantization.encode(source, &typed, ready, beside, dry_run, ui)?;
        // Not before: a model that cannot be quantized leaves nothing behind.
        if let Some(ready) = ready.filter(|_| !self.dry_run) {
            quantization.save_imatrix(source, ready, self.force, ui)?;
        }
        Ok((fitted, record, Some(done)))
    }

    /// The files that are read, which nothing may overwrite.
    fn inputs(&self, source: &ModelFile, plan: Option<&Contents>) -> Result<Vec<FileId>, Error> {
        let mut inputs = vec![source.file.id()];
        inputs.extend(plan.and_then(Contents::id));
        let text = self.repair.as_ref().map(|repair| &repair.text);
        let stats = match &self.change {
            Change::Measure { stats, .. } => Some(stats),
            _ => None,
        };
        if let Some(stats) = stats {
            self.check_stats(stats, &mut inputs)?;
        }
        let weighed = match &self.change {
            Change::Baseline(removal) => removal.text.as_ref(),
            _ => None,
        };
        let calibrated = self.quantize.as_ref().and_then(Quantization::input);
        let texts = text.into_iter().chain(weighed);
        for path in texts.chain(calibrated) {
            inputs.extend(calibrate::id(path)?);
        }
        if let Some(path) = self.quantize.as_ref().and_then(Quantization::saved) {
            if self.is_output(path) {
                return Err(Error::usage(
                    "the importance matrix and the model cannot be written to the same file",
                )
                .advise(crate::Advice::AnotherOutput));
            }
            if !self.dry_run {
                AtomicFile::check(path, self.force, &inputs)?;
            }
        }
        Ok(inputs)
    }

    /// Refuses to write what was measured where the model goes; adds the file that it is
    /// read from to the `inputs`.
    fn check_stats(&self, stats: &Stats, inputs: &mut Vec<FileId>) -> Result<(), Error> {
        match stats {
            Stats::Save(path) if self.is_output(path) => Err(Error::usage(
                "what is measured and the model cannot be written to the same file",
            )
            .advise(crate::Advice::AnotherOutput)),
            Stats::Load(path) => {
                inputs.extend(calibrate::id(path)?);
                Ok(())
            }
            Stats::Save(_) | Stats::Forget => Ok(()),
        }
    }

    /// Names the plan file in errors that are about the plan.
    fn name_plan(&self, error: Error) -> Error {
        fn of_repair(error: &RepairError) -> Option<&ConvertError> {
            match error {
                RepairError::Convert(error) => Some(error),
                _ => None,
            }
        }
        let source = &error.source;
        let of_quantizer = match source.downcast_ref::<QuantizerError>() {
            Some(QuantizerError::Convert(error)) => Some(error),
            Some(QuantizerError::Repair(error)) => of_repair(error),
            _ => None,
        };
        let about_plan = (source.downcast_ref::<ConvertError>())
            .or(of_quantizer)
            .or_else(|| source.downcast_ref::<RepairError>().and_then(of_repair));
        let about_plan = matches!(
            about_plan,
            Some(ConvertError::Plan(_) | ConvertError::WrongSource { .. })
        );
        match &self.change {
            Change::Plan { file } if about_plan => error.about(text::name(file)),
            _ => error,
        }
    }

    /// What there is to say of `prepared`.
    pub(crate) fn converted(&self, source: &ModelFile, prepared: &Prepared<'_>) -> Converted {
        let output = self.output.as_deref();
        Converted::of(source, prepared, output, (self.page_size, self.dry_run))
    }
}
