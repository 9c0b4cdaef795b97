//! The calibration engine: leads visitors through the matrices of a model, in
//! the order in which they run, and lets them change what comes after.
//!
//! The original model and a changed one run over the same windows of a text in
//! lockstep. Before each matrix that is multiplied by (a [`Site`]) the engine
//! stops both, hands over what goes into it in the *changed* stream and what
//! should come out by the *original* one, as rows or as sums, and takes back
//! new bytes, which the rest of the changed stream is computed with. So each
//! matrix can make up for what the ones before it lost.
//!
//! A [`Visitor`] says which sites it wants and what it makes of one; several
//! can be led through one pass. The role of a matrix decides its target
//! (`sites`). `docs/METHOD.md` has the equations.

mod error;
mod lockstep;
pub mod normal;
mod options;
mod role;
mod shared;
pub mod sites;
mod stop;
#[cfg(test)]
mod tests;
mod visit;
pub(crate) mod weights;
mod windows;

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use headshare_runtime::calibrate::{Calibrator, CalibratorParams};

pub use error::EngineError;
pub use options::{Options, Text, tokens_to_fit};
pub use role::Role;
pub use shared::{Block, Shared, by_donor, by_expert, shared_by};
pub use sites::{Experts, Site, Table, Target};
pub use stop::inverse_squares;
pub use visit::{Frequencies, Seen, Takes, Visitor, Wants, Weighting};
pub use windows::{Windows, cache_bytes};

use crate::convert::variant::Variant;
use crate::input::ModelFile;
use crate::model::architecture;
use options::{logits_bytes, useful_logits};
use shared::{Gatherer, Links};
use stop::{Aim, LastGrams, Stop, Tokens};

/// Tokens that pass through the last layer's feed-forward part, at most, unless it takes more to
/// fit its widest matrix: memory is set aside for their logits, no more than [`logits_bytes`].
const MAX_OUTPUTS: u64 = 8192;

/// Tokens that pass through the end of the last layer in a pass over `windows`.
pub fn outputs(windows: &Windows, options: &Options) -> usize {
    let vocabulary = u64::from(windows.vocabulary).max(1);
    let useful = useful_logits(vocabulary, windows.widest);
    MAX_OUTPUTS
        .max(tokens_to_fit(windows.widest as usize) as u64)
        .min(logits_bytes(options.memory, useful) / (4 * vocabulary))
        .clamp(windows.count.into(), windows.tokens.len() as u64) as usize
}

/// Two streams over the same text.
pub struct Engine<'a> {
    source: &'a ModelFile,
    windows: &'a Windows,
    tokens: Tokens,
    original: Calibrator,
    changed: Calibrator,
    sites: Vec<Site>,
    /// What targets are made of, by site; none where the original has no such
    /// matrix.
    aims: Vec<Option<Aim>>,
    links: Links,
}

