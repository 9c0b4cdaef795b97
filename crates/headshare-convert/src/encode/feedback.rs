//! Rounding columns one after the other, where each error moves the columns after
//! it.
//!
//! With H^-1 = U^T U of the inputs (see [`super::gptq`]), rounding column i of a row
//! by e costs (e / U_ii)^2, once the columns after it have moved by -e U_ij / U_ii.

use super::block::Block;

/// Some columns of a block, side by side.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span<'a> {
    block: &'a Block,
    from: usize,
    len: usize,
}

impl<'a> Span<'a> {
    /// Columns `from` to `from + len` of `block`.
    pub fn new(block: &'a Block, from: usize, len: usize) -> Self {
        debug_assert!(from + len <= block.width());
        Self { block, from, len }
    }

    /// Row `i` of U within the span, from the diagonal on.
    fn row(&self, i: usize) -> &'a [f64] {
        &self.block.row(self.from + i)[..self.len - i]
    }

    /// Rounds `wanted` (one number a column) on `grid`, which gives each number a
    /// level and the value of it. Returns what it costs; `None` when that is
    /// `limit` or more, or no number.
    pub fn round(
        &self,
        wanted: &[f64],
        grid: &Grid<'_>,
        limit: f64,
        levels: &mut [i8],
    ) -> Option<f64> {
        debug_assert_eq!(wanted.len(), self.len);
        let mut rest = [0f64; MOST];
        let rest = &mut rest[..self.len];
        rest.copy_from_slice(wanted);
        let mut cost = 0.0;
        for i in 0..self.len {
            let level = grid.nearest(rest[i]);
            levels[i] = level;
            let factors = self.row(i);
            let error = (rest[i] - grid.value(level)) / factors[0];
            cost += error * error;
            if cost.is_nan() || cost >= limit {
                return None;
            }
            for (later, factor) in rest[i + 1..].iter_mut().zip(&factors[1..]) {
                *later -= error * factor;
            }
        }
        Some(cost)
    }

    /// v U^-1 within the span: the square of its length is what an error of v costs.
    pub fn solve(&self, v: &[f64]) -> [f64; MOST] {
        let mut error = [0f64; MOST];
        error[..self.len].copy_from_slice(v);
        for i in 0..self.len {
            let row = self.row(i);
            error[i] /= row[0];
            let value = error[i];
            for (later, factor) in error[i + 1..self.len].iter_mut().zip(&row[1..]) {
                *later -= value * factor;
            }
        }
        error
    }

    /// Moves the columns of `rest`, the whole block, that come after the span, for
    /// the errors in it, of which `got` are the values.
    pub fn move_rest(&self, rest: &mut [f64], got: &[f64]) {
        let end = self.from + self.len;
        let off: Vec<f64> = (rest[self.from..end].iter().zip(got))
            .map(|(w, g)| w - g)
            .collect();
        let errors = self.solve(&off);
        for (i, error) in errors[..self.len].iter().enumerate() {
            let factors = &self.block.row(self.from + i)[self.len - i..];
            for (later, factor) in rest[end..].iter_mut().zip(factors) {
                *later -= error * factor;
            }
        }
    }
}

/// Columns of a span, at most.
pub(super) const MOST: usize = 128;

/// The numbers that weights are multiples of their scale by.
#[derive(Debug, Clone, Copy)]
pub(super) enum Levels {
    /// Whole numbers from the first to the last.
    Whole(i8, i8),
    /// These, ascending.
    Listed(&'static [i8]),
}

impl Levels {
    /// The level closest to `x`.
    pub fn nearest(self, x: f64) -> i8 {
        match self {
            Self::Whole(first, last) => x.round().clamp(f64::from(first), f64::from(last)) as i8,
            Self::Listed(levels) => {
                let after = levels.partition_point(|&level| f64::from(level) < x);
                match (after.checked_sub(1).map(|i| levels[i]), levels.get(after)) {
                    (Some(below), Some(&above)) => {
                        match x - f64::from(below) <= f64::from(above) - x {
                            true => below,
                            false => above,
                        }
                    }
                    (Some(below), None) => below,
                    (None, above) => above.copied().unwrap_or(0),
                }
            }
        }
    }

