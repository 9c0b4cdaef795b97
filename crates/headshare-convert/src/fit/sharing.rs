//! Units that use another unit's weights, and what that costs: the calibrated choice
//! ([`crate::repair::choose`]) measures it. Layers do so in pairs: units of one use units
//! of an earlier one, and both have the same types then. A layer is in one pair at most.

use std::collections::BTreeSet;

use super::error::FitError;
use crate::engine::{Options, Windows};
use crate::input::ModelFile;
use crate::model::{AttentionMap, Part, UnitId};
use crate::plan::{Edit, Share};
use crate::repair::check_supported;
use crate::repair::choose::{self, Donor, Effect, Subject, Unit};

/// What a layer can use of an earlier one.
#[derive(Debug, Clone, PartialEq)]
pub struct Sharing {
    /// The layer.
    pub layer: u32,
    /// The earlier one.
    pub donor_layer: u32,
    /// Units of the layer, those first that cost least.
    pub steps: Vec<Step>,
}

/// A unit that can use another one's weights.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// Which of its layer.
    pub unit: u32,
    /// Whose weights it uses, of the earlier layer.
    pub donor_unit: u32,
    /// The divergence, in nats, that this causes.
    pub cost: f64,
}

impl Sharing {
    /// The cost of so many steps.
    pub fn cost(&self, steps: usize) -> f64 {
        self.steps[..steps].iter().map(|step| step.cost).sum()
    }

    /// The first so many steps as edits of a plan.
    pub fn edits(&self, steps: usize) -> Vec<Edit> {
        let edit = |step: &Step| {
            let unit = |layer, unit| UnitId { layer, unit };
            let alias = unit(self.layer, step.unit);
            let donor = unit(self.donor_layer, step.donor_unit);
            Edit::Share(Share::calibrated(alias, donor, step.cost))
        };
        self.steps[..steps].iter().map(edit).collect()
    }

    /// What `layer` can use of `donor_layer`, where `units` are measured; `None` where that
    /// is nothing.
    fn of(units: &[Unit], layer: u32, donor_layer: u32) -> Option<Self> {
        let units = units.iter().filter(|unit| unit.layer == layer);
        let mut steps: Vec<Step> = units
            .filter_map(|unit| {
                let mut donors = unit.donors.iter();
                let donor = donors.find(|donor| donor.layer == donor_layer)?;
                Some(Step {
                    unit: unit.unit,
                    donor_unit: donor.unit,
                    cost: unit.cost(donor)?,
                })
            })
            .collect();
        steps.sort_by(|a, b| a.cost.total_cmp(&b.cost).then(a.unit.cmp(&b.unit)));
        (!steps.is_empty()).then_some(Self {
            layer,
            donor_layer,
            steps,
        })
    }
}

/// What sharing each unit of `source` costs; nothing where that is not known how to measure,
/// or no unit is like another.
///
/// # Errors
/// When the model cannot be run.
pub(super) fn measure(
    source: &ModelFile,
    digest: &str,
    (windows, options): (&Windows, &Options),
    progress: &dyn Fn(f64),
) -> Result<Vec<Unit>, FitError> {
    let map = AttentionMap::of(&source.gguf).ok();
    let Some(map) = map.filter(|map| windows.count > 1 && !at_no_cost(map).is_empty()) else {
        return Ok(Vec::new());
    };
    let subject = Subject {
        source,
        digest,
        map: &map,
    };
    let survey = choose::survey(subject, windows, options, false, progress, &|_| ())?;
    Ok(survey.units)
}

/// The units of a model whose heads are `map`, as if sharing cost nothing: how small it can
/// become. Nothing where no unit is like another, or its cost cannot be measured.
pub(super) fn at_no_cost(map: &AttentionMap) -> Vec<Unit> {
    if check_supported(map).is_err() {
        return Vec::new();
    }
    let ids = map.units();
    let is_alike = |a: UnitId, b: UnitId| {
        let parts = Part::ALL.into_iter();
        let mut kinds = parts.map(|part| (map.block_kind(a, part), map.block_kind(b, part)));
        kinds.all(|(a, b)| a == b)
    };
    let unit = |id: &UnitId| {
        let earlier = ids.iter().filter(|other| other.layer < id.layer);
        let donors = earlier.filter(|other| is_alike(*id, **other));
        let donors: Vec<Donor> = donors
            .map(|other| Donor {
                layer: other.layer,
                unit: other.unit,
                loss: 0.0,
            })
            .collect();
        let effect = Effect {
            loss: 0.0,
            divergence: 0.0,
            measured: false,
        };
        Unit {
            layer: id.layer,
            unit: id.unit,
            shared: (!donors.is_empty()).then_some(effect),
            donors,
            dropped: None,
        }
    };
    let units: Vec<Unit> = ids.iter().map(unit).collect();
    match units.iter().any(|unit| unit.shared.is_some()) {
        true => units,
        false => Vec::new(),
    }
}

