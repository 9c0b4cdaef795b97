//! What a model takes of memory when it is run, held against what there is.

use std::path::Path;

use headshare_convert::convert::{self, Fitted};
use headshare_convert::engine::cache_bytes;
use headshare_convert::fit::{FitError, units_at_least};
use headshare_convert::input::ModelFile;
use headshare_convert::plan::Plan;
use headshare_eval::bench::SpeedTest;
use headshare_format::TensorInfo;

use super::bracket::Bracket;
use super::budget::{Budget, InMemory, MadeToFit, OfMemory};
use super::choice::{Choices, SizeOf};
use crate::bench::{LoadMode, Measure};
use crate::error::Context as _;
use crate::load::Resolve;
use crate::worker::ask;
use crate::{Advice, Error, Ui, Unit};

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
    /// The bytes of memory that `source` takes above what there is.
    pub(super) fn excess(&self, source: &ModelFile, ui: &dyn Ui) -> Result<u64, Error> {
        let Some(memory) = self.memory else {
            return Ok(0);
        };
        check_positions(source, memory)?;
        // Units that go leave room in the KV cache.
        let cache = cache_bytes(&source.gguf, memory.ctx);
        let least = (cache as f64 * units_at_least(source)) as u64;
        if least >= memory.bytes {
            return Err(self.about(source, no_memory(least, memory)));
        }
        let taken = (memory.taken_by(source.path(), ui)).about(|| source.path().display())?;
        let is_small = self.bytes.is_none_or(|bytes| bytes >= source.len());
        if taken.left >= 0 && is_small {
            let (takes, memory, ctx) = (taken.weights + taken.others, memory.bytes, memory.ctx);
            return Err(self.about(source, FitError::InMemoryAlready { takes, memory, ctx }));
        }
        let others = taken.others.saturating_sub(cache - least);
        if others >= memory.bytes {
            return Err(self.about(source, no_memory(others, memory)));
        }
        Ok(taken.left.min(0).unsigned_abs())
    }
}

/// Whether `source` has learned positions for so many tokens.
fn check_positions(source: &ModelFile, memory: InMemory) -> Result<(), Error> {
    let table = source.gguf.tensor("position_embd.weight");
    match table
        .map(TensorInfo::rows)
        .filter(|&rows| rows < u64::from(memory.ctx))
    {
        Some(rows) => Err(Error::usage(format!(
            "{}: the model has positions for {rows} tokens, fewer than a context of {}",
            source.path().display(),
            memory.ctx
        ))
        .advise(Advice::Words(format!("--ctx {rows} is the most")))),
        None => Ok(()),
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
    /// What was chosen for files of at most the bytes that there are or, where memory is
    /// bounded, of as many as that allows, of which the source takes `excess` bytes too many.
    pub fn in_memory(
        &self,
        excess: u64,
        size_of: SizeOf<'_>,
        ui: &dyn Ui,
    ) -> Result<Vec<(Plan, MadeToFit)>, Error> {
        let whole = self.source.len() + self.cache_of_all();
        let largest = self.budget.bytes.unwrap_or(whole).min(whole);
        let Some(memory) = self.budget.memory else {
            let chosen = self.within(largest, size_of)?;
            return chosen.map_err(|smallest| self.too_small(largest, smallest));
        };
        // Bytes less in the file, and in the cache, are bytes less in memory, about.
        let mut limit = largest.min(whole.saturating_sub(excess));
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
                // What was taken off may have been too much.
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
