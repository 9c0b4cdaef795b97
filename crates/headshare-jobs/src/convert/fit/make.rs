//! Choosing what makes a model fit, and doing it.

use std::collections::BTreeSet;
use std::path::Path;

use headshare_convert::engine::cache_bytes;
use headshare_convert::fit::cuts::Part;
use headshare_convert::fit::{self, Counts, FitError, Statistics, moves};
use headshare_convert::input::ModelFile;
use headshare_convert::model::AttentionMap;
use headshare_convert::plan::Plan;
use headshare_eval::analyze::picture::Format;
use headshare_files::{AtomicFile, FileId};
use headshare_format::GgmlType;
use headshare_runtime::quants::multiplies_fast;

use super::budget::{Budget, MadeToFit, Retyped, as_planned};
use super::choice::Choices;
use crate::convert::{Change, Convert, Converted, calibrate};
use crate::output::Written;
use crate::{Advice, Error, Quiet, Ui};

/// Extensions of pictures and documents that are not drawn.
const NOT_DRAWN: [&str; 7] = ["pdf", "eps", "jpg", "jpeg", "gif", "webp", "html"];

/// A path that a dry run draws to; none of a model that it would write.
fn drawn(path: &Path) -> Result<Option<&Path>, Error> {
    let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
    match Format::of(path) {
        Ok(_) => Ok(Some(path)),
        Err(_) if !NOT_DRAWN.iter().any(|other| extension == *other) => Ok(None),
        Err(why) => Err(
            Error::usage(format!("{}: {why}", path.display())).advise(Advice::Words(
                "a dry run draws what other sizes would cost".into(),
            )),
        ),
    }
}

/// A path that a model is written to.
fn model(path: &Path) -> Result<&Path, Error> {
    match Format::of(path) {
        Ok(_) => Err(Error::usage(format!(
            "{}: a picture is drawn with --dry-run only, and a model's name ends in .gguf",
            path.display()
        ))),
        Err(_) => Ok(path),
    }
}

/// Says why nothing of a kind goes.
fn say_what_stays(source: &ModelFile, statistics: &Statistics, ui: &dyn Ui) {
    let goes = |part| statistics.cuts.iter().any(|cut| cut.part == part);
    let map = AttentionMap::of(&source.gguf).ok();
    let has_units = map.is_some_and(|map| map.layers.iter().any(|layer| layer.n_head_kv > 1));
    if has_units && !goes(Part::Attention) {
        let shares = match statistics.units.is_empty() {
            true => "",
            false => "; they may use the weights of others",
        };
        ui.remark(&format!(
            "note: no units go: llama.cpp has no numbers of heads by layer for such a model, some are gone already, or their columns of attn_output are no whole blocks{shares}"
        ));
    }
    if !goes(Part::FeedForward) {
        ui.remark("note: no feed-forward channels go: llama.cpp has one number of them for all layers of such a model, its layers have experts, or gate and up are one tensor");
    }
    if statistics.lacks_units {
        ui.remark("note: there was no time to measure what shared units cost, so none share");
    }
}

/// Names a type that tensors get and ggml multiplies slowly.
fn say_what_is_slow(fit: &MadeToFit, ui: &dyn Ui) {
    let is_slow = |kind: &&Retyped| {
        let to = GgmlType::named(&kind.to);
        kind.from != kind.to && to.is_some_and(|to| !multiplies_fast(to.id()))
    };
    let slow = fit.changes.types.iter().filter(is_slow);
    let names: BTreeSet<&str> = slow.map(|kind| kind.to.as_str()).collect();
    if !names.is_empty() {
        let names: Vec<&str> = names.into_iter().collect();
        ui.remark(&format!(
            "note: some tensors get types with which prompts are read more slowly on x86 ({}); name others with --types where that counts",
            names.join(", ")
        ));
    }
}

impl Budget {
    /// Bytes of the KV cache for each unit of attention of `source`, where memory alone is
    /// bounded. Where the file is bounded, too, units count by their weights alone.
    fn unit_cache(&self, source: &ModelFile) -> u64 {
        let Some(memory) = self.memory.filter(|_| self.bytes.is_none()) else {
            return 0;
        };
        let Ok(map) = AttentionMap::of(&source.gguf) else {
            return 0;
        };
        let units = map.layers.iter().map(|layer| u64::from(layer.n_head_kv));
        cache_bytes(&source.gguf, memory.ctx) / units.sum::<u64>().max(1)
    }
}

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
        let written = match self.dry_run {
            true => self.output.as_deref().map(drawn).transpose()?.flatten(),
            false => Some(model(self.written()?)?),
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
                if let Some(over) = fit
                    .memory
                    .map(|memory| memory.left)
                    .filter(|left| *left < 0)
                {
                    ui.warning(&format!(
                        "the model that was written takes {} bytes of memory more than --ram: what a process takes is never quite the same; a slightly smaller --ram makes room",
                        -over
                    ));
                }
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
        let excess = budget.excess(source, ui)?;
        let candidates = self.with_choices(budget, source, inputs, ui, |choices| {
            let size_of = |plan: &Plan| self.size_of(budget, source, plan);
            let mut candidates = choices.in_memory(excess, &size_of, ui)?;
            if let Some((_, first)) = candidates.first_mut().filter(|_| predicted) {
                first.frontier = choices.frontier(&size_of)?;
            }
            Ok(candidates)
        })?;
        let best = match predicted {
            true => candidates.into_iter().next(),
            false => self.best_of(candidates, budget, source, ui)?,
        };
        let best = best.ok_or_else(|| Error::failed(std::io::Error::other("no plan was found")))?;
        say_what_is_slow(&best.1, ui);
        Ok(best)
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
        say_what_stays(source, &statistics, ui);
        let counts = Counts {
            page,
            unit_cache: budget.unit_cache(source),
        };
        let groups = fit::groups(source, &movable, &statistics, counts).map_err(of_source)?;
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
        let counts = Counts {
            page,
            unit_cache: 0,
        };
        let groups = fit::groups(source, &movable, &nothing, counts).map_err(of_source)?;
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
