//! What is predicted to cost least within a limit.

use std::collections::{BTreeMap, BTreeSet};

use headshare_convert::convert::variant::HEAD;
use headshare_convert::fit::{self, FitError, Group, Movable, Statistics, select};
use headshare_convert::input::ModelFile;
use headshare_convert::plan::{Edit, Plan, Store};
use headshare_convert::random::SplitMix64;
use headshare_format::{GgmlType, PageSize};

use super::bracket::Bracket;
use super::budget::{Budget, Changes, MadeToFit, OtherSize, Retyped, measured_plan};
use crate::Error;

/// Other plans that are made to be compared with the one that is predicted to be best.
const OTHERS: usize = 2;

/// What is predicted to cost so many times what the best does is not made: predictions are not
/// that far off (`docs/RESULTS.md`).
const FAR: f64 = 2.0;

/// Attempts to come close to a size whose header and pages depend on what is chosen.
const ATTEMPTS: usize = 10;
/// As close as that: this part of the size may be left.
const CLOSE: u64 = 500;

/// Sizes of the frontier that are told, at most.
const FRONTIER: usize = 17;

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

/// What was chosen, as a plan, and its size.
struct Sized {
    chosen: select::Chosen,
    plan: Plan,
    /// Bytes of the file.
    file: u64,
    /// The bytes that count: those of the file and, where memory is bounded, of the KV cache of
    /// units that could go.
    bytes: u64,
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
        let mut best: Option<Sized> = None;
        let mut smallest: Option<Sized> = None;
        for allowed in self.ways() {
            match self.fitted(limit, &*allowed, size_of)? {
                Ok(found) => {
                    if (best.as_ref()).is_none_or(|best| found.chosen.cost < best.chosen.cost) {
                        best = Some(found);
                    }
                }
                Err(found) => {
                    if (smallest.as_ref()).is_none_or(|smallest| found.bytes < smallest.bytes) {
                        smallest = Some(found);
                    }
                }
            }
        }
        let Some(best) = best else {
            return Ok(Err(smallest.map_or(u64::MAX, |smallest| smallest.bytes)));
        };
        let mut found = vec![best];
        for other in self.others(&found[0].chosen) {
            if found.len() > OTHERS {
                break;
            }
            if let Ok(other) = self.fitted(limit, &*other, size_of)?
                && other.chosen.cost <= FAR * found[0].chosen.cost
                && found.iter().all(|before| before.chosen != other.chosen)
            {
                found.push(other);
            }
        }
        let candidates = found.into_iter().map(|of| {
            let limit = limit - (of.bytes - of.file);
            let fit = self.told(limit, &of.chosen);
            (of.plan, fit)
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
            if let Ok(of) = self.below((room, limit), &choose, &|_, _| true, size_of)?
                && of.bytes >= least
            {
                let told = self.told(limit, &of.chosen);
                plans.push((of.plan, told, of.file));
            }
        }
        match plans.is_empty() {
            true => Err(Error::usage(format!(
                "no plan that was drawn has {limit} bytes or a little less: there are too few moves"
            ))),
            false => Ok(plans),
        }
    }

    /// The bytes of the smallest file.
    pub fn smallest_size(&self, size_of: SizeOf<'_>) -> Result<u64, Error> {
        let mut smallest = u64::MAX;
        for allowed in self.ways() {
            smallest = smallest.min(self.smallest(&*allowed, size_of)?.bytes);
        }
        Ok(smallest)
    }

    /// Some sizes from the source's down to the smallest, and what they cost at least.
    pub fn frontier(&self, size_of: SizeOf<'_>) -> Result<Vec<OtherSize>, Error> {
        let points = select::frontier(&self.all, FRONTIER);
        let size = |bytes, chosen: &select::Chosen| OtherSize {
            bytes,
            cost: chosen.cost,
            changes: self.changes(chosen),
        };
        let source = points.first().map(|first| size(self.source.len(), first));
        let mut sizes: Vec<OtherSize> = source.into_iter().collect();
        for chosen in &points {
            let bytes = size_of(&self.plan(chosen))?;
            // A step may save less than the plan takes that says so.
            if sizes.last().is_none_or(|last| bytes < last.bytes) {
                sizes.push(size(bytes, chosen));
            }
        }
        Ok(sizes)
    }

