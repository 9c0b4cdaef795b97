//! Which units share or go, from what was measured.
//!
//! A plan costs the sum, over its units, of the divergence that each causes
//! alone; a unit whose best donor is an alias itself (or gone) takes the best
//! donor that is left, and its divergence grows as the loss does. Units are
//! taken one after the other, always the one that adds least.

use std::collections::{BTreeMap, BTreeSet};

use super::{Survey, Unit};
use crate::matching::UnitId;

/// What may become of units.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Units {
    /// They use another unit's weights.
    #[default]
    Share,
    /// They are deleted.
    Drop,
    /// Whichever costs less for the bytes that it saves.
    Auto,
}

/// How much to choose.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Goal {
    /// So many units.
    Count(usize),
    /// As many as save so many bytes.
    Bytes(u64),
}

/// Bytes that a unit's loss saves: shared, its q, k and v; dropped, its columns
/// of `attn_output`, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// As an alias.
    pub shared: u64,
    /// Deleted.
    pub dropped: u64,
}

/// What was chosen.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Chosen {
    /// The units that share, with their donors and what each costs, in nats.
    pub shared: BTreeMap<UnitId, (UnitId, f64)>,
    /// The units that go, and what each costs.
    pub dropped: BTreeMap<UnitId, f64>,
}

impl Survey {
    /// Chooses. `sizes` tells what a unit saves; only what `units` allows is
    /// done.
    pub fn select(&self, units: Units, goal: Goal, sizes: &dyn Fn(UnitId) -> Sizes) -> Chosen {
        let mut chosen = Chosen::default();
        let mut saved = 0;
        loop {
            let there = chosen.shared.len() + chosen.dropped.len();
            match goal {
                Goal::Count(count) if there >= count => return chosen,
                Goal::Bytes(bytes) if saved >= bytes => return chosen,
                _ => {}
            }
            let mut best: Option<(f64, Chosen, u64)> = None;
            let before = chosen.cost();
            for unit in &self.units {
                let id = unit.id();
                for dropped in [false, true] {
                    let allowed = match units {
                        Units::Share => !dropped,
                        Units::Drop => dropped,
                        Units::Auto => true,
                    };
                    if !allowed {
                        continue;
                    }
                    let Some(next) = self.with(&chosen, unit, dropped) else {
                        continue;
                    };
                    let size = sizes(id);
                    let had = chosen.shared.contains_key(&id);
                    let gain = match (dropped, had) {
                        (true, true) => size.dropped - size.shared,
                        (true, false) => size.dropped,
                        (false, _) => size.shared,
                    };
                    let added = (next.cost() - before).max(0.0);
                    let price = match goal {
                        Goal::Count(_) => added,
                        Goal::Bytes(_) => added / gain.max(1) as f64,
                    };
                    if best.as_ref().is_none_or(|(least, ..)| price < *least) {
                        best = Some((price, next, gain));
                    }
                }
            }
            let Some((_, next, gain)) = best else {
                return chosen;
            };
            chosen = next;
            saved += gain;
        }
    }

    /// `chosen` with `unit` shared or dropped as well; `None` when that cannot
    /// be.
    fn with(&self, chosen: &Chosen, unit: &Unit, dropped: bool) -> Option<Chosen> {
        let id = unit.id();
        if chosen.dropped.contains_key(&id) || (!dropped && chosen.shared.contains_key(&id)) {
            return None;
        }
        let mut next = chosen.clone();
        next.shared.remove(&id);
        if dropped {
            next.dropped.insert(id, unit.dropped?.divergence);
        }
        let mut gone: BTreeSet<UnitId> = next.dropped.keys().copied().collect();
        gone.extend(next.shared.keys());
        gone.insert(id);
        if !dropped {
            next.shared.insert(id, unit.donor(&gone)?);
        }
        let orphans: Vec<UnitId> = next
            .shared
            .iter()
            .filter(|(_, (donor, _))| *donor == id)
            .map(|(&alias, _)| alias)
            .collect();
        for alias in orphans {
            let unit = self.units.iter().find(|u| u.id() == alias)?;
            next.shared.insert(alias, unit.donor(&gone)?);
        }
        Some(next)
    }
}

impl Unit {
    /// The best donor that is not `gone`, and what using it costs.
    fn donor(&self, gone: &BTreeSet<UnitId>) -> Option<(UnitId, f64)> {
        let effect = self.shared?;
        let donor = self.donors.iter().find(|d| !gone.contains(&d.id()))?;
        let grown = if effect.loss > 0.0 {
            donor.loss / effect.loss
        } else {
            1.0
        };
        Some((donor.id(), effect.divergence * grown))
    }
}

impl Chosen {
    /// What all of it costs.
    pub fn cost(&self) -> f64 {
        let shared: f64 = self.shared.values().map(|(_, cost)| cost).sum();
        shared + self.dropped.values().sum::<f64>()
    }
}
