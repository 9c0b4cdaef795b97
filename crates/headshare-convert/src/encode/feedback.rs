//! Rounding columns one after the other, where each error moves the columns after
//! it.
//!
//! With H^-1 = U^T U of the inputs (see [`super::gptq`]), rounding column i of a row
//! by e costs (e / U_ii)^2, once the columns after it have moved by -e U_ij / U_ii.

use super::block::Block;

/// Neighbouring columns of a block.
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
    pub fn row(&self, i: usize) -> &'a [f64] {
        &self.block.row(self.from + i)[..self.len - i]
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
    /// These.
    Listed(&'static List),
}

/// Levels that are not all whole numbers of a range.
#[derive(Debug)]
pub(super) struct List {
    /// Ascending.
    levels: &'static [i8],
    /// Halfway between each and the next; what is left over lies beyond everything.
    middles: [f64; List::MOST - 1],
}

impl List {
    /// Levels of a list, at most.
    pub const MOST: usize = 16;

    pub const fn new(levels: &'static [i8]) -> Self {
        let mut middles = [f64::INFINITY; Self::MOST - 1];
        let mut i = 1;
        while i < levels.len() {
            middles[i - 1] = (levels[i - 1] as f64 + levels[i] as f64) / 2.0;
            i += 1;
        }
        Self { levels, middles }
    }

    /// The levels, ascending.
    pub fn levels(&self) -> &'static [i8] {
        self.levels
    }

    /// Each middle between two levels, and how far these are apart.
    pub fn steps(&self) -> impl Iterator<Item = (f64, f64)> {
        let apart = self
            .levels
            .windows(2)
            .map(|pair| f64::from(pair[1]) - f64::from(pair[0]));
        self.middles.iter().copied().zip(apart)
    }
}

impl Levels {
    /// The level closest to `x`; of two, the lower one.
    pub fn nearest(self, x: f64) -> i8 {
        match self {
            Self::Whole(first, last) => x.round().clamp(f64::from(first), f64::from(last)) as i8,
            // All are compared: where to stop would be guessed wrong half of the time.
            Self::Listed(list) => {
                let below = list.middles.iter().map(|&middle| usize::from(x > middle));
                list.levels[below.sum::<usize>()]
            }
        }
    }

    /// The largest but one, by size.
    pub fn second_largest(self) -> f64 {
        match self {
            Self::Whole(first, last) => {
                let largest = f64::from(first).abs().max(f64::from(last).abs());
                largest - 1.0
            }
            Self::Listed(list) => {
                let mut sizes: Vec<i16> = list.levels.iter().map(|&l| i16::from(l).abs()).collect();
                sizes.sort_unstable();
                sizes.dedup();
                let second = sizes.len().saturating_sub(2);
                f64::from(sizes[second])
            }
        }
    }

    /// The smallest and the largest.
    pub fn ends(self) -> (f64, f64) {
        let (first, last) = match self {
            Self::Whole(first, last) => (first, last),
            Self::Listed(list) => (list.levels[0], list.levels[list.levels.len() - 1]),
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
        self.levels.nearest((w - self.base) * inverse(self.scale))
    }
}

/// What numbers are multiplied by to get levels; on a scale of 0, all are 0.
pub(super) fn inverse(scale: f64) -> f64 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}
