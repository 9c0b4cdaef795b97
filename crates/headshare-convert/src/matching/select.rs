//! Algorithm 1 of the paper: rank every unit by its best match among the units
//! of earlier layers, let the first N share, follow chains to their roots.

use std::collections::{BTreeMap, HashMap};

use super::blocks::{MatchError, MatchFunction, UnitBlocks, View};
use super::gram::{Gram, Group, best_matches};
use crate::model::{Part, UnitId};

/// Share of the work that the first pass over the weights is, for progress.
const FIRST_PASS: f64 = 0.7;

/// A unit and its best match among the units of earlier layers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// The unit that could share.
    pub unit: UnitId,
    /// The earlier unit that it is most like.
    pub matched: UnitId,
    /// The cosine of the two.
    pub score: f64,
}

/// A unit that uses another unit's weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Match {
    /// The alias: the unit whose own weights go.
    pub unit: UnitId,
    /// Algorithm 1's best match.
    pub matched: UnitId,
    /// The unit whose weights are used: `matched`, or where that is an alias
    /// itself the root of the chain.
    pub donor: UnitId,
    /// The parts that are shared.
    pub parts: Vec<Part>,
    /// The cosine of `unit` and `matched`.
    pub score: f64,
}

/// A unit of a later layer whose parts fit no unit of an earlier layer (other
/// type or shape), so that it cannot share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// The unit.
    pub unit: UnitId,
    /// The parts that find no match.
    pub parts: Vec<Part>,
}

/// Which units share.
#[derive(Clone, Debug, PartialEq)]
pub struct Matching {
    /// Number of all units.
    pub units: usize,
    /// How many units the ratio asks for (for
    /// [`Separate`](MatchFunction::Separate) of each part).
    pub requested: usize,
    /// The units that share, ordered by (layer, unit, parts).
    pub aliases: Vec<Match>,
    /// The units that could not share, ordered by (layer, unit, parts).
    pub skipped: Vec<Skipped>,
}

/// All candidates, best first: what Algorithm 1 knows before it looks at the
/// ratio.
#[derive(Clone, Debug, PartialEq)]
pub struct Ranking {
    units: usize,
    lists: Vec<List>,
    skipped: Vec<Skipped>,
}

#[derive(Clone, Debug, PartialEq)]
struct List {
    parts: Vec<Part>,
    candidates: Vec<Candidate>,
}

impl Ranking {
    /// Number of all units.
    pub fn units(&self) -> usize {
        self.units
    }

    /// The shared parts and the candidates for them, by score, descending, ties
    /// by (layer, unit): one list, or for [`Separate`](MatchFunction::Separate)
    /// one for each part.
    pub fn lists(&self) -> impl Iterator<Item = (&[Part], &[Candidate])> {
        self.lists
            .iter()
            .map(|list| (&list.parts[..], &list.candidates[..]))
    }

    /// The second half of Algorithm 1: lets the first N candidates share.
    pub fn select(&self, ratio: f64) -> Result<Matching, MatchError> {
        let requested = aliases_for(ratio, self.units)?;
        let mut aliases: Vec<Match> = self
            .lists
            .iter()
            .flat_map(|list| {
                let chosen = &list.candidates[..requested.min(list.candidates.len())];
                share(chosen, &list.parts)
            })
            .collect();
        aliases.sort_by(|a, b| (a.unit, &a.parts).cmp(&(b.unit, &b.parts)));
        Ok(Matching {
            units: self.units,
            requested,
            aliases,
            skipped: self.skipped.clone(),
        })
    }
}

/// How many of `units` units a ratio asks for: half up, of the product as the
/// decimal number that was written (0.29 of 50 is 14.5, so 15, although the
/// nearest binary number is below it).
pub fn aliases_for(ratio: f64, units: usize) -> Result<usize, MatchError> {
    if !(0.0..=1.0).contains(&ratio) {
        return Err(MatchError::Ratio(ratio));
    }
    let wanted = ratio * units as f64;
    Ok((wanted + 0.5 + wanted * 4.0 * f64::EPSILON).floor() as usize)
}

/// Follows each chosen match to its root.
fn share(chosen: &[Candidate], parts: &[Part]) -> Vec<Match> {
    let next: HashMap<UnitId, UnitId> = chosen.iter().map(|c| (c.unit, c.matched)).collect();
    let root = |mut unit: UnitId| {
        // Ends: each step goes to an earlier layer.
        while let Some(&matched) = next.get(&unit) {
            unit = matched;
        }
        unit
    };
    chosen
        .iter()
        .map(|candidate| Match {
            unit: candidate.unit,
            matched: candidate.matched,
            donor: root(candidate.matched),
            parts: parts.to_vec(),
            score: candidate.score,
        })
        .collect()
}

