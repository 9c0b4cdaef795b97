//! What is predicted to cost least within a limit.

use std::collections::BTreeMap;

use headshare_convert::convert::variant::HEAD;
use headshare_convert::fit::{self, FitError, Group, Movable, Point, Statistics, select};
use headshare_convert::input::ModelFile;
use headshare_convert::plan::{Edit, Plan, Store};
use headshare_convert::random::SplitMix64;
use headshare_format::{GgmlType, PageSize};

use super::budget::{Budget, MadeToFit, Retyped, measured_plan};
use crate::Error;

/// Other plans that are made to be compared with the one that is predicted to be best.
const OTHERS: usize = 2;

/// Attempts to come below a size whose header depends on what is chosen.
const ATTEMPTS: usize = 8;

/// Says how large the file is that comes out.
pub(super) type SizeOf<'f> = &'f dyn Fn(&Plan) -> Result<u64, Error>;

/// What could become of a model.
pub(super) struct Choices<'a> {
    pub budget: &'a Budget,
    pub source: &'a ModelFile,
    /// The pages of a file in which something is shared.
    pub page: PageSize,
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
        (source, page): (&'a ModelFile, PageSize),
        (movable, statistics): (&'a [Movable], &'a Statistics),
        groups: &'a [Group<'a>],
    ) -> Self {
        let all: Vec<select::Alternatives> = groups.iter().map(Group::alternatives).collect();
        let rest = source.len() - groups.iter().map(Group::now).sum::<u64>();
        Self {
            budget,
            source,
            page,
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
    ) -> Result<Result<Vec<(Plan, MadeToFit)>, u64>, Error> {
        let mut best: Option<(select::Chosen, Plan)> = None;
        let mut smallest = u64::MAX;
        // Of a file without shared units, whose pages take bytes, too.
        let mut of_plain = None;
        for allowed in self.ways() {
            let mut header = 0;
            let fitted = self.fitted(limit, &mut header, &*allowed, size_of)?;
            of_plain.get_or_insert(header);
            match fitted {
                Some((chosen, made)) => {
                    if (best.as_ref()).is_none_or(|(best, ..)| chosen.cost < best.cost) {
                        best = Some((chosen, made));
                    }
                }
                None => smallest = smallest.min(self.smallest(&*allowed) + header),
            }
        }
        let Some((chosen, made)) = best else {
            return Ok(Err(smallest));
        };
        let mut found = vec![(chosen, made)];
        for other in self.others(&found[0].0) {
            if found.len() > OTHERS {
                break;
            }
            if let Some(other) = self.fitted(limit, &mut 0, &*other, size_of)?
                && found.iter().all(|(chosen, _)| *chosen != other.0)
            {
                found.push(other);
            }
        }
        let frontier: Vec<Point> = (select::frontier(&self.all).into_iter())
            .map(|point| Point {
                bytes: point.bytes + self.rest + of_plain.unwrap_or_default(),
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
    ) -> Result<Vec<(Plan, MadeToFit, u64)>, Error> {
        let mut plans = Vec::new();
        // Not each drawing comes below the size in so many attempts.
        for stream in 0..2 * count {
            if plans.len() == count as usize {
                break;
            }
            let mut numbers = SplitMix64::new(seed, u64::from(stream));
            let mut signed = || f64::from(numbers.signed());
            let spread = 2.0 * signed().abs();
            let least = limit - limit / 20;
            let room = least + ((limit - least) as f64 * signed().abs()) as u64;
            let mut all = self.all.clone();
            for (_, cost) in all.iter_mut().flatten() {
                *cost *= (spread * signed()).exp();
            }
            let choose = |room| {
                let chosen = select::choose(&all, room)?;
                Some(select::Chosen::of(&self.all, chosen.which))
            };
            if let Some((chosen, made, size)) =
                self.below((room, limit), &mut 0, &choose, size_of)?
            {
                plans.push((made, self.told(limit, &chosen, Vec::new()), size));
            }
        }
        match plans.is_empty() {
            true => Err(self.too_small(limit, self.smallest(&|_, _| true))),
            false => Ok(plans),
        }
    }

    /// Without and with units that share: a file with such units begins each tensor on a page,
    /// which takes bytes by itself.
    fn ways(&self) -> Vec<Allowed<'a>> {
        let groups = self.groups;
        let alternatives = |of: usize| 0..self.all[of].len();
        let can_share = (0..groups.len()).any(|g| alternatives(g).any(|i| groups[g].shares(i)));
        let mut ways: Vec<Allowed<'a>> = vec![Box::new(|group, i| !groups[group].shares(i))];
        if can_share {
            ways.push(Box::new(|_, _| true));
        }
        ways
    }

    /// What costs least of what is `allowed`. What a header says of it all takes bytes, too:
    /// so many more than before.
    fn fitted(
        &self,
        limit: u64,
        header: &mut u64,
        allowed: &dyn Fn(usize, usize) -> bool,
        size_of: SizeOf<'_>,
    ) -> Result<Option<(select::Chosen, Plan)>, Error> {
        let choose = |room| select::choose_among(&self.all, room, allowed);
        let found = self.below((limit, limit), header, &choose, size_of)?;
        Ok(found.map(|(chosen, made, _)| (chosen, made)))
    }

    /// What `choose` makes of room for a file of `aim` bytes, and its size, which is at most
    /// `limit`; `None` where it makes nothing of it.
    fn below(
        &self,
        (aim, limit): (u64, u64),
        header: &mut u64,
        choose: &dyn Fn(u64) -> Option<select::Chosen>,
        size_of: SizeOf<'_>,
    ) -> Result<Option<(select::Chosen, Plan, u64)>, Error> {
        for _ in 0..ATTEMPTS {
            let Some(chosen) = choose(aim.saturating_sub(self.rest + *header)) else {
                return Ok(None);
            };
            let made = self.plan(&chosen);
            let size = size_of(&made)?;
            if size <= limit {
                return Ok(Some((chosen, made, size)));
            }
            *header += size - limit;
        }
        Ok(None)
    }

    /// Bytes of the smallest file of what is `allowed`, but for what its header says of it.
    fn smallest(&self, allowed: &dyn Fn(usize, usize) -> bool) -> u64 {
        let least = |(group, of): (usize, &select::Alternatives)| {
            let some = of.iter().enumerate().filter(|(i, _)| allowed(group, *i));
            some.map(|(_, a)| a.0).min().unwrap_or_default()
        };
        self.rest + self.all.iter().enumerate().map(least).sum::<u64>()
    }

    /// Says that the smallest file is larger than `wanted`.
    pub fn too_small(&self, wanted: u64, smallest: u64) -> Error {
        (self.budget).about(self.source, FitError::TooSmall { wanted, smallest })
    }

    /// What was chosen as a plan, which says the types that are not the source's.
    pub fn plan(&self, chosen: &select::Chosen) -> Plan {
        let fit::Changes { types, edits, .. } = fit::changes(self.groups, &chosen.which);
        let mut plan = measured_plan();
        plan.edits = edits;
        let stores = self.source.gguf.tensors().iter().filter_map(|info| {
            let to = *types.get(info.name.as_str())?;
            (to != info.ggml_type).then_some((info.name.as_str(), to))
        });
        let head = self.own_head(&types).map(|to| (HEAD, to));
        let stores = stores.chain(head).map(|(tensor, ggml_type)| {
            Edit::Store(Store {
                tensor: tensor.to_owned(),
                ggml_type,
            })
        });
        plan.edits.extend(stores);
        plan
    }

    /// The type of the output head among `types`, where the source has none of its own.
    fn own_head(&self, types: &BTreeMap<&str, GgmlType>) -> Option<GgmlType> {
        let head = types.get(HEAD).copied();
        head.filter(|_| self.source.gguf.tensor(HEAD).is_none())
    }

    /// What there is to say of what was chosen.
    fn told(&self, limit: u64, chosen: &select::Chosen, frontier: Vec<Point>) -> MadeToFit {
        let fit::Changes { types, changed, .. } = fit::changes(self.groups, &chosen.which);
        MadeToFit {
            wanted: limit,
            memory: None,
            predicted: chosen.cost,
            tensors: self.movable.len(),
            estimated: self.statistics.estimated(),
            types: counted(self.movable, &types),
            output_head: self.own_head(&types).map(|to| to.name().to_owned()),
            units: changed.dropped,
            shared: changed.shared,
            channels: changed.channels,
            frontier,
            tried: Vec::new(),
        }
    }

    /// What other plans are allowed than the one that `chosen` is predicted to be best:
    /// without cuts and shared units, and with the dearest group larger and smaller.
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
