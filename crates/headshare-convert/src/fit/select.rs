//! Takes the moves that cost least for their bytes: a knapsack in which each tensor has one
//! type.
//!
//! First along the convex hulls of all tensors, steepest savings first (which is what a
//! Lagrangian multiplier on the bytes gives), then by exchanges of one and of two tensors
//! while they help. The same from the cheapest single alternative on that does by itself: what
//! is chosen is never worse than that.

use std::collections::BTreeSet;

/// A tensor's alternatives: bytes and cost of each, the first one is what it is now.
pub type Alternatives = Vec<(u64, f64)>;

/// What was chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct Chosen {
    /// Of each tensor, which alternative.
    pub which: Vec<usize>,
    /// Bytes of all.
    pub bytes: u64,
    /// Costs of all.
    pub cost: f64,
}

impl Chosen {
    /// The alternatives `which` of all tensors.
    pub fn of(all: &[Alternatives], which: Vec<usize>) -> Self {
        let taken = all.iter().zip(&which).map(|(of, &i)| of[i]);
        let (bytes, cost) = taken.fold((0, 0.0), |(b, c), (bytes, cost)| (b + bytes, c + cost));
        Self { which, bytes, cost }
    }
}

/// A step along a tensor's hull.
#[derive(Debug, Clone, Copy)]
struct Step {
    tensor: usize,
    to: usize,
    /// Cost for each byte that it saves.
    slope: f64,
}

/// The lower convex hull of alternatives, from what is now to the smallest: which.
pub(super) fn hull(of: &Alternatives) -> Vec<usize> {
    let mut at = 0;
    let mut hull = vec![at];
    loop {
        let (bytes, cost) = of[at];
        let slope = |&i: &usize| (of[i].1 - cost) / (bytes - of[i].0) as f64;
        let smaller = (0..of.len()).filter(|&i| of[i].0 < bytes);
        let next = smaller.min_by(|a, b| {
            // The flattest; of equal ones the one that saves most.
            slope(a).total_cmp(&slope(b)).then(of[*a].0.cmp(&of[*b].0))
        });
        match next {
            Some(next) => hull.push(next),
            None => return hull,
        }
        at = hull[hull.len() - 1];
    }
}

/// The steps along all hulls, flattest first; those of a tensor in their order.
fn steps(all: &[Alternatives]) -> Vec<Step> {
    let of = |(tensor, of): (usize, &Alternatives)| {
        let hull = hull(of);
        let step = |pair: &[usize]| Step {
            tensor,
            to: pair[1],
            slope: (of[pair[1]].1 - of[pair[0]].1) / (of[pair[0]].0 - of[pair[1]].0) as f64,
        };
        hull.windows(2).map(step).collect::<Vec<Step>>()
    };
    let mut steps: Vec<Step> = all.iter().enumerate().flat_map(of).collect();
    steps.sort_by(|a, b| a.slope.total_cmp(&b.slope));
    steps
}

/// What following the hulls passes, from what is now to the smallest: so many points of it at
/// most, both ends among them.
pub fn frontier(all: &[Alternatives], most: usize) -> Vec<Chosen> {
    let steps = steps(all);
    let last = most.saturating_sub(1).max(1);
    let kept: BTreeSet<usize> = match steps.len() <= last {
        true => (0..=steps.len()).collect(),
        false => (0..=last).map(|i| i * steps.len() / last).collect(),
    };
    let mut chosen = Chosen::of(all, vec![0; all.len()]);
    let mut points = vec![chosen.clone()];
    for (i, step) in steps.into_iter().enumerate() {
        take(all, &mut chosen, step.tensor, step.to);
        if kept.contains(&(i + 1)) {
            points.push(chosen.clone());
        }
    }
    points
}

fn take(all: &[Alternatives], chosen: &mut Chosen, tensor: usize, to: usize) {
    let (old, new) = (all[tensor][chosen.which[tensor]], all[tensor][to]);
    chosen.bytes = chosen.bytes - old.0 + new.0;
    chosen.cost += new.1 - old.1;
    chosen.which[tensor] = to;
}