/// Pairs of the layers that can share, those first of which a unit costs least on average.
pub(super) fn pairs(units: &[Unit], can_share: &dyn Fn(u32) -> bool) -> Vec<Sharing> {
    let layers = units.iter().map(|unit| unit.layer);
    let layers: BTreeSet<u32> = layers.filter(|&layer| can_share(layer)).collect();
    let all = layers.iter().flat_map(|&layer| {
        let earlier = layers.range(..layer);
        earlier.filter_map(move |&donor| Sharing::of(units, layer, donor))
    });
    let mut all: Vec<Sharing> = all.collect();
    let mean = |of: &Sharing| of.cost(of.steps.len()) / of.steps.len() as f64;
    all.sort_by(|a, b| mean(a).total_cmp(&mean(b)));
    let mut taken = BTreeSet::new();
    all.retain(|of| {
        let is_free = !taken.contains(&of.layer) && !taken.contains(&of.donor_layer);
        if is_free {
            taken.extend([of.layer, of.donor_layer]);
        }
        is_free
    });
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(layer: u32, unit: u32, divergence: f64, donors: &[(u32, u32, f64)]) -> Unit {
        let donors: Vec<Donor> = donors
            .iter()
            .map(|&(layer, unit, loss)| Donor { layer, unit, loss })
            .collect();
        Unit {
            layer,
            unit,
            shared: donors.first().map(|donor| Effect {
                loss: donor.loss,
                divergence,
                measured: true,
            }),
            donors,
            dropped: None,
        }
    }

    #[test]
    fn layers_share_in_pairs_and_the_cheapest_come_first() {
        let units = [
            unit(0, 0, 0.0, &[]),
            unit(0, 1, 0.0, &[]),
            // With layer 0 it costs 0.3 and 0.1.
            unit(1, 0, 0.3, &[(0, 1, 0.5)]),
            unit(1, 1, 0.1, &[(0, 0, 0.2), (0, 1, 0.4)]),
            // With layer 0 it costs 0.1 and 0.2; with layer 1 half as much.
            unit(2, 0, 0.05, &[(1, 1, 0.1), (0, 0, 0.2)]),
            unit(2, 1, 0.1, &[(1, 0, 0.1), (0, 1, 0.2)]),
            unit(3, 0, 1.0, &[(2, 0, 0.1), (0, 0, 0.2)]),
            unit(3, 1, 1.0, &[(2, 0, 0.1), (0, 0, 0.2)]),
        ];
        let found = pairs(&units, &|_| true);
        let layers: Vec<_> = found.iter().map(|of| (of.layer, of.donor_layer)).collect();
        assert_eq!(layers, [(2, 1), (3, 0)]);
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} {b}");
        close(found[0].cost(0), 0.0);
        close(found[0].cost(1), 0.05);
        close(found[0].cost(2), 0.15);
        close(found[1].cost(2), 4.0);
        let edits = found[0].edits(2);
        let [Edit::Share(first), Edit::Share(second)] = &edits[..] else {
            panic!("{edits:?}");
        };
        assert_eq!((first.alias(), first.donor()), (id(2, 0), id(1, 1)));
        assert_eq!((second.alias(), second.donor()), (id(2, 1), id(1, 0)));
        close(second.score.unwrap(), -0.1);
        assert!(pairs(&units[..2], &|_| true).is_empty());
        // Layer 2 then shares with what is left.
        let found = pairs(&units, &|layer| layer != 1);
        assert_eq!((found[0].layer, found[0].donor_layer), (2, 0));
    }

    fn id(layer: u32, unit: u32) -> UnitId {
        UnitId { layer, unit }
    }
}
