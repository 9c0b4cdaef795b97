//! What a model takes of memory when it is run, held against what there is.

use std::path::Path;

use headshare_convert::convert::{self, Fitted};
use headshare_convert::engine::cache_bytes;
use headshare_convert::fit::FitError;
use headshare_convert::input::ModelFile;
use headshare_convert::plan::Plan;
use headshare_eval::bench::SpeedTest;

use super::bracket::Bracket;
use super::budget::{Budget, InMemory, MadeToFit, OfMemory};
use super::choice::{Choices, SizeOf};
use crate::bench::{LoadMode, Measure};
use crate::error::Context as _;
use crate::load::Resolve;
use crate::worker::ask;
use crate::{Error, Ui, Unit};

/// Attempts to come close to the memory that there is.
const ATTEMPTS: usize = 8;

/// What is left of the memory may be so large a part of it before more is used.
const SPARE: u64 = 100;

impl InMemory {
    /// What the model in `file` takes, as `run` runs it: by a process of its own.
    pub fn taken_by(self, file: &Path, ui: &dyn Ui) -> Result<OfMemory, Error> {
        let run = Measure {
            file: file.to_owned(),
            load_mode: LoadMode::Resolve(Resolve::Auto),
            threads: None,
            test: SpeedTest {
                n_prompt: self.ctx,
                n_gen: 1,
                n_batch: 2048,
                n_ubatch: 512,
            },
        };
        let taken = ask(&run, None, ui)?.memory;
        let (Some(all), Some(weights)) = (taken.pss_bytes, taken.weights_pss_bytes) else {
            return Err(Error::failed(std::io::Error::other(
                "this system does not tell how much memory a process takes: give --fit a number of bytes",
            )));
        };
        Ok(OfMemory {
            bytes: self.bytes,
            ctx: self.ctx,
            weights,
            others: all.saturating_sub(weights),
            left: self.bytes as i64 - all as i64,
        })
    }
}

impl Budget {
    /// The largest file that may do.
    pub(super) fn first_limit(&self, source: &ModelFile, ui: &dyn Ui) -> Result<u64, Error> {
        let largest = self.bytes.unwrap_or(u64::MAX).min(source.len());
        let Some(memory) = self.memory else {
            return Ok(largest);
        };
        let cache = cache_bytes(&source.gguf, memory.ctx);
        if cache >= memory.bytes {
            return Err(self.about(source, no_memory(cache, memory)));
        }
        let taken = (memory.taken_by(source.path(), ui)).about(|| source.path().display())?;
        if taken.left >= 0 && largest >= source.len() {
            let (takes, memory, ctx) = (taken.weights + taken.others, memory.bytes, memory.ctx);
            return Err(self.about(source, FitError::InMemoryAlready { takes, memory, ctx }));
        }
        if taken.others >= memory.bytes {
            return Err(self.about(source, no_memory(taken.others, memory)));
        }
        // Bytes less in the file are bytes less in memory, about.
        let over = taken.left.min(0).unsigned_abs();
        Ok(largest.min(source.len().saturating_sub(over)))
    }
}

fn no_memory(others: u64, InMemory { bytes, ctx }: InMemory) -> FitError {
    FitError::NoMemory {
        others,
        memory: bytes,
        ctx,
    }
}

impl Choices<'_> {
    /// What was chosen for files of at most `limit` bytes or, where memory is bounded, of as
    /// many as that allows.
    pub fn in_memory(
        &self,
        limit: u64,
        size_of: SizeOf<'_>,
        ui: &dyn Ui,
    ) -> Result<Vec<(Plan, MadeToFit)>, Error> {
        let Some(memory) = self.budget.memory else {
            let chosen = self.within(limit, size_of)?;
            return chosen.map_err(|smallest| self.too_small(limit, smallest));
        };
        let largest = self.budget.bytes.unwrap_or(self.source.len());
        let mut limit = limit;
        let mut best: Option<(u64, Vec<(Plan, MadeToFit)>)> = None;
        // Limits of files: the largest that fits so far, and the smallest that does not.
        let mut limits = Bracket::default();
        let bar = ui.bar("memory", ATTEMPTS as u64, Unit::Parts);
        for attempt in 0..ATTEMPTS {
            bar.set(attempt as u64);
            let mut candidates = match self.within(limit, size_of)? {
                Ok(candidates) => candidates,
                Err(smallest) if self.budget.bytes.is_some_and(|bytes| bytes < smallest) => {
                    return Err(self.too_small(largest, smallest));
                }
                // With fewer units the KV cache is smaller, too: what was taken off may have been
                // too much.
                Err(smallest) => match limits.too_large {
                    Some(over) if over <= smallest => break,
                    _ => {
                        limit = smallest.min(largest);
                        continue;
                    }
                },
            };
            let taken = self.taken_by(&candidates[0].0, memory, ui)?;
            candidates[0].1.memory = Some(taken);
            let left = taken.left.unsigned_abs();
            let next = if taken.left < 0 {
                limits.too_large = Some(limit);
                limit.saturating_sub(left)
            } else {
                limits.fits = Some(limit);
                let is_full = left <= memory.bytes / SPARE || limit >= largest;
                if best.as_ref().is_none_or(|(least, _)| left < *least) {
                    best = Some((left, candidates));
                }
                if is_full {
                    break;
                }
                limit.saturating_add(left - left / 8).min(largest)
            };
            // A byte of the file may be more in memory, or less.
            match limits.next(next) {
                Some(next) => limit = next,
                None => break,
            }
        }
        drop(bar);
        let Some((_, candidates)) = best else {
            let (memory, ctx) = (memory.bytes, memory.ctx);
            return Err((self.budget).about(self.source, FitError::NotInMemory { memory, ctx }));
        };
        // The KV cache of another plan may be larger.
        let mut fitting = Vec::new();
        for (plan, mut fit) in candidates {
            let taken = match fit.memory {
                Some(taken) => taken,
                None => self.taken_by(&plan, memory, ui)?,
            };
            if taken.left >= 0 {
                fit.memory = Some(taken);
                fitting.push((plan, fit));
            }
        }
        Ok(fitting)
    }

    /// What the model takes that `plan` makes, when its weights are only rounded.
    fn taken_by(&self, plan: &Plan, memory: InMemory, ui: &dyn Ui) -> Result<OfMemory, Error> {
        let nothing = Fitted::default();
        let model = convert::prepare(self.source, Some(plan.clone()), nothing, self.page)?;
        let file = convert::write_to_scratch(&model)?;
        let taken = memory.taken_by(&file.path_for_children(), ui);
        taken.about(|| self.source.path().display())
    }
}
