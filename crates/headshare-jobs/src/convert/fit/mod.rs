//! The best model for the bytes that a device has: [`choice`](Choices) says what is
//! predicted to cost least, [`candidates`] are made to see which is best, and [`memory`]
//! holds them against what there is of memory. The rest is a conversion like any other.

mod candidates;
mod choice;
mod memory;
mod plan;
mod predictions;

use std::path::Path;
use std::time::Duration;

use headshare_convert::convert;
use headshare_convert::fit::{self, FitError, Movable, Point, Statistics, moves};
use headshare_convert::input::ModelFile;
use headshare_convert::input::text::{self, Contents};
use headshare_convert::plan::{Choice, ChosenBy, Plan};
use headshare_convert::quantize::takes;
use headshare_eval::analyze::picture::Format;
use headshare_eval::analyze::{file_name, frontier};
use headshare_files::{AtomicFile, FileId};
use serde::{Deserialize, Serialize};

use self::choice::Choices;
pub use self::memory::{InMemory, OfMemory};
pub use self::plan::PlanToFit;
pub use self::predictions::AnalyzePredictions;
use super::calibrate::{self, Calibration};
use super::choose::Stats;
use super::quantize::Quantization;
use super::{Change, Convert, Converted};
use crate::error::Context as _;
use crate::output::Written;
use crate::{Error, Quiet, Ui, Unit};

/// What a model is to fit into: a file, memory, or both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Budget {
    /// Bytes that the file may have.
    pub bytes: Option<u64>,
    /// Memory that running it may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<InMemory>,
    /// The types that tensors may get; by default those that ggml is good at.
    pub types: Option<Vec<String>>,
    /// The text that is probed and fitted with.
    pub calibration: Calibration,
    /// What is done with what was measured.
    pub stats: Stats,
    /// Seconds that measuring may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<u64>,
}

/// How a model was made to fit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MadeToFit {
    /// Bytes that the file was to have at most.
    pub wanted: u64,
    /// What it takes of memory, where that was bounded; in a dry run what the model takes when
    /// it is only rounded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<OfMemory>,
    /// The divergence from the source that encoding at these types was predicted to make,
    /// in nats a token. Fitting makes less of it.
    pub predicted: f64,
    /// Tensors that could have other types.
    pub tensors: usize,
    /// How many of them were not measured, for want of time: what is like them was.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub estimated: usize,
    /// What became of them.
    pub types: Vec<Retyped>,
    /// The type of the output head, where the token embedding was that, too, and it got weights
    /// of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_head: Option<String>,
    /// Units of attention that were dropped.
    pub units: u64,
    /// Channels of feed-forward layers that were deleted.
    pub channels: u64,
    /// The bytes of the file, and the least predicted divergence, from the source down to
    /// the smallest.
    pub frontier: Vec<Point>,
    /// Plans that were really made to find the best, with a few of the windows, and measured on
    /// others; empty where only one was there, and in a dry run.
    pub tried: Vec<Tried>,
}

/// A plan that was made and measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tried {
    /// The divergence that was predicted, in nats a token.
    pub predicted: f64,
    /// The one that it has.
    pub measured: f64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it")]
fn is_zero(n: &usize) -> bool {
    *n == 0
}

/// What makes a model fit.
#[derive(Clone)]
pub(super) struct ToFit {
    /// The types.
    pub quantization: Quantization,
    /// What goes.
    pub plan: Option<Plan>,
    /// The types that are not the source's, and what goes, as one plan.
    pub whole: Plan,
}

/// Tensors that got another type, or kept theirs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retyped {
    /// The type that they had.
    pub from: String,
    /// The type that they have.
    pub to: String,
    /// How many.
    pub tensors: usize,
}

impl MadeToFit {
    /// Draws the frontier of `source`, and what was chosen of it, a file of `bytes`.
    pub(super) fn draw(
        &self,
        source: &Path,
        bytes: u64,
        written: Written<'_>,
        ui: &dyn Ui,
    ) -> Result<(), Error> {
        let name = file_name(source);
        let title = format!("{name} in fewer bytes");
        let points: Vec<(u64, f64)> = self.frontier.iter().map(|p| (p.bytes, p.cost)).collect();
        let chosen = (bytes, self.predicted);
        let Some(scene) = frontier::picture(&title, &points, chosen) else {
            ui.remark("note: no move costs anything, so there is nothing to draw");
            return Ok(());
        };
        let format = Format::of(written.path).unwrap_or(Format::Svg);
        written.write(&scene.encode(format), ui)
    }
}

impl Budget {
    /// Refuses what asks for nothing.
    fn check(&self, source: &ModelFile) -> Result<(), Error> {
        match (self.bytes, &self.memory) {
            (Some(wanted), None) if source.len() <= wanted => {
                let has = source.len();
                Err(self.about(source, FitError::FitsAlready { has, wanted }))
            }
            (None, None) => Err(Error::usage("neither bytes nor memory are bounded")),
            _ => Ok(()),
        }
    }

