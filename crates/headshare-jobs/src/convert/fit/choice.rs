//! What is predicted to cost least within a limit.

use std::collections::BTreeMap;

use headshare_convert::convert::variant::HEAD;
use headshare_convert::fit::cuts::Part;
use headshare_convert::fit::{self, FitError, Group, Movable, Point, Statistics, select};
use headshare_convert::input::ModelFile;
use headshare_convert::plan::{Edit, Store};
use headshare_convert::quantize::types::Wanted;
use headshare_convert::random::SplitMix64;
use headshare_format::GgmlType;

use super::budget::{Budget, MadeToFit, Retyped, ToFit, measured_plan};
use crate::Error;
use crate::convert::quantize::{Quantization, With};

/// Other plans that are made to be compared with the one that is predicted to be best.
const OTHERS: usize = 2;

/// Attempts to come below a size whose header depends on what is chosen.
const ATTEMPTS: usize = 8;

/// Says how large the file is that comes out.
pub(super) type SizeOf<'f> = &'f dyn Fn(&ToFit) -> Result<u64, Error>;

/// What could become of a model.
pub(super) struct Choices<'a> {
    pub budget: &'a Budget,
    pub source: &'a ModelFile,
    movable: &'a [Movable],
    statistics: &'a Statistics,
    groups: &'a [Group<'a>],
    /// Bytes and predicted costs of the groups' alternatives.
    all: Vec<select::Alternatives>,
    /// Bytes that no alternative is about.
    rest: u64,
}

/// Which alternatives are allowed, by group and number.
type Allowed<'a> = Box<dyn Fn(usize, usize) -> bool + 'a>;