/// The units of a view in groups that can match, by class.
pub(super) fn groups(blocks: &dyn UnitBlocks, view: View) -> Result<Vec<Group>, MatchError> {
    let units = blocks.units();
    if let Some(pair) = units.windows(2).find(|pair| pair[0] >= pair[1]) {
        let reason = "units are not in ascending order";
        return Err(MatchError::Inconsistent {
            part: view.shared[0],
            unit: pair[1],
            reason,
        });
    }
    let mut by_class: BTreeMap<Vec<u32>, Vec<usize>> = BTreeMap::new();
    for unit in 0..units.len() {
        let class = view
            .shared
            .iter()
            .map(|&part| blocks.class(part, unit))
            .collect();
        by_class.entry(class).or_default().push(unit);
    }
    by_class
        .into_values()
        .map(|units| Group::new(blocks, units, view.scored))
        .collect()
}

/// The first half of Algorithm 1: every unit's best match, ranked. Reads all
/// weights twice; any number of ratios can then be [selected](Ranking::select).
///
/// `progress` is told the share of the work that is done, from the calling
/// thread.
pub fn rank_units(
    blocks: &dyn UnitBlocks,
    function: MatchFunction,
    progress: &dyn Fn(f64),
) -> Result<Ranking, MatchError> {
    let views = grouped_views(blocks, function)?;
    let skipped = skipped(blocks.units(), &views);
    let total: f64 = matchable(&views).map(Group::work).sum::<f64>().max(1.0);
    let mut done = 0.0;
    let mut lists = Vec::new();
    for (view, groups) in &views {
        let mut candidates = Vec::new();
        for group in groups.iter().filter(|group| group.can_match()) {
            let report = |share: f64| progress((done + share * group.work()) / total);
            let gram = Gram::compute(blocks, group, &|share| report(FIRST_PASS * share))?;
            let best = best_matches(blocks, group, &gram, &|share| {
                report(FIRST_PASS + (1.0 - FIRST_PASS) * share);
            })?;
            candidates.extend(best.into_iter().map(|best| Candidate {
                unit: group.ids[best.unit],
                matched: group.ids[best.matched],
                score: best.score,
            }));
            done += group.work();
        }
        candidates.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.unit.cmp(&b.unit)));
        lists.push(List {
            parts: view.shared.to_vec(),
            candidates,
        });
    }
    progress(1.0);
    Ok(Ranking {
        units: blocks.units().len(),
        lists,
        skipped,
    })
}

/// Algorithm 1: which units share at `ratio`. Reads no weights when the ratio
/// asks for no unit.
///
/// `progress` is told the share of the work that is done, from the calling
/// thread.
pub fn match_units(
    blocks: &dyn UnitBlocks,
    function: MatchFunction,
    ratio: f64,
    progress: &dyn Fn(f64),
) -> Result<Matching, MatchError> {
    let units = blocks.units().len();
    if aliases_for(ratio, units)? == 0 {
        let skipped = skipped(blocks.units(), &grouped_views(blocks, function)?);
        progress(1.0);
        return Ok(Matching {
            units,
            requested: 0,
            aliases: Vec::new(),
            skipped,
        });
    }
    rank_units(blocks, function, progress)?.select(ratio)
}

type GroupedViews = Vec<(View, Vec<Group>)>;

fn grouped_views(
    blocks: &dyn UnitBlocks,
    function: MatchFunction,
) -> Result<GroupedViews, MatchError> {
    function
        .views()
        .iter()
        .map(|&view| Ok((view, groups(blocks, view)?)))
        .collect()
}

fn matchable(views: &GroupedViews) -> impl Iterator<Item = &Group> {
    views
        .iter()
        .flat_map(|(_, groups)| groups)
        .filter(|group| group.can_match())
}

/// The units of later layers that are in their group's first layer.
fn skipped(units: &[UnitId], views: &GroupedViews) -> Vec<Skipped> {
    let Some(first) = units.first() else {
        return Vec::new();
    };
    let mut skipped: Vec<Skipped> = Vec::new();
    for (view, groups) in views {
        for group in groups
            .iter()
            .filter(|group| group.ids[0].layer != first.layer)
        {
            let layer = group.ids[0].layer;
            let alone = group.ids.iter().take_while(|id| id.layer == layer);
            skipped.extend(alone.map(|&unit| Skipped {
                unit,
                parts: view.shared.to_vec(),
            }));
        }
    }
    skipped.sort_by(|a, b| (a.unit, &a.parts).cmp(&(b.unit, &b.parts)));
    skipped
}