/// Chooses for at most `budget` bytes; `None` where that is less than all moves reach.
pub fn choose(all: &[Alternatives], budget: u64) -> Option<Chosen> {
    let mut chosen = Chosen::of(all, vec![0; all.len()]);
    for step in steps(all) {
        if chosen.bytes <= budget {
            break;
        }
        take(all, &mut chosen, step.tensor, step.to);
    }
    if chosen.bytes > budget {
        return None;
    }
    improve(all, budget, &mut chosen);
    let chosen = Chosen::of(all, chosen.which);
    let single = single(all, budget).map(|mut single| {
        improve(all, budget, &mut single);
        Chosen::of(all, single.which)
    });
    match single {
        Some(single) if single.cost < chosen.cost => Some(single),
        _ => Some(chosen),
    }
}

/// The cheapest single alternative of one tensor that does by itself, if one does.
fn single(all: &[Alternatives], budget: u64) -> Option<Chosen> {
    let now = Chosen::of(all, vec![0; all.len()]);
    let mut best: Option<Chosen> = None;
    for (tensor, of) in all.iter().enumerate() {
        for to in 1..of.len() {
            let mut with = now.clone();
            take(all, &mut with, tensor, to);
            if with.bytes <= budget && best.as_ref().is_none_or(|best| with.cost < best.cost) {
                best = Some(with);
            }
        }
    }
    best
}

/// [`choose`] among the alternatives that are `allowed`, by group and alternative: at least
/// one of each group must be.
pub fn choose_among(
    all: &[Alternatives],
    budget: u64,
    allowed: &dyn Fn(usize, usize) -> bool,
) -> Option<Chosen> {
    let kept = |group: usize| (0..all[group].len()).filter(move |&i| allowed(group, i));
    let some: Vec<Alternatives> = (0..all.len())
        .map(|group| kept(group).map(|i| all[group][i]).collect())
        .collect();
    let chosen = choose(&some, budget)?;
    let which = chosen.which.iter().enumerate();
    let which = which.filter_map(|(group, &i)| kept(group).nth(i)).collect();
    Some(Chosen::of(all, which))
}

