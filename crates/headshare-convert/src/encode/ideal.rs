//! The scale, and the base, that suit some columns of a row best.
//!
//! Many beginnings are tried side by side. Each is rounded with feedback, then scale and
//! base are fitted to the levels found by least squares of what errors cost, and so on. What
//! rounding costs jumps with the scale, since each error moves all columns after it: so
//! scales are tried as they are stored, and many of them.

use super::feedback::{Levels, Span};
use super::lanes::{Grids, LANES, Rounded};

/// First scales, and times that they are fitted to the levels found: without bases, and for each
/// of several bases.
const TRIED: (usize, usize) = (24, 1);
const TRIED_WITH_BASE: (usize, usize) = (16, 2);

/// Which bases there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Base {
    /// None: 0.
    None,
    /// 0 and less.
    NotPositive,
    /// Any.
    Any,
}

/// What is looked for.
#[derive(Clone, Copy)]
pub(super) struct Search<'s> {
    pub levels: Levels,
    pub base: Base,
    /// Whether scales can be negative: levels that do not lie evenly about 0 differ by that.
    pub signs: bool,
    /// The number closest to a scale, or a base, that can be stored.
    pub stored: &'s dyn Fn(f64) -> f64,
}

/// What was found.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub scale: f64,
    pub base: f64,
    /// Of each column.
    pub levels: Vec<i8>,
}

impl Search<'_> {
    /// The scale and the base, with the levels, that `wanted` costs least on of those that are
    /// tried; the grids that are `known` are among them. `None` where nothing costs a number.
    pub fn best(&self, span: Span<'_>, wanted: &[f64], known: &[(f64, f64)]) -> Option<Found> {
        let fit = Fit::new(span, wanted, self.base);
        let mut rounded = Rounded::room(wanted.len());
        let mut best: Option<Found> = None;
        let mut cost = f64::INFINITY;
        let first = self.first(wanted).into_iter();
        let first = first.map(|grid| self.store(grid));
        let mut first: Vec<(f64, f64)> = known.iter().copied().chain(first).collect();
        // Where few scales can be stored, many are one.
        first.dedup();
        for first in first.chunks(LANES) {
            let mut grids = Grids::new(first.iter().copied());
            let mut least = [f64::INFINITY; LANES];
            for _ in 0..=self.tried().1 {
                rounded.round(span, wanted, &self.levels, &grids, &least);
                let mut better = false;
                for (lane, (least, &cost)) in least.iter_mut().zip(&rounded.costs).enumerate() {
                    if cost < *least {
                        (*least, better) = (cost, true);
                    } else {
                        // Its end.
                        grids.scales[lane] = f64::NAN;
                    }
                }
                if let Some((lane, least)) = rounded.best(cost) {
                    cost = least;
                    best = Some(Found {
                        scale: grids.scales[lane],
                        base: grids.bases[lane],
                        levels: rounded.levels.iter().map(|of| of[lane] as i8).collect(),
                    });
                }
                if !better {
                    break;
                }
                grids = fit.of(&rounded, &grids);
                let stored = grids.scales.into_iter().zip(grids.bases);
                grids = Grids::new(stored.map(|grid| self.store(grid)));
            }
        }
        best
    }

    /// How many first scales, and how many fits.
    fn tried(&self) -> (usize, usize) {
        match self.base {
            Base::None => TRIED,
            _ => TRIED_WITH_BASE,
        }
    }

    /// As it is stored, where it is a number.
    fn store(&self, (scale, base): (f64, f64)) -> (f64, f64) {
        match scale.is_finite() && base.is_finite() {
            true => (
                (self.stored)(scale),
                if base == 0.0 {
                    base
                } else {
                    (self.stored)(base)
                },
            ),
            false => (f64::NAN, 0.0),
        }
    }

    /// The scales and bases that are begun with.
    fn first(&self, wanted: &[f64]) -> Vec<(f64, f64)> {
        let low = wanted.iter().copied().fold(f64::INFINITY, f64::min);
        let high = wanted.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let (first, last) = self.levels.ends();
        let (narrowest, widest) = self.range();
        let starts = self.tried().0;
        let step = (widest - narrowest) / (starts - 1) as f64;
        let all = (0..starts).map(|i| widest - step * i as f64);
        if self.base == Base::None {
            let largest = low.abs().max(high.abs()) / first.abs().max(last.abs());
            let signs: &[f64] = if self.signs { &[1.0, -1.0] } else { &[1.0] };
            return all
                .flat_map(|of| signs.iter().map(move |sign| (sign * of * largest, 0.0)))
                .collect();
        }
        // The parts of what is taken off that are taken off at the lower end.
        let (low, high, ends): (f64, f64, &[f64]) = match self.base {
            Base::NotPositive => (low.min(0.0), high.max(0.0), &[0.5, 0.25, 0.0]),
            _ => (low, high, &[0.5, 0.25, 0.75, 0.0, 1.0]),
        };
        let span = high - low;
        let at = |of: f64, end: f64| {
            let base = low + (1.0 - of) * span * end;
            match self.base {
                Base::NotPositive => base.min(0.0),
                _ => base,
            }
        };
        all.flat_map(|of| {
            ends.iter()
                .map(move |&end| (of * span / (last - first), at(of, end)))
        })
        .collect()
    }

    /// The parts of the range that scales can cover to begin with. With few levels it pays to
    /// cut the largest numbers off, or to have them on the last level but one.
    fn range(&self) -> (f64, f64) {
        let (first, last) = self.levels.ends();
        let narrowest = 1.0 - 0.55 * (16.0 / (last - first + 1.0)).min(1.0);
        if self.base != Base::None {
            return (narrowest, 1.05);
        }
        let (smaller, larger) = match first.abs() < last.abs() {
            true => (first.abs(), last.abs()),
            false => (last.abs(), first.abs()),
        };
        let second = self.levels.second_largest();
        (
            narrowest,
            1.02 * larger / smaller.min(second).max(larger / 2.0),
        )
    }
}

