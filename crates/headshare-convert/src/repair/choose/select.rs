//! Which units share or go, from what was measured.
//!
//! A plan costs the sum, over its units, of the divergence that each causes
//! alone; a unit whose best donor is an alias itself (or gone) takes the best
//! donor that is left, and its divergence grows as the loss does. Units are
//! taken one after the other, always the one that adds least.
//!
//! Nothing is dropped from the first layer, on which all others build: what its
//! units cost by themselves misleads (docs/RESULTS.md).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::survey::{Survey, Unit};
use crate::model::UnitId;
use crate::plan::{Choice, ChosenBy, Edit, Expected, Plan, Removed, Share};

/// What may become of units.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Units {
    /// They use another unit's weights.
    #[default]
    Share,
    /// They are dropped.
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

/// What the model allows, and what is gained.
pub struct Constraints<'a> {
    /// What may become of units.
    pub units: Units,
    /// Bytes that a unit saves when it shares, and more when it goes.
    pub sizes: &'a dyn Fn(UnitId) -> (u64, u64),
    /// Neighbours in a layer that can only go together, so many.
    pub together: &'a dyn Fn(u32) -> u32,
    /// Whether a unit must be left in a layer.
    pub keeps_one: &'a dyn Fn(u32) -> bool,
}

/// What was chosen.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Chosen {
    /// The units that share, with their donors and what each costs, in nats.
    pub shared: BTreeMap<UnitId, (UnitId, f64)>,
    /// The units that are dropped, and what each costs.
    pub dropped: BTreeMap<UnitId, f64>,
}

impl Chosen {
    /// The plan for the file with digest `source`, which has `units` units and
    /// was asked for `ratio` of them.
    pub fn plan(&self, source: String, ratio: f64, units: usize) -> Plan {
        let share = |(unit, (donor, cost)): (&UnitId, &(UnitId, f64))| {
            Edit::Share(Share::calibrated(*unit, *donor, *cost))
        };
        let drop = |(unit, cost): (&UnitId, &f64)| {
            Edit::Drop(Removed {
                layer: unit.layer,
                unit: unit.unit,
                score: Some(-cost),
            })
        };
        let costs = self.shared.values().map(|(_, cost)| cost);
        let divergence = costs.chain(self.dropped.values()).sum();
        let shares = self.shared.iter().map(share);
        let edits = shares.chain(self.dropped.iter().map(drop)).collect();
        let choice = Choice {
            by: ChosenBy::Calibrated,
            ratio: Some(ratio),
            units: Some(units),
            ..Choice::default()
        };
        let mut plan = Plan::new(source, choice, edits);
        plan.expected = Some(Expected {
            saved: None,
            divergence: Some(divergence),
        });
        plan
    }
}

/// A step that could be taken.
struct Step {
    price: f64,
    next: Chosen,
    gain: u64,
}

impl Survey {
    /// Chooses.
    pub fn select(&self, goal: Goal, constraints: &Constraints<'_>) -> Chosen {
        let ways: &[bool] = match constraints.units {
            Units::Share => &[false],
            Units::Drop => &[true],
            Units::Auto => &[false, true],
        };
        let mut chosen = Chosen::default();
        let mut saved = 0;
        loop {
            let there = chosen.shared.len() + chosen.dropped.len();
            match goal {
                Goal::Count(count) if there >= count => return chosen,
                Goal::Bytes(bytes) if saved >= bytes => return chosen,
                _ => {}
            }
            let before = chosen.cost();
            let mut best: Option<Step> = None;
            for unit in &self.units {
                for &dropped in ways {
                    let next = if dropped {
                        self.with_dropped(&chosen, unit, constraints)
                    } else {
                        self.with_shared(&chosen, unit).map(|next| {
                            let (rows, _) = (constraints.sizes)(unit.id());
                            (next, rows)
                        })
                    };
                    let Some((next, gain)) = next else { continue };
                    let added = (next.cost() - before).max(0.0);
                    let size = match goal {
                        Goal::Count(_) => next.shared.len() + next.dropped.len() - there,
                        Goal::Bytes(_) => gain as usize,
                    };
                    let price = added / size.max(1) as f64;
                    if best.as_ref().is_none_or(|best| price < best.price) {
                        best = Some(Step { price, next, gain });
                    }
                }
            }
            let Some(step) = best else { return chosen };
            chosen = step.next;
            saved += step.gain;
        }
    }