    /// The smallest and the largest.
    pub fn ends(self) -> (f64, f64) {
        let (first, last) = match self {
            Self::Whole(first, last) => (first, last),
            Self::Listed(levels) => (levels[0], levels[levels.len() - 1]),
        };
        (f64::from(first), f64::from(last))
    }
}

/// Levels, a scale and a base: a value is scale x level + base.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grid<'l> {
    pub levels: &'l Levels,
    pub scale: f64,
    pub base: f64,
}

impl Grid<'_> {
    /// The level whose value is closest to `w`.
    pub fn nearest(&self, w: f64) -> i8 {
        let inverse = if self.scale == 0.0 {
            0.0
        } else {
            1.0 / self.scale
        };
        self.levels.nearest((w - self.base) * inverse)
    }

    /// The value of a level.
    pub fn value(&self, level: i8) -> f64 {
        f64::from(level) * self.scale + self.base
    }
}

/// How far the range of the weights is narrowed (or widened) for a first scale.
const STARTS: [f64; 9] = [1.03, 1.0, 0.96, 0.92, 0.87, 0.82, 0.76, 0.69, 0.6];
/// Times that scale and base are fitted to the levels found.
const FITS: usize = 3;

/// A scale and a base, as exact numbers, that `wanted` costs little on; with a base
/// of 0 or less where `with_base`, else of 0. `signs` says whether negative scales
/// are tried, too: levels that do not lie evenly about 0 differ by that.
pub(super) fn ideal(
    span: Span<'_>,
    wanted: &[f64],
    levels: &Levels,
    with_base: bool,
    signs: bool,
) -> (f64, f64) {
    let low = wanted.iter().copied().fold(f64::INFINITY, f64::min);
    let high = wanted.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let (first, last) = levels.ends();
    let mut best = (f64::INFINITY, 0.0, 0.0);
    let mut codes = [0i8; MOST];
    let mut consider = |scale: f64, base: f64| {
        let (mut scale, mut base) = (scale, base);
        for _ in 0..=FITS {
            let grid = Grid {
                levels,
                scale,
                base,
            };
            let Some(cost) = span.round(wanted, &grid, best.0, &mut codes[..wanted.len()]) else {
                return;
            };
            best = (cost, scale, base);
            let Some(fitted) = fit(span, wanted, &codes[..wanted.len()], with_base) else {
                return;
            };
            (scale, base) = fitted;
        }
    };
    if with_base {
        let low = low.min(0.0);
        for narrow in STARTS {
            // Both ends move in; the lower one may stay.
            for both in [1.0, 0.5, 0.0] {
                let span = high.max(0.0) - low;
                let from = low + (1.0 - narrow) * span / 2.0 * both;
                consider(narrow * span / (last - first), from.min(0.0));
            }
        }
    } else {
        let largest = low.abs().max(high.abs());
        let extreme = first.abs().max(last.abs());
        for narrow in STARTS {
            consider(narrow * largest / extreme, 0.0);
            if signs {
                consider(-narrow * largest / extreme, 0.0);
            }
        }
    }
    (best.1, best.2)
}

/// The scale (and base) that suit levels best: the least squares of what an error
/// costs within the span.
fn fit(span: Span<'_>, wanted: &[f64], codes: &[i8], with_base: bool) -> Option<(f64, f64)> {
    let n = wanted.len();
    let a = span.solve(wanted);
    let levels: Vec<f64> = codes.iter().map(|&c| f64::from(c)).collect();
    let b = span.solve(&levels);
    let dot = |x: &[f64], y: &[f64]| x[..n].iter().zip(&y[..n]).map(|(x, y)| x * y).sum::<f64>();
    let (ab, bb) = (dot(&a, &b), dot(&b, &b));
    if with_base {
        let c = span.solve(&[1.0; MOST][..n]);
        let (ac, bc, cc) = (dot(&a, &c), dot(&b, &c), dot(&c, &c));
        let determinant = bb * cc - bc * bc;
        if determinant > 1e-12 * bb * cc {
            let base = (ac * bb - ab * bc) / determinant;
            let scale = (ab * cc - ac * bc) / determinant;
            if base <= 0.0 && scale > 0.0 {
                return Some((scale, base));
            }
        }
    }
    (bb > 0.0).then(|| (ab / bb, 0.0))
}