/// Fits scales and bases to levels.
struct Fit {
    /// wanted U^-1: the square of its length is what all of it would cost.
    wanted: Vec<f64>,
    /// The same of ones, where there are bases.
    ones: Vec<f64>,
    base: Base,
}

impl Fit {
    fn new(span: Span<'_>, wanted: &[f64], base: Base) -> Self {
        let solve = |v: &[f64]| span.solve(v)[..v.len()].to_vec();
        Self {
            wanted: solve(wanted),
            ones: match base {
                Base::None => vec![0.0; wanted.len()],
                _ => solve(&vec![1.0; wanted.len()]),
            },
            base,
        }
    }

    /// The scale and the base of each grid that suit the levels best which were found on
    /// it: the least squares of what an error costs. Not a number where there is none.
    fn of(&self, found: &Rounded, grids: &Grids) -> Grids {
        let mut sums = [[0.0; LANES]; 3];
        let [ab, bb, bc] = &mut sums;
        let (mut ac, mut cc) = (0.0, 0.0);
        let of_columns = self.wanted.iter().zip(&self.ones).zip(&found.errors);
        for ((&a, &c), errors) in of_columns {
            ac += a * c;
            cc += c * c;
            for lane in 0..LANES {
                // Wanted is the errors and the values, which are scale x levels + base.
                let of_levels = (a - errors[lane] - grids.bases[lane] * c) / grids.scales[lane];
                ab[lane] += a * of_levels;
                bb[lane] += of_levels * of_levels;
                bc[lane] += of_levels * c;
            }
        }
        Grids::new((0..LANES).map(|lane| self.solved([ab[lane], bb[lane], bc[lane]], ac, cc)))
    }

    /// The scale and the base of the least squares with these products of wanted (a), levels
    /// (b) and ones (c).
    fn solved(&self, [ab, bb, bc]: [f64; 3], ac: f64, cc: f64) -> (f64, f64) {
        let determinant = bb * cc - bc * bc;
        if determinant > 1e-12 * bb * cc {
            let base = (ac * bb - ab * bc) / determinant;
            let scale = (ab * cc - ac * bc) / determinant;
            if scale > 0.0 && (self.base == Base::Any || base <= 0.0) {
                return (scale, base);
            }
        }
        (if bb > 0.0 { ab / bb } else { f64::NAN }, 0.0)
    }
}