    fn with_shared(&self, chosen: &Chosen, unit: &Unit) -> Option<Chosen> {
        let id = unit.id();
        if chosen.dropped.contains_key(&id) || chosen.shared.contains_key(&id) {
            return None;
        }
        let mut next = chosen.clone();
        let mut gone = next.gone();
        gone.insert(id);
        next.shared.insert(id, unit.donor(&gone)?);
        self.without_donors(next, &gone)
    }

    /// Drops `unit` and its neighbours that can only go with it.
    fn with_dropped(
        &self,
        chosen: &Chosen,
        unit: &Unit,
        constraints: &Constraints<'_>,
    ) -> Option<(Chosen, u64)> {
        let together = (constraints.together)(unit.layer).max(1);
        let first = self.units.first()?.layer;
        if unit.layer == first || !unit.unit.is_multiple_of(together) {
            return None;
        }
        let of_layer = || self.units.iter().filter(|u| u.layer == unit.layer);
        let members: Vec<&Unit> = of_layer()
            .filter(|u| u.unit / together == unit.unit / together)
            .collect();
        if members.len() != together as usize {
            return None;
        }
        let mut next = chosen.clone();
        let mut gain = 0;
        for member in members {
            let id = member.id();
            let (rows, columns) = (constraints.sizes)(id);
            let had = next.shared.remove(&id).is_some();
            gain += columns + if had { 0 } else { rows };
            if next
                .dropped
                .insert(id, member.dropped?.divergence)
                .is_some()
            {
                return None;
            }
        }
        if (constraints.keeps_one)(unit.layer)
            && of_layer().all(|u| next.dropped.contains_key(&u.id()))
        {
            return None;
        }
        let gone = next.gone();
        Some((self.without_donors(next, &gone)?, gain))
    }

    /// Gives every alias whose donor is gone another one.
    fn without_donors(&self, mut chosen: Chosen, gone: &BTreeSet<UnitId>) -> Option<Chosen> {
        for (alias, place) in &mut chosen.shared {
            if gone.contains(&place.0) {
                *place = self.unit(*alias)?.donor(gone)?;
            }
        }
        Some(chosen)
    }

    fn unit(&self, id: UnitId) -> Option<&Unit> {
        let at = self.units.binary_search_by_key(&id, Unit::id).ok()?;
        Some(&self.units[at])
    }
}

impl Unit {
    /// The best donor that is not `gone`, and what using it costs.
    fn donor(&self, gone: &BTreeSet<UnitId>) -> Option<(UnitId, f64)> {
        let donor = self.donors.iter().find(|d| !gone.contains(&d.id()))?;
        Some((donor.id(), self.cost(donor)?))
    }
}

impl Chosen {
    /// The units that cannot be donors.
    fn gone(&self) -> BTreeSet<UnitId> {
        self.dropped
            .keys()
            .chain(self.shared.keys())
            .copied()
            .collect()
    }

    /// What all of it costs.
    pub fn cost(&self) -> f64 {
        let shared: f64 = self.shared.values().map(|(_, cost)| cost).sum();
        shared + self.dropped.values().sum::<f64>()
    }
}

#[cfg(test)]
mod tests {
    use super::super::survey::{Donor, Effect};
    use super::*;

    fn id(layer: u32, unit: u32) -> UnitId {
        UnitId { layer, unit }
    }