    /// What the moves of `movable` do to `source`: measured, or read.
    fn statistics(
        &self,
        source: &ModelFile,
        movable: &[Movable],
        force: bool,
        inputs: &[FileId],
        ui: &dyn Ui,
    ) -> Result<Statistics, Error> {
        if let Stats::Save(path) = &self.stats {
            AtomicFile::check(path, force, inputs)?;
        }
        let digest = convert::digest_of(source);
        let ready = self.calibration.prepare(source, takes(source), true, ui)?;
        if let Stats::Load(path) = &self.stats {
            let file = Contents::open(path)?;
            let read = Statistics::from_json(&file, &digest, &ready.windows);
            return read.about(|| text::name(path));
        }
        let bar = ui.bar("measuring", 1000, Unit::Parts);
        let with = (&ready.windows, &ready.options);
        let time = self.time.map(Duration::from_secs);
        let of = (source, &digest[..]);
        let measured = Statistics::measure(of, movable, with, time, &|done| bar.part(done));
        let measured = measured.map_err(|error| self.about(source, error))?;
        if let Stats::Save(path) = &self.stats {
            measured.write(path, force, inputs)?;
        }
        Ok(measured)
    }

    fn about(&self, source: &ModelFile, error: FitError) -> Error {
        Error::from(error).about(source.path().display())
    }
}

/// A plan that was chosen by measuring, and changes nothing yet.
fn measured_plan() -> Plan {
    let choice = Choice {
        by: ChosenBy::Calibrated,
        ..Choice::default()
    };
    Plan::new(convert::UNKNOWN_DIGEST.to_owned(), choice, Vec::new())
}

impl Convert {
    /// Chooses what makes `source` fit, and does it.
    pub(super) fn made_to_fit(&self, budget: &Budget, ui: &dyn Ui) -> Result<Converted, Error> {
        if self.change != Change::Lossless || self.repair.is_some() || self.quantize.is_some() {
            return Err(Error::usage(
                "what fits into so many bytes is chosen by itself: no other change goes with it",
            ));
        }
        let source = ModelFile::open_plain(&self.source)?;
        let inputs = self.inputs_to_fit(budget, &source)?;
        let picture = self.dry_run && Format::of(&self.output).is_ok();
        if !self.dry_run || picture {
            AtomicFile::check(&self.output, self.force, &inputs)?;
        }
        let (to_fit, mut fit) = self.chosen_to_fit(budget, &source, &inputs, self.dry_run, ui)?;
        drop(source);
        let mut done = self.make(&to_fit, self.dry_run, ui)?;
        if picture {
            let written = Written {
                path: &self.output,
                force: self.force,
                inputs: &inputs,
            };
            fit.draw(&self.source, done.output.bytes, written, ui)?;
        }
        if let Some(memory) = budget.memory.filter(|_| !self.dry_run) {
            fit.memory = Some(memory.taken_by(&self.output, ui)?);
        }
        done.fit = Some(fit);
        Ok(done)
    }

    /// The files that are read, which nothing may overwrite.
    fn inputs_to_fit(&self, budget: &Budget, source: &ModelFile) -> Result<Vec<FileId>, Error> {
        let mut inputs = vec![source.file.id()];
        inputs.extend(calibrate::id(&budget.calibration.text)?);
        self.check_stats(&budget.stats, &mut inputs)?;
        Ok(inputs)
    }

    /// What makes `source` fit: what is `predicted` to be best, or else the best of what was
    /// made with a few windows.
    fn chosen_to_fit(
        &self,
        budget: &Budget,
        source: &ModelFile,
        inputs: &[FileId],
        predicted: bool,
        ui: &dyn Ui,
    ) -> Result<(ToFit, MadeToFit), Error> {
        let start = budget.first_limit(source, ui)?;
        let candidates = self.with_choices(budget, source, inputs, ui, |choices| {
            let size_of = |to_fit: &ToFit| Ok(self.make(to_fit, true, &Quiet)?.output.bytes);
            choices.in_memory(start, &size_of, ui)
        })?;
        let best = match predicted {
            true => candidates.into_iter().next(),
            false => self.best_of(candidates, budget, source, ui)?,
        };
        best.ok_or_else(|| Error::failed(std::io::Error::other("no plan was found")))
    }

    /// What `then` makes of all that could become of `source`, once that was measured.
    fn with_choices<T>(
        &self,
        budget: &Budget,
        source: &ModelFile,
        inputs: &[FileId],
        ui: &dyn Ui,
        then: impl FnOnce(&Choices<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        budget.check(source)?;
        let of_source = |error| budget.about(source, error);
        let types = moves::types(budget.types.as_deref()).map_err(Error::from)?;
        let movable = moves::movable(source, &types).map_err(of_source)?;
        // Known before anything is measured.
        let smallest = fit::smallest(source, &movable).map_err(of_source)?;
        if let Some(wanted) = budget.bytes.filter(|wanted| *wanted < smallest) {
            return Err(of_source(FitError::TooSmall { wanted, smallest }));
        }
        let statistics = budget.statistics(source, &movable, self.force, inputs, ui)?;
        if statistics.cuts.is_empty() {
            ui.remark("note: llama.cpp has one size for all layers of such a model, so no units or channels go");
        }
        let groups = fit::groups(source, &movable, &statistics).map_err(of_source)?;
        then(&Choices::new(
            budget,
            source,
            (&movable, &statistics),
            &groups,
        ))
    }

    /// Carries out what makes a model fit.
    fn make(&self, to_fit: &ToFit, dry_run: bool, ui: &dyn Ui) -> Result<Converted, Error> {
        let job = Self {
            fit: None,
            quantize: Some(to_fit.quantization.clone()),
            dry_run,
            ..self.clone()
        };
        job.carry_out(to_fit.plan.clone(), ui)
    }
}
