//! Choosing what makes a model fit, and doing it.

use std::path::Path;

use headshare_convert::fit::{self, FitError, Statistics, moves};
use headshare_convert::input::ModelFile;
use headshare_convert::plan::Plan;
use headshare_eval::analyze::picture::Format;
use headshare_files::{AtomicFile, FileId};

use super::budget::{Budget, MadeToFit, as_planned};
use super::choice::Choices;
use crate::convert::{Change, Convert, Converted, calibrate};
use crate::output::Written;
use crate::{Error, Quiet, Ui};

impl Convert {
    /// Chooses what makes `source` fit, and does it.
    pub(in crate::convert) fn made_to_fit(
        &self,
        budget: &Budget,
        ui: &dyn Ui,
    ) -> Result<Converted, Error> {
        if self.keep_duplicates {
            return Err(Error::usage(
                "what is to fit is stored once where it is equal: --keep-duplicates does not go with it",
            ));
        }
        if self.change != Change::Lossless || self.repair.is_some() || self.quantize.is_some() {
            return Err(Error::usage(
                "what fits into so many bytes is chosen by itself: no other change goes with it",
            ));
        }
        let source = ModelFile::open_plain(&self.source)?;
        let inputs = self.inputs_to_fit(budget, &source)?;
        let is_picture = |path: &&Path| Format::of(path).is_ok();
        let written = match self.dry_run {
            true => self.output.as_deref().filter(is_picture),
            false => Some(self.written()?),
        };
        if let Some(path) = written {
            AtomicFile::check(path, self.force, &inputs)?;
        }
        let (plan, mut fit) = self.chosen_to_fit(budget, &source, &inputs, self.dry_run, ui)?;
        let mut done = self.make(budget, &source, &plan, self.dry_run, ui)?;
        match written {
            Some(path) if self.dry_run => {
                let picture = Written {
                    path,
                    force: self.force,
                    inputs: &inputs,
                };
                fit.draw(&self.source, done.output.bytes, picture, ui)?;
            }
            Some(path) => {
                let memory = budget.memory.map(|memory| memory.taken_by(path, ui));
                fit.memory = memory.transpose()?;
            }
            None => {}
        }
        done.fit = Some(fit);
        Ok(done)
    }

    /// The files that are read, which nothing may overwrite.
    pub(super) fn inputs_to_fit(
        &self,
        budget: &Budget,
        source: &ModelFile,
    ) -> Result<Vec<FileId>, Error> {
        let mut inputs = vec![source.file.id()];
        inputs.extend(calibrate::id(&budget.calibration.text)?);
        self.check_stats(&budget.stats, &mut inputs)?;
        Ok(inputs)
    }

    /// What makes `source` fit: what is `predicted` to be best, or else the best of what was
    /// made with a few windows.
    pub(super) fn chosen_to_fit(
        &self,
        budget: &Budget,
        source: &ModelFile,
        inputs: &[FileId],
        predicted: bool,
        ui: &dyn Ui,
    ) -> Result<(Plan, MadeToFit), Error> {
        // Known before the model is run.
        moves::types(budget.types.as_deref())?;
        let start = budget.first_limit(source, ui)?;
        let candidates = self.with_choices(budget, source, inputs, ui, |choices| {
            let size_of = |plan: &Plan| self.size_of(budget, source, plan);
            choices.in_memory(start, &size_of, ui)
        })?;
        let best = match predicted {
            true => candidates.into_iter().next(),
            false => self.best_of(candidates, budget, source, ui)?,
        };
        best.ok_or_else(|| Error::failed(std::io::Error::other("no plan was found")))
    }

    /// What `then` makes of all that could become of `source`, once that was measured.
    pub(super) fn with_choices<T>(
        &self,
        budget: &Budget,
        source: &ModelFile,
        inputs: &[FileId],
        ui: &dyn Ui,
        then: impl FnOnce(&Choices<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        budget.check(source)?;
        source.require_numbers()?;
        let of_source = |error| budget.about(source, error);
        let types = moves::types(budget.types.as_deref()).map_err(Error::from)?;
        let movable = moves::movable(source, &types).map_err(of_source)?;
        // Known before anything is measured.
        let page = self.page()?;
        if let Some(wanted) = budget.bytes {
            let smallest = self.smallest_to_fit(budget, source)?;
            if wanted < smallest {
                return Err(of_source(FitError::TooSmall { wanted, smallest }));
            }
        }
        let statistics = budget.statistics(source, &movable, self.force, inputs, ui)?;
        if statistics.cuts.is_empty() {
            let shares = match statistics.units.is_empty() {
                true => "",
                false => "; units may use the weights of others",
            };
            ui.remark(&format!(
                "note: no units or channels go: llama.cpp has no layers of different sizes for such a model, or its layers have experts{shares}"
            ));
        }
        if statistics.lacks_units {
            ui.remark("note: there was no time to measure what shared units cost, so none share");
        }
        let groups = fit::groups(source, &movable, &statistics, page).map_err(of_source)?;
        then(&Choices::new(
            budget,
            (source, page),
            (&movable, &statistics),
            &groups,
        ))
    }

    /// The bytes of the smallest file that all moves reach, whatever they cost.
    pub(crate) fn smallest_to_fit(
        &self,
        budget: &Budget,
        source: &ModelFile,
    ) -> Result<u64, Error> {
        let of_source = |error| budget.about(source, error);
        let types = moves::types(budget.types.as_deref()).map_err(Error::from)?;
        let movable = moves::movable(source, &types).map_err(of_source)?;
        let nothing = Statistics::of_nothing(source, &movable);
        let page = self.page()?;
        let groups = fit::groups(source, &movable, &nothing, page).map_err(of_source)?;
        let choices = Choices::new(budget, (source, page), (&movable, &nothing), &groups);
        choices.smallest_size(&|plan: &Plan| self.size_of(budget, source, plan))
    }

    /// The bytes of the file that `plan` makes of `source`.
    pub(super) fn size_of(
        &self,
        budget: &Budget,
        source: &ModelFile,
        plan: &Plan,
    ) -> Result<u64, Error> {
        Ok(self.make(budget, source, plan, true, &Quiet)?.output.bytes)
    }

    /// Carries out a `plan` that makes `source` fit.
    pub(super) fn make(
        &self,
        budget: &Budget,
        source: &ModelFile,
        plan: &Plan,
        dry_run: bool,
        ui: &dyn Ui,
    ) -> Result<Converted, Error> {
        let job = Self {
            fit: None,
            quantize: Some(as_planned(&budget.calibration)),
            dry_run,
            ..self.clone()
        };
        job.carry_out(source, Some(plan.clone()), ui)
    }
}
