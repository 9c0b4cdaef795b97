//! The rounding of [`super::feedback`] on many grids side by side.
//!
//! Each column waits for the one before it, so one grid keeps a core waiting; many
//! keep it busy.

use super::feedback::{Levels, Span, inverse};

/// Grids side by side.
pub(super) const LANES: usize = 16;
/// A number for each grid.
pub(super) type Lanes = [f64; LANES];
/// Columns after which it is asked whether any grid can still be of use.
const CHECKED: usize = 4;

/// Some grids: scales and bases as of [`super::feedback::Grid`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Grids {
    pub scales: Lanes,
    pub bases: Lanes,
}

impl Grids {
    /// Up to [`LANES`] scales and bases. What is left over costs no number.
    pub fn new(grids: impl IntoIterator<Item = (f64, f64)>) -> Self {
        let mut all = Self {
            scales: [f64::NAN; LANES],
            bases: [0.0; LANES],
        };
        for (lane, (scale, base)) in grids.into_iter().take(LANES).enumerate() {
            all.scales[lane] = scale;
            all.bases[lane] = base;
        }
        all
    }
}

/// What rounding gives on each of some grids.
#[derive(Debug)]
pub(super) struct Rounded {
    /// The sum of the squares of `errors`; where no grid was of use, a part of it.
    pub costs: Lanes,
    /// Of each column.
    pub levels: Vec<Lanes>,
    /// Of each column, what was left of it, over the diagonal of U: (wanted - got) U^-1.
    pub errors: Vec<Lanes>,
}

impl Rounded {
    /// Room for so many columns.
    pub fn room(columns: usize) -> Self {
        Self {
            costs: [0.0; LANES],
            levels: vec![[0.0; LANES]; columns],
            errors: vec![[0.0; LANES]; columns],
        }
    }

    /// Rounds `wanted`, one number a column of `span`, on each grid. Stops early when no
    /// grid costs less than its limit.
    pub fn round(
        &mut self,
        span: Span<'_>,
        wanted: &[f64],
        levels: &Levels,
        grids: &Grids,
        limits: &Lanes,
    ) {
        match *levels {
            Levels::Whole(first, last) => {
                let (first, last) = (f64::from(first), f64::from(last));
                self.round_by(span, wanted, grids, limits, |x| {
                    x.map(|x| x.round().clamp(first, last))
                });
            }
            Levels::Listed(list) => {
                let lowest = f64::from(list.levels()[0]);
                self.round_by(span, wanted, grids, limits, |x| {
                    let mut level = [lowest; LANES];
                    for (middle, apart) in list.steps() {
                        for (level, x) in level.iter_mut().zip(x) {
                            *level += if x > middle { apart } else { 0.0 };
                        }
                    }
                    level
                });
            }
        }
    }

    #[inline(always)]
    fn round_by(
        &mut self,
        span: Span<'_>,
        wanted: &[f64],
        grids: &Grids,
        limits: &Lanes,
        nearest: impl Fn(Lanes) -> Lanes,
    ) {
        let Grids { scales, bases } = *grids;
        let inverse = scales.map(inverse);
        self.costs = [0.0; LANES];
        for (i, &wanted) in wanted.iter().enumerate() {
            let mut rest = [wanted; LANES];
            for (before, errors) in self.errors[..i].iter().enumerate() {
                let factor = span.row(before)[i - before];
                for lane in 0..LANES {
                    rest[lane] -= errors[lane] * factor;
                }
            }
            let own = span.row(i)[0];
            let mut place = [0.0; LANES];
            for lane in 0..LANES {
                place[lane] = (rest[lane] - bases[lane]) * inverse[lane];
            }
            let level = nearest(place);
            let mut errors = [0.0; LANES];
            for lane in 0..LANES {
                let value = level[lane] * scales[lane] + bases[lane];
                errors[lane] = (rest[lane] - value) / own;
                self.costs[lane] += errors[lane] * errors[lane];
            }
            self.levels[i] = level;
            self.errors[i] = errors;
            if i % CHECKED == CHECKED - 1 {
                let mut costs = self.costs.iter().zip(limits);
                if !costs.any(|(cost, limit)| cost < limit) {
                    return;
                }
            }
        }
    }

    /// The grid that costs least, and how much, if that is less than `limit`.
    pub fn best(&self, limit: f64) -> Option<(usize, f64)> {
        let mut best = None;
        let mut least = limit;
        for (lane, &cost) in self.costs.iter().enumerate() {
            if cost < least {
                (best, least) = (Some((lane, cost)), cost);
            }
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use faer::Mat;

    use super::super::block::Block;
    use super::super::feedback::{Grid, List};
    use super::super::tests::numbers;
    use super::*;

    /// What rounding costs, and the levels, on one grid: each error moves what is left.
    fn alone(span: Span<'_>, wanted: &[f64], grid: &Grid<'_>) -> (f64, Vec<i8>) {
        let mut rest = wanted.to_vec();
        let mut cost = 0.0;
        let mut levels = Vec::new();
        for i in 0..wanted.len() {
            let level = grid.nearest(rest[i]);
            let value = f64::from(level) * grid.scale + grid.base;
            let factors = span.row(i);
            let error = (rest[i] - value) / factors[0];
            cost += error * error;
            for (later, factor) in rest[i + 1..].iter_mut().zip(&factors[1..]) {
                *later -= error * factor;
            }
            levels.push(level);
        }
        (cost, levels)
    }

    /// Each grid costs, and gives, what it does by itself.
    #[test]
    fn grids_side_by_side_are_as_each_is_alone() {
        static LIST: List = List::new(&[-9, -5, -2, 0, 1, 4, 11]);
        let (width, from, n) = (32, 8, 16);
        let random = numbers(width * width, 7);
        let upper = Mat::from_fn(width, width, |i, j| match i.cmp(&j) {
            std::cmp::Ordering::Less => 0.2 * random[i * width + j],
            std::cmp::Ordering::Equal => 1.5 + 0.5 * random[i * width + j],
            std::cmp::Ordering::Greater => 0.0,
        });
        let block = Block::new(upper.as_ref());
        let span = Span::new(&block, from, n);
        let grids = [
            (0.11, 0.0),
            (-0.2, 0.05),
            (0.0, -0.3),
            (0.02, 1.0),
            (1.7, 0.1),
        ];
        for (seed, levels) in (8..).zip([
            Levels::Whole(-8, 7),
            Levels::Whole(0, 3),
            Levels::Listed(&LIST),
        ]) {
            let wanted = numbers(n, seed);
            let mut all = Rounded::room(n);
            all.round(
                span,
                &wanted,
                &levels,
                &Grids::new(grids),
                &[f64::INFINITY; LANES],
            );
            let mut least = f64::INFINITY;
            for (lane, (scale, base)) in grids.into_iter().enumerate() {
                let grid = Grid {
                    levels: &levels,
                    scale,
                    base,
                };
                let (cost, codes) = alone(span, &wanted, &grid);
                assert_eq!(all.costs[lane], cost, "{levels:?}: {scale}");
                for (of, code) in all.levels.iter().zip(codes) {
                    assert_eq!(of[lane], f64::from(code));
                }
                least = least.min(cost);
            }
            assert!(all.costs[grids.len()..].iter().all(|cost| cost.is_nan()));
            assert_eq!(all.best(f64::INFINITY).unwrap().1, least);
            assert!(all.best(least).is_none());
        }
    }
}