impl<'a> Engine<'a> {
    /// Loads `source`, and once more to be changed: as `variant` where that has
    /// other shapes or types. The original is loaded as `original` where that has
    /// other types, which are read faster.
    ///
    /// # Errors
    /// When llama.cpp cannot load it or has no memory for it.
    pub fn load(
        source: &'a ModelFile,
        original: Option<&Variant<'_>>,
        variant: Option<&Variant<'_>>,
        windows: &'a Windows,
        options: &Options,
    ) -> Result<Self, EngineError> {
        let n_tokens = windows.tokens.len();
        let outputs = outputs(windows, options);
        let params = CalibratorParams {
            windows: windows.count,
            window: windows.window,
            outputs: outputs as u32,
            n_threads: options.n_threads,
            stop: Arc::clone(&options.stop),
        };
        let load = |variant: Option<&Variant<'_>>| match variant {
            Some(v) => Calibrator::load_virtual(v, v.gguf(), source.path(), &params),
            None => Calibrator::load(source.path(), &params),
        };
        let (original, changed) = (load(original)?, load(variant)?);
        source.require_numbers()?;
        let name = source.gguf.architecture().ok().flatten();
        let residual = name.and_then(architecture).map(|row| row.residual);
        let sites = sites::find(changed.graph(), residual);
        let theirs = sites::find(original.graph(), residual);
        let aims = (sites.iter())
            .map(|site| {
                let same = |other: &&Site| match site.role {
                    // One that is tied may not be any more.
                    Role::Head => other.role == Role::Head,
                    _ => other.name == site.name,
                };
                theirs.iter().find(same).map(|original| Aim {
                    node: original.target.node(),
                    input: original.input,
                    chosen: original.experts.map(|experts| experts.chosen),
                    width: original.rows,
                    rows: variant.and_then(|variant| variant.kept_rows(&site.name)),
                })
            })
            .collect();
        let held_from = (windows.count - windows.held_out()) as usize * windows.window as usize;
        Ok(Self {
            source,
            windows,
            tokens: Tokens::new(n_tokens, outputs, held_from),
            original,
            changed,
            sites,
            aims,
            links: Links::default(),
        })
    }

    /// Lets blocks have the data of others in the changed model, from now on. Donors'
    /// blocks are the same rows or have none in common ([`by_donor`]).
    ///
    /// # Errors
    /// When llama.cpp does not use a matrix.
    pub fn share(&mut self, shared: &[Shared]) -> Result<(), EngineError> {
        self.links = Links::new(self.changed.graph(), shared)?;
        self.links.put(&mut self.changed)?;
        Ok(())
    }

    /// Gives blocks the data of others in the changed model, once: for weights that nothing
    /// is written to.
    ///
    /// # Errors
    /// When llama.cpp does not use a matrix.
    pub fn put(&mut self, shared: &[Shared]) -> Result<(), EngineError> {
        Ok(Links::new(self.changed.graph(), shared)?.put(&mut self.changed)?)
    }

    /// Runs the streams once to add up what the users of shared blocks feed them,
    /// which [`Seen::donated`] then has. It keeps a Gram matrix and a product with
    /// the targets of each block that is used more than once, twice: of the
    /// windows to fit on and of those held out.
    ///
    /// # Errors
    /// When a stream breaks off.
    pub fn gather(&mut self, progress: &dyn Fn(f64)) -> Result<(), EngineError> {
        let mut links = std::mem::take(&mut self.links);
        let done = self.run(&mut [&mut Gatherer(&mut links)], progress);
        self.links = links;
        done
    }

    /// The changed model, to be changed before the pass.
    pub fn changed(&mut self) -> &mut Calibrator {
        &mut self.changed
    }

    /// All sites, in the order in which they are visited.
    pub fn sites(&self) -> &[Site] {
        &self.sites
    }

    /// Tokens that pass through the end of the last layer.
    pub fn outputs(&self) -> usize {
        self.tokens.outputs()
    }

    /// Leads `visitors` through the sites. `progress` is told the part that is
    /// done.
    ///
    /// # Errors
    /// When a stream breaks off, and those of the visitors.
    pub fn run<E: From<EngineError>>(
        &mut self,
        visitors: &mut [&mut dyn Visitor<E>],
        progress: &dyn Fn(f64),
    ) -> Result<(), E> {
        self.show_tables(visitors)?;
        let mut todo = Vec::new();
        for (site, aim) in self.sites.iter().zip(&self.aims) {
            let mut wants = Vec::new();
            for visitor in &mut *visitors {
                wants.push(visitor.wants(site)?);
            }
            if wants.iter().any(|w| *w != Wants::Nothing) {
                todo.push((site, aim, wants));
            }
        }
        if todo.is_empty() {
            return Ok(());
        }
        // Right before the product, so that both streams come to all sites in
        // the same order: what it reads is still in place then.
        let stops: Vec<usize> = todo.iter().map(|(site, ..)| site.product - 1).collect();
        let mut keep = Vec::new();
        let mut original_stops = Vec::new();
        let mut chosen = HashMap::new();
        for (site, aim, wants) in &todo {
            keep.push(site.input);
            keep.extend(site.experts.map(|experts| experts.chosen));
            let aim = || {
                aim.as_ref().ok_or_else(|| {
                    let problem = format!("the original does not multiply by {}", site.name);
                    EngineError::Internal(problem)
                })
            };
            if wants.contains(&Wants::BothInputs) {
                original_stops.push(aim()?.input);
            }
            if wants.contains(&Wants::Fit) {
                let aim = aim()?;
                original_stops.push(aim.node);
                chosen.extend(aim.chosen.map(|chosen| (aim.node, chosen)));
                if let Target::Sum { residual, .. } = site.target {
                    keep.push(residual);
                }
            }
        }
        let by_stop: HashMap<usize, usize> = (stops.iter().copied()).zip(0..).collect();
        let is_output = |i: usize| self.tokens.is_output(i);
        let changed = &mut self.changed;
        let (source, tokens, links) = (self.source, &self.tokens, &self.links);
        let mut grams = LastGrams::default();
        lockstep::beside(
            &mut self.original,
            &self.windows.tokens,
            &is_output,
            &original_stops,
            &chosen,
            |original| {
                let mut done = 0;
                let mut failed = None;
                changed.run::<EngineError>(
                    &self.windows.tokens,
                    &is_output,
                    &stops,
                    &keep,
                    &mut |stop, pass| {
                        let (site, aim, wants) = &todo[by_stop[&stop]];
                        let stop = Stop {
                            source,
                            tokens,
                            site,
                            aim: aim.as_ref(),
                            wants,
                            links,
                        };
                        if let Err(error) = stop.visit(pass, original, visitors, &mut grams) {
                            failed = Some(error);
                            return ControlFlow::Break(Ok(()));
                        }
                        done += 1;
                        progress(f64::from(done) / todo.len() as f64);
                        if done as usize == todo.len() {
                            return ControlFlow::Break(Ok(()));
                        }
                        ControlFlow::Continue(())
                    },
                )?;
                match failed {
                    Some(error) => Err(error),
                    None => Ok(()),
                }
            },
        )
    }

    /// Shows the tables to `visitors`, and writes what they make of them.
    fn show_tables<E: From<EngineError>>(
        &mut self,
        visitors: &mut [&mut dyn Visitor<E>],
    ) -> Result<(), E> {
        for table in sites::tables(self.changed.graph(), &self.sites) {
            let rows = self.windows.frequencies(table.rows);
            for visitor in &mut *visitors {
                if let Some(new) = visitor.table(&table, &rows)? {
                    self.changed
                        .write_weight(table.weight, 0, &new)
                        .map_err(EngineError::from)?;
                }
            }
        }
        Ok(())
    }
}