impl<'a> Choices<'a> {
    /// Of `source`, by what was measured of its `groups`.
    pub fn new(
        budget: &'a Budget,
        source: &'a ModelFile,
        (movable, statistics): (&'a [Movable], &'a Statistics),
        groups: &'a [Group<'a>],
    ) -> Self {
        let all: Vec<select::Alternatives> = groups.iter().map(Group::alternatives).collect();
        let rest = source.len() - all.iter().map(|of| of[0].0).sum::<u64>();
        Self {
            budget,
            source,
            movable,
            statistics,
            groups,
            all,
            rest,
        }
    }

    /// What was chosen for files of at most `limit` bytes: first what is predicted to cost
    /// least. Otherwise the size of the smallest file.
    pub fn within(
        &self,
        limit: u64,
        size_of: SizeOf<'_>,
    ) -> Result<Result<Vec<(ToFit, MadeToFit)>, u64>, Error> {
        // What a header says of all this takes bytes, too.
        let mut header = 0;
        let Some(best) = self.fitted(limit, &mut header, &|_, _| true, size_of)? else {
            return Ok(Err(self.smallest() + header));
        };
        let mut found = vec![best];
        for other in self.others(&found[0].0) {
            if found.len() > OTHERS {
                break;
            }
            if let Some(other) = self.fitted(limit, &mut header, &*other, size_of)?
                && found.iter().all(|(chosen, _)| *chosen != other.0)
            {
                found.push(other);
            }
        }
        let frontier: Vec<Point> = (select::frontier(&self.all).into_iter())
            .map(|point| Point {
                bytes: point.bytes + self.rest + header,
                ..point
            })
            .collect();
        let candidates = found.into_iter().map(|(chosen, made)| {
            let fit = self.told(limit, &chosen, frontier.clone());
            (made, fit)
        });
        Ok(Ok(candidates.collect()))
    }

    /// So many plans of files that have at most `limit` bytes and at least 95% of them, and
    /// their sizes. They are what would be chosen if alternatives cost something else: each
    /// cost is multiplied by a random factor, between e^-s and e^s, with an s of up to 2 for
    /// each plan. So some are good, and some bad.
    pub fn random(
        &self,
        limit: u64,
        (count, seed): (u32, u64),
        size_of: SizeOf<'_>,
    ) -> Result<Vec<(ToFit, MadeToFit, u64)>, Error> {
        let mut plans = Vec::new();
        for stream in 0..count {
            let mut numbers = SplitMix64::new(seed, u64::from(stream));
            let mut signed = || f64::from(numbers.signed());
            let spread = 2.0 * signed().abs();
            let least = limit - limit / 20;
            let room = least + ((limit - least) as f64 * signed().abs()) as u64;
            let mut all = self.all.clone();
            for (_, cost) in all.iter_mut().flatten() {
                *cost *= (spread * signed()).exp();
            }
            let mut header = 0;
            for _ in 0..ATTEMPTS {
                let rest = self.rest + header;
                let Some(chosen) = select::choose(&all, room.saturating_sub(rest)) else {
                    return Err(self.too_small(limit, self.smallest() + header));
                };
                let chosen = select::Chosen::of(&self.all, chosen.which);
                let made = self.to_fit(&chosen);
                let size = size_of(&made)?;
                if size <= limit {
                    plans.push((made, self.told(limit, &chosen, Vec::new()), size));
                    break;
                }
                header += size - limit;
            }
        }
        Ok(plans)
    }

    /// What costs least of what is `allowed`.
    fn fitted(
        &self,
        limit: u64,
        header: &mut u64,
        allowed: &dyn Fn(usize, usize) -> bool,
        size_of: SizeOf<'_>,
    ) -> Result<Option<(select::Chosen, ToFit)>, Error> {
        for _ in 0..ATTEMPTS {
            let room = limit.saturating_sub(self.rest + *header);
            let Some(chosen) = select::choose_among(&self.all, room, allowed) else {
                return Ok(None);
            };
            let made = self.to_fit(&chosen);
            let size = size_of(&made)?;
            if size <= limit {
                return Ok(Some((chosen, made)));
            }
            *header += size - limit;
        }
        Ok(None)
    }

    /// Bytes of the smallest file, but for what its header says of it.
    fn smallest(&self) -> u64 {
        let least = |of: &select::Alternatives| of.iter().map(|a| a.0).min().unwrap_or_default();
        self.rest + self.all.iter().map(least).sum::<u64>()
    }

    /// Says that the smallest file is larger than `wanted`.
    pub fn too_small(&self, wanted: u64, smallest: u64) -> Error {
        (self.budget).about(self.source, FitError::TooSmall { wanted, smallest })
    }

    /// How to carry out what was chosen.
    pub fn to_fit(&self, chosen: &select::Chosen) -> ToFit {
        let changes = fit::changes(self.groups, &chosen.which);
        let mut plan = measured_plan();
        plan.edits.clone_from(&changes.edits);
        let tensors = self.source.gguf.tensors();
        let stores = tensors.iter().filter_map(|info| {
            let to = *changes.types.get(info.name.as_str())?;
            (to != info.ggml_type).then_some((info.name.as_str(), to))
        });
        let head = self.own_head(&changes.types).map(|to| (HEAD, to));
        let stores = stores.chain(head).map(|(tensor, ggml_type)| {
            Edit::Store(Store {
                tensor: tensor.to_owned(),
                ggml_type,
            })
        });
        let mut whole = plan.clone();
        whole.edits.extend(stores);
        ToFit {
            quantization: Quantization {
                wanted: Some(Wanted::exactly(tensors, &changes.types)),
                with: With::Calibration {
                    calibration: self.budget.calibration.clone(),
                    settings: None,
                    save_imatrix: None,
                },
                allow_requantize: true,
            },
            plan: (!plan.edits.is_empty()).then_some(plan),
            whole,
        }
    }

    /// The type of the output head among `types`, where the source has none of its own.
    fn own_head(&self, types: &BTreeMap<&str, GgmlType>) -> Option<GgmlType> {
        let head = types.get(HEAD).copied();
        head.filter(|_| self.source.gguf.tensor(HEAD).is_none())
    }

    /// What there is to say of what was chosen.
    fn told(&self, limit: u64, chosen: &select::Chosen, frontier: Vec<Point>) -> MadeToFit {
        let [units, channels] = gone(self.groups, &chosen.which);
        let types = fit::changes(self.groups, &chosen.which).types;
        MadeToFit {
            wanted: limit,
            memory: None,
            predicted: chosen.cost,
            tensors: self.movable.len(),
            estimated: self.statistics.estimated(),
            types: counted(self.movable, &types),
            output_head: self.own_head(&types).map(|to| to.name().to_owned()),
            units,
            channels,
            frontier,
            tried: Vec::new(),
        }
    }

    /// What other plans are allowed than the one that `chosen` is predicted to be best:
    /// without cuts, and with the dearest group larger and smaller.
    fn others(&self, chosen: &select::Chosen) -> Vec<Allowed<'a>> {
        let mut others: Vec<Allowed<'a>> = Vec::new();
        let (groups, all, which) = (self.groups, &self.all, &chosen.which);
        if (groups.iter().zip(which)).any(|(group, &i)| !group.is_whole(i)) {
            others.push(Box::new(|group: usize, i| groups[group].is_whole(i)));
        }
        let cost = |&group: &usize| all[group][which[group]].1;
        let dearest = (0..all.len()).max_by(|a, b| cost(a).total_cmp(&cost(b)));
        if let Some(dearest) = dearest {
            let now = which[dearest];
            let larger = now.checked_sub(1);
            let smaller = Some(now + 1).filter(|&i| i < all[dearest].len());
            for i in larger.into_iter().chain(smaller) {
                others.push(Box::new(move |group, other| group != dearest || other == i));
            }
        }
        others
    }
}

/// Units and channels that go with the chosen alternatives of `groups`.
fn gone(groups: &[Group<'_>], which: &[usize]) -> [u64; 2] {
    let mut gone = [0, 0];
    for (group, &which) in groups.iter().zip(which) {
        if let Some((part, count)) = group.gone(which) {
            gone[usize::from(part == Part::FeedForward)] += u64::from(count);
        }
    }
    gone
}

fn counted(movable: &[Movable], to: &BTreeMap<&str, GgmlType>) -> Vec<Retyped> {
    let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for tensor in movable {
        let now = to.get(tensor.name.as_str()).copied().unwrap_or(tensor.has);
        *counts.entry((tensor.has.name(), now.name())).or_default() += 1;
    }
    let retyped = |((from, to), tensors): ((&str, &str), usize)| Retyped {
        from: from.to_owned(),
        to: to.to_owned(),
        tensors,
    };
    counts.into_iter().map(retyped).collect()
}