    /// Bytes of the KV cache of the units that could go, as the source has them.
    pub fn cache_of_all(&self) -> u64 {
        self.groups.iter().map(|group| group.cache(0)).sum()
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

    /// What costs least of what is `allowed`; otherwise the smallest of it.
    fn fitted(
        &self,
        limit: u64,
        allowed: &dyn Fn(usize, usize) -> bool,
        size_of: SizeOf<'_>,
    ) -> Result<Result<Sized, Sized>, Error> {
        let choose = |room| select::choose_among(&self.all, room, allowed);
        self.below((limit, limit), &choose, allowed, size_of)
    }

    /// What `choose` makes of room for a file of `aim` bytes, and its size, which is at most
    /// `limit`; otherwise the smallest file of what is `allowed`.
    ///
    /// What a header says, and pages, take bytes that no alternative is about. So the room is
    /// looked for that leaves little of the limit: between one that was too large and one that
    /// was not.
    fn below(
        &self,
        (aim, limit): (u64, u64),
        choose: &dyn Fn(u64) -> Option<select::Chosen>,
        allowed: &dyn Fn(usize, usize) -> bool,
        size_of: SizeOf<'_>,
    ) -> Result<Result<Sized, Sized>, Error> {
        let mut best: Option<Sized> = None;
        // Rooms: the one that fits may be too small for anything.
        let mut rooms = Bracket::default();
        let mut room = aim.saturating_sub(self.rest);
        for _ in 0..ATTEMPTS {
            let Some(chosen) = choose(room) else {
                rooms.fits = Some(room);
                match rooms.too_large.and_then(|_| rooms.next(room)) {
                    Some(next) => room = next,
                    None => break,
                }
                continue;
            };
            if best.as_ref().is_some_and(|best| best.chosen == chosen) {
                break;
            }
            let of = self.sized(chosen, size_of)?;
            let next = if of.bytes <= limit {
                rooms.fits = Some(room);
                let left = limit - of.bytes;
                let is_close = left <= limit / CLOSE || aim < limit;
                if (best.as_ref()).is_none_or(|best| of.chosen.cost < best.chosen.cost) {
                    best = Some(of);
                }
                if is_close {
                    break;
                }
                room.saturating_add(left)
            } else {
                rooms.too_large = Some(room);
                room.saturating_sub(of.bytes - limit)
            };
            match rooms.next(next) {
                Some(next) => room = next,
                None => break,
            }
        }
        if let Some(best) = best {
            return Ok(Ok(best));
        }
        let smallest = self.smallest(allowed, size_of)?;
        Ok(match smallest.bytes <= limit {
            true => Ok(smallest),
            false => Err(smallest),
        })
    }

    /// The smallest file of what is `allowed`.
    fn smallest(
        &self,
        allowed: &dyn Fn(usize, usize) -> bool,
        size_of: SizeOf<'_>,
    ) -> Result<Sized, Error> {
        let least = |(group, of): (usize, &select::Alternatives)| {
            let some = of.iter().enumerate().filter(|(i, _)| allowed(group, *i));
            some.min_by_key(|(_, of)| of.0).map_or(0, |(i, _)| i)
        };
        let which = self.all.iter().enumerate().map(least).collect();
        self.sized(select::Chosen::of(&self.all, which), size_of)
    }

    fn sized(&self, chosen: select::Chosen, size_of: SizeOf<'_>) -> Result<Sized, Error> {
        let plan = self.plan(&chosen);
        let file = size_of(&plan)?;
        let groups = self.groups.iter().zip(&chosen.which);
        let cache: u64 = groups.map(|(group, &which)| group.cache(which)).sum();
        Ok(Sized {
            chosen,
            plan,
            file,
            bytes: file + cache,
        })
    }

    /// Says that the smallest file is larger than `wanted`.
    pub fn too_small(&self, wanted: u64, smallest: u64) -> Error {
        (self.budget).about(self.source, FitError::TooSmall { wanted, smallest })
    }

    /// What was chosen as a plan, which says the types of what is encoded.
    pub fn plan(&self, chosen: &select::Chosen) -> Plan {
        let fit::Changes { types, edits, .. } = fit::changes(self.groups, &chosen.which);
        let tensors = self.source.gguf.tensors();
        let changed = tensors.iter().filter(|info| {
            let to = types.get(info.name.as_str());
            to.is_some_and(|to| *to != info.ggml_type)
        });
        let changed = changed.map(|info| info.name.clone()).collect();
        let stated = stated(&edits, changed, &|name| {
            let info = self.source.gguf.tensor(name);
            info.is_some_and(|info| info.ggml_type.block_elems() > 1)
        });
        let mut plan = measured_plan();
        plan.edits = edits;
        let stores = tensors.iter().filter_map(|info| {
            let to = types.get(info.name.as_str()).copied();
            let is_stated = stated.contains(&info.name);
            is_stated.then(|| (info.name.as_str(), to.unwrap_or(info.ggml_type)))
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
    fn told(&self, limit: u64, chosen: &select::Chosen) -> MadeToFit {
        MadeToFit {
            wanted: limit,
            memory: None,
            predicted: chosen.cost,
            tensors: self.movable.len(),
            estimated: self.statistics.estimated(),
            changes: self.changes(chosen),
            frontier: Vec::new(),
            tried: Vec::new(),
        }
    }

    fn changes(&self, chosen: &select::Chosen) -> Changes {
        let fit::Changes { types, changed, .. } = fit::changes(self.groups, &chosen.which);
        Changes {
            types: counted(self.movable, &types),
            output_head: self.own_head(&types).map(|to| to.name().to_owned()),
            units: changed.dropped,
            shared: changed.shared,
            channels: changed.channels,
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

/// The tensors whose types a plan with these `edits` states: those that are `changed`, what
/// shares rows with them, and what is made anew since channels go, of those that are made of
/// `blocks`.
fn stated(
    edits: &[Edit],
    mut changed: BTreeSet<String>,
    blocks: &dyn Fn(&str) -> bool,
) -> BTreeSet<String> {
    for edit in edits {
        match edit {
            Edit::Share(share) => {
                for stem in ["attn_q", "attn_k", "attn_v", "attn_qkv"] {
                    let name = |layer: u32| format!("blk.{layer}.{stem}.weight");
                    let both = [name(share.layer), name(share.donor_layer)];
                    if both.iter().any(|name| changed.contains(name)) {
                        changed.extend(both);
                    }
                }
            }
            Edit::Narrow(narrow) => {
                let down = format!("blk.{}.ffn_down.weight", narrow.layer);
                if blocks(&down) {
                    changed.insert(down);
                }
            }
            _ => {}
        }
    }
    changed
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