    /// What sharing and dropping a unit costs, and its donors as (layer, loss).
    type Costs<'a> = (f64, f64, &'a [(u32, f64)]);

    /// One unit a layer; the best donors first.
    fn survey(units: &[Costs<'_>]) -> Survey {
        let effect = |loss, divergence| Effect {
            loss,
            divergence,
            measured: true,
        };
        Survey {
            version: 1,
            tool: String::new(),
            source: String::new(),
            text: String::new(),
            windows: 2,
            window: 8,
            units: units
                .iter()
                .zip(0..)
                .map(|(&(shared, dropped, donors), layer)| Unit {
                    layer,
                    unit: 0,
                    donors: donors
                        .iter()
                        .map(|&(layer, loss)| Donor {
                            layer,
                            unit: 0,
                            loss,
                        })
                        .collect(),
                    shared: donors.first().map(|&(_, loss)| effect(loss, shared)),
                    dropped: Some(effect(1.0, dropped)),
                })
                .collect(),
        }
    }

    fn constraints(units: Units) -> Constraints<'static> {
        Constraints {
            units,
            sizes: &|_| (10, 10),
            together: &|_| 1,
            keeps_one: &|layer| layer == 0,
        }
    }

    #[test]
    fn aliases_of_what_goes_take_the_next_donor() {
        // Unit 2 is cheapest and uses 1; sharing 1 then costs what 2 loses.
        let survey = survey(&[
            (0.0, 9.0, &[]),
            (0.3, 9.0, &[(0, 1.0)]),
            (0.1, 9.0, &[(1, 1.0), (0, 4.0)]),
            (0.5, 9.0, &[(0, 1.0)]),
        ]);
        let one = survey.select(Goal::Count(1), &constraints(Units::Share));
        assert_eq!(one.shared, [(id(2, 0), (id(1, 0), 0.1))].into());
        // 0.5 for unit 3 is less than 0.3 for unit 1 plus 0.3 for unit 2.
        let two = survey.select(Goal::Count(2), &constraints(Units::Share));
        assert_eq!(
            two.shared.keys().map(|u| u.layer).collect::<Vec<_>>(),
            [2, 3]
        );
        let three = survey.select(Goal::Count(3), &constraints(Units::Share));
        assert_eq!(three.shared[&id(2, 0)], (id(0, 0), 0.4));
        assert!((three.cost() - 1.2).abs() < 1e-12);
        // No more can share than have donors.
        assert_eq!(
            survey.select(Goal::Count(9), &constraints(Units::Share)),
            three
        );
    }

    #[test]
    fn auto_takes_what_is_cheaper_for_its_bytes() {
        let survey = survey(&[
            (0.0, 0.1, &[]),
            (0.3, 0.5, &[(0, 1.0)]),
            (0.2, 0.9, &[(0, 1.0)]),
        ]);
        let auto = survey.select(Goal::Bytes(25), &constraints(Units::Auto));
        // 0.2 for 10 bytes; then 0.5 for 20 instead of 0.3 for 10. Layer 0 has
        // no other unit, and must keep it.
        assert_eq!(auto.shared.keys().map(|u| u.layer).collect::<Vec<_>>(), [2]);
        assert_eq!(
            auto.dropped.keys().map(|u| u.layer).collect::<Vec<_>>(),
            [1]
        );
        let dropped = survey.select(Goal::Count(2), &constraints(Units::Drop));
        assert_eq!(dropped.dropped.len(), 2);
        assert!(dropped.shared.is_empty());
    }

    #[test]
    fn units_go_together() {
        let mut survey = survey(&[(0.0, 0.1, &[]), (0.3, 0.5, &[(0, 1.0)])]);
        let more: Vec<Unit> = (1..4)
            .map(|unit| Unit {
                unit,
                ..survey.units[1].clone()
            })
            .collect();
        survey.units.extend(more);
        let constraints = Constraints {
            together: &|_| 2,
            ..constraints(Units::Drop)
        };
        let chosen = survey.select(Goal::Count(1), &constraints);
        assert_eq!(
            chosen.dropped.keys().copied().collect::<Vec<_>>(),
            [id(1, 0), id(1, 1)]
        );
        assert_eq!(survey.select(Goal::Count(9), &constraints).dropped.len(), 4);
    }
}