/// Exchanges alternatives of one tensor, and of two, while that costs less and fits.
fn improve(all: &[Alternatives], budget: u64, chosen: &mut Chosen) {
    loop {
        let mut best: Option<(f64, Vec<(usize, usize)>)> = None;
        let mut offer = |gain: f64, changes: &[(usize, usize)]| {
            // Gains that rounding makes are none.
            if gain > 1e-12 && best.as_ref().is_none_or(|(most, _)| gain > *most) {
                best = Some((gain, changes.to_vec()));
            }
        };
        let room = budget - chosen.bytes;
        let now = |tensor: usize| all[tensor][chosen.which[tensor]];
        // What gains and takes room, of each tensor the best for each amount of it.
        let mut dearer = Vec::new();
        let mut smaller = Vec::new();
        for (tensor, of) in all.iter().enumerate() {
            let (bytes, cost) = now(tensor);
            for (to, &(b, c)) in of.iter().enumerate() {
                if c < cost && b <= bytes + room {
                    offer(cost - c, &[(tensor, to)]);
                } else if c < cost {
                    dearer.push((b - bytes, cost - c, tensor, to));
                } else if b < bytes {
                    smaller.push((bytes - b, c - cost, tensor, to));
                }
            }
        }
        // For each gain that does not fit, the cheapest of another that makes room.
        smaller.sort_by_key(|s| std::cmp::Reverse(s.0));
        for &(takes, gain, tensor, to) in &dearer {
            let makes_room = smaller.iter().take_while(|s| s.0 + room >= takes);
            let cheapest = makes_room
                .filter(|s| s.2 != tensor)
                .min_by(|a, b| a.1.total_cmp(&b.1));
            if let Some(s) = cheapest {
                offer(gain - s.1, &[(tensor, to), (s.2, s.3)]);
            }
        }
        match best {
            Some((_, changes)) => {
                for (tensor, to) in changes {
                    take(all, chosen, tensor, to);
                }
            }
            None => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::oracle::Numbers;

    /// Alternatives that are no pattern: fewer bytes, mostly at more cost.
    fn random(seed: u64, tensors: usize) -> Vec<Alternatives> {
        let mut numbers = Numbers::new(seed);
        let mut below = |most: u64| {
            let number = f64::midpoint(numbers.take(1)[0], 1.0);
            (number * most as f64) as u64
        };
        let mut of = || {
            let size = 1000 + below(5000);
            let mut all = vec![(size, 0.0)];
            for part in 1..4 {
                let bytes = size - size * part / 5 - below(100);
                all.push((bytes, (below(1000) * part * part) as f64));
            }
            all
        };
        (0..tensors).map(|_| of()).collect()
    }

    /// The least cost of all plans that fit.
    fn least(all: &[Alternatives], budget: u64) -> Option<f64> {
        let Some((first, rest)) = all.split_first() else {
            return Some(0.0);
        };
        let fits = first.iter().filter(|(bytes, _)| *bytes <= budget);
        let costs = fits.filter_map(|(bytes, cost)| Some(cost + least(rest, budget - bytes)?));
        costs.min_by(f64::total_cmp)
    }

    #[test]
    fn what_is_chosen_fits_and_is_close_to_the_best_of_all_plans() {
        let (mut exact, mut count) = (0, 0);
        // Few tensors, too: then single alternatives are hard to beat.
        let cases = (0..40)
            .map(|seed| (seed, 6))
            .chain((40..300).map(|seed| (seed, 4)));
        for (seed, tensors) in cases {
            let all = random(seed, tensors);
            let now: u64 = all.iter().map(|of| of[0].0).sum();
            for part in [95, 80, 65, 50] {
                let budget = now * part / 100;
                let best = least(&all, budget);
                let chosen = choose(&all, budget);
                assert_eq!(best.is_some(), chosen.is_some());
                let (Some(best), Some(chosen)) = (best, chosen) else {
                    continue;
                };
                assert!(chosen.bytes <= budget);
                assert!(chosen.cost >= best - 1e-9);
                count += 1;
                exact += u32::from(chosen.cost <= best * (1.0 + 1e-9) + 1e-9);
                // Never worse than any single move that fits by itself.
                for (tensor, of) in all.iter().enumerate() {
                    for (to, (_, cost)) in of.iter().enumerate() {
                        let mut which = vec![0; all.len()];
                        which[tensor] = to;
                        if Chosen::of(&all, which).bytes <= budget {
                            assert!(chosen.cost <= cost + 1e-9, "{seed} {part}");
                        }
                    }
                }
            }
        }
        assert!(count > 100 && exact * 10 >= count * 8, "{exact} of {count}");
    }

    #[test]
    fn one_alternative_can_do_what_two_were_to() {
        let all = [(91, 0.9), (91, 0.99), (90, 1.2)].map(|small| vec![(100, 0.0), small]);
        let chosen = choose(&all, 290).unwrap();
        assert_eq!((chosen.which, chosen.cost), (vec![0, 0, 1], 1.2));
    }

    #[test]
    fn what_is_not_allowed_is_not_chosen() {
        let all = random(3, 6);
        let now: u64 = all.iter().map(|of| of[0].0).sum();
        let free = choose(&all, now * 7 / 10).unwrap();
        let same = choose_among(&all, now * 7 / 10, &|_, _| true).unwrap();
        assert_eq!(free, same);
        let of = (0..6).find(|&i| free.which[i] > 0).unwrap();
        let but = |group, i| group != of || i != free.which[of];
        let other = choose_among(&all, now * 7 / 10, &but).unwrap();
        assert!(other.which[of] != free.which[of] && other.cost >= free.cost);
    }

    #[test]
    fn the_frontier_goes_down_in_bytes_and_up_in_cost_per_byte() {
        let all = random(7, 9);
        let points = frontier(&all, usize::MAX);
        let some = frontier(&all, 5);
        assert_eq!(some.len(), 5);
        assert_eq!(some[0], points[0]);
        assert_eq!(some.last(), points.last());
        assert!(some.iter().all(|point| points.contains(point)));
        let slopes: Vec<f64> = points
            .windows(2)
            .map(|p| (p[1].cost - p[0].cost) / (p[0].bytes - p[1].bytes) as f64)
            .collect();
        assert!(slopes.len() >= all.len());
        assert!(slopes.windows(2).all(|s| s[0] <= s[1]), "{slopes:?}");
        let smallest: u64 = all
            .iter()
            .map(|of| of.iter().map(|a| a.0).min().unwrap())
            .sum();
        assert_eq!(points[points.len() - 1].bytes, smallest);
        assert!(choose(&all, smallest - 1).is_none());
        assert_eq!(choose(&all, points[0].bytes).unwrap().which, vec![0; 9]);
    }
}
