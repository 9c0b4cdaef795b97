//! Encoders of ggml's simple types: 32 weights as d q + m, or d (q - middle).
//!
//! Block layouts after `ggml-common.h` and `ggml-quants.c` of llama.cpp: `d`
//! and `m` are f16; four-bit codes of elements i and i + 16 share byte i, the
//! first in its low half; a fifth bit of element i is bit i of a 32-bit word.

use half::f16;
use rayon::prelude::*;

use super::block::{Block, Coded};
use super::feedback::Levels;
use super::level_type::LevelType;

/// Elements of a block.
pub const WIDTH: usize = 32;

/// One of the simple types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Affine {
    /// Bits of a code: 4, 5 or 8.
    bits: u32,
    /// Whether a minimum is stored; otherwise the middle code stands for 0.
    has_min: bool,
}

/// A block: its grid, and a place on it for each weight, d q + m.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grid {
    d: f16,
    m: f16,
    /// q; what is stored is that plus [`Affine::bias`].
    codes: [i8; WIDTH],
}

impl Grid {
    /// Weight `i`, as ggml's dequantizer computes it.
    fn value(&self, i: usize) -> f32 {
        f32::from(self.codes[i]) * self.d.to_f32() + self.m.to_f32()
    }
}

/// Grids that are tried: how far the range is narrowed (or widened).
const SCALES: [f64; 12] = [
    1.02, 1.0, 0.97, 0.94, 0.91, 0.88, 0.85, 0.82, 0.78, 0.74, 0.69, 0.63,
];

impl Affine {
    /// The type with ggml's name `name`, if it is one of them.
    pub fn of(name: &str) -> Option<Self> {
        let (bits, has_min) = match name {
            "q4_0" => (4, false),
            "q4_1" => (4, true),
            "q5_0" => (5, false),
            "q5_1" => (5, true),
            "q8_0" => (8, false),
            _ => return None,
        };
        Some(Self { bits, has_min })
    }

    /// The codes in use; for types without minimum relative to the middle one.
    fn range(self) -> (i8, i8) {
        match (self.has_min, self.bits) {
            (true, bits) => (0, ((1u8 << bits) - 1).cast_signed()),
            // ggml's q8_0 leaves -128 out.
            (false, 8) => (-127, 127),
            (false, bits) => {
                let half = 1i8 << (bits - 1);
                (-half, half - 1)
            }
        }
    }

    /// What is added to a relative code to store it.
    fn bias(self) -> i8 {
        match (self.has_min, self.bits) {
            (true, _) | (false, 8) => 0,
            (false, bits) => 1 << (bits - 1),
        }
    }

    /// Encodes the same 32 columns of several rows. Scale and minimum are
    /// chosen by the cost that remains after each column's error has moved the
    /// columns after it; the grids of the `old` blocks are among those tried.
    pub fn encode(self, wanted: &[f64], block: &Block, old: Option<&[u8]>) -> Coded {
        let blocks: Vec<Grid> = wanted
            .par_chunks(WIDTH)
            .enumerate()
            .map(|(row, wanted)| {
                let old = old.map(|old| self.grid(&old[row * self.block_bytes()..]));
                self.best(wanted, block, old)
            })
            .collect();
        let mut bytes = Vec::with_capacity(blocks.len() * self.block_bytes());
        let mut values = Vec::with_capacity(wanted.len());
        for grid in &blocks {
            self.pack(grid, &mut bytes);
            values.extend((0..WIDTH).map(|i| grid.value(i)));
        }
        Coded { bytes, values }
    }

    /// Scale and minimum of a stored block.
    fn grid(&self, block: &[u8]) -> (f16, f16) {
        let at = |i: usize| f16::from_le_bytes([block[i], block[i + 1]]);
        (at(0), if self.has_min { at(2) } else { f16::ZERO })
    }

    fn ends(self) -> (f64, f64) {
        let (first, last) = self.range();
        (f64::from(first), f64::from(last))
    }

    fn best(self, row: &[f64], block: &Block, old: Option<(f16, f16)>) -> Grid {
        let mut best = None;
        let mut least = f64::INFINITY;
        for grids in self.grids(row, old).chunks(LANES) {
            let costs = self.costs(row, block, grids, least);
            for (&grid, cost) in grids.iter().zip(costs) {
                if cost < least {
                    (best, least) = (Some(grid), cost);
                }
            }
        }
        match best {
            Some((d, m)) => self.on_grid(row, block, d, m),
            // Only weights that are no numbers cost nothing less than infinity.
            None => Grid {
                d: f16::NAN,
                m: f16::ZERO,
                codes: [0; WIDTH],
            },
        }
    }

    /// The scales and minimums that are tried for `row`.
    fn grids(self, row: &[f64], old: Option<(f16, f16)>) -> Vec<(f16, f16)> {
        let low = row.iter().copied().fold(f64::INFINITY, f64::min);
        let high = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let (first, last) = self.ends();
        let mut grids = Vec::with_capacity(1 + SCALES.len() * SCALES.len());
        grids.extend(old.filter(|(d, m)| d.is_finite() && m.is_finite()));
        let mut consider = |d: f64, m: f64| grids.push((to_f16(d), to_f16(m)));
        if self.has_min {
            // Both ends move on their own.
            let span = high - low;
            for low_scale in SCALES {
                for high_scale in SCALES {
                    if (low_scale - high_scale).abs() > 0.2 {
                        continue;
                    }
                    let from = low + (1.0 - low_scale) * span / 2.0;
                    let to = high - (1.0 - high_scale) * span / 2.0;
                    consider((to - from) / last, from);
                }
            }
        } else {
            let largest = low.abs().max(high.abs());
            let signs: &[f64] = if self.bits == 8 { &[1.0] } else { &[1.0, -1.0] };
            for scale in SCALES {
                for sign in signs {
                    consider(sign * scale * largest / -first, 0.0);
                }
            }
        }
        grids
    }

    /// What each of up to [`LANES`] grids costs, as [`on_grid`](Self::on_grid) finds codes. When
    /// none can cost less than `limit` any more, the sums stay as they are.
    fn costs(self, row: &[f64], block: &Block, grids: &[(f16, f16)], limit: f64) -> [f64; LANES] {
        let (first, last) = self.ends();
        let mut scales = [Scale::default(); LANES];
        for (scale, &(d, m)) in scales.iter_mut().zip(grids) {
            *scale = Scale::of(d, m);
        }
        let step = scales.map(|scale| scale.step);
        let base = scales.map(|scale| scale.base);
        let inverse = scales.map(|scale| scale.inverse);
        let mut errors = [[0.0; LANES]; WIDTH];
        let mut costs = [0.0; LANES];
        for i in 0..WIDTH {
            let mut wanted = [row[i]; LANES];
            for (before, errors) in errors[..i].iter().enumerate() {
                let factor = block.row(before)[i - before];
                for lane in 0..LANES {
                    wanted[lane] -= errors[lane] * factor;
                }
            }
            let own = block.row(i)[0];
            for lane in 0..LANES {
                let wanted = wanted[lane];
                let code = ((wanted - base[lane]) * inverse[lane]).round();
                let code = code.clamp(first, last);
                let error = (wanted - (code * step[lane] + base[lane])) / own;
                costs[lane] += error * error;
                errors[i][lane] = error;
            }
            if i % CHECKED == CHECKED - 1 && !costs.iter().any(|&cost| cost < limit) {
                break;
            }
        }
        costs
    }

    /// The codes on one grid, column by column: each error moves the columns after it.
    fn on_grid(self, row: &[f64], block: &Block, d: f16, m: f16) -> Grid {
        let (first, last) = self.ends();
        let mut rest = [0f64; WIDTH];
        rest.copy_from_slice(row);
        let Scale {
            step,
            base,
            inverse,
        } = Scale::of(d, m);
        let mut found = Grid {
            d,
            m,
            codes: [0; WIDTH],
        };
        for i in 0..WIDTH {
            let code = ((rest[i] - base) * inverse).round().clamp(first, last);
            found.codes[i] = code as i8;
            let factors = block.row(i);
            let error = (rest[i] - (code * step + base)) / factors[0];
            for (later, factor) in rest[i + 1..].iter_mut().zip(&factors[1..]) {
                *later -= error * factor;
            }
        }
        found
    }
}

/// Grids that are held against each other at a time: the steps of one wait for each other.
const LANES: usize = 16;
/// Columns after which it is asked whether any of them can still be the best.
const CHECKED: usize = 4;

/// Scale and minimum as numbers, and what codes are found by.
#[derive(Debug, Clone, Copy, Default)]
struct Scale {
    step: f64,
    base: f64,
    inverse: f64,
}

impl Scale {
    fn of(d: f16, m: f16) -> Self {
        let (step, base) = (f64::from(d.to_f32()), f64::from(m.to_f32()));
        let inverse = if step == 0.0 { 0.0 } else { 1.0 / step };
        Self {
            step,
            base,
            inverse,
        }
    }
}

impl LevelType for Affine {
    type Block = Grid;

    fn width(&self) -> usize {
        WIDTH
    }

    fn part(&self) -> usize {
        WIDTH
    }

    fn block_bytes(&self) -> usize {
        let header = if self.has_min { 4 } else { 2 };
        header + WIDTH * self.bits as usize / 8
    }

    fn levels(&self) -> Levels {
        let (first, last) = self.range();
        Levels::Whole(first, last)
    }

    fn has_base(&self) -> bool {
        self.has_min
    }

    fn unpack(&self, block: &[u8]) -> Grid {
        let (d, m) = self.grid(block);
        let (header, stored) = block.split_at(if self.has_min { 4 } else { 2 });
        debug_assert!(header.len() + stored.len() >= self.block_bytes());
        let codes = if self.bits == 8 {
            std::array::from_fn(|i| stored[i].cast_signed())
        } else {
            let (high, low) = stored.split_at(if self.bits == 5 { 4 } else { 0 });
            let fifth = |i: usize| high.get(i / 8).map_or(0, |byte| byte >> (i % 8) & 1);
            std::array::from_fn(|i| {
                let byte = low[i % (WIDTH / 2)];
                let four = if i < WIDTH / 2 { byte & 15 } else { byte >> 4 };
                (four | fifth(i) << 4).cast_signed() - self.bias()
            })
        };
        Grid { d, m, codes }
    }

    fn pack(&self, block: &Grid, out: &mut Vec<u8>) {
        out.extend(block.d.to_le_bytes());
        if self.has_min {
            out.extend(block.m.to_le_bytes());
        }
        let codes = (block.codes).map(|code| (code + self.bias()).cast_unsigned());
        if self.bits == 8 {
            out.extend(codes);
            return;
        }
        if self.bits == 5 {
            let high = (0..WIDTH).fold(0u32, |bits, i| bits | u32::from(codes[i] >> 4) << i);
            out.extend(high.to_le_bytes());
        }
        let (low, high) = codes.split_at(WIDTH / 2);
        out.extend(low.iter().zip(high).map(|(a, b)| (a & 15) | (b & 15) << 4));
    }

    fn value(&self, block: &Grid, i: usize) -> f32 {
        block.value(i)
    }

    fn level_mut<'b>(&self, block: &'b mut Grid, _: usize, i: usize) -> &'b mut i8 {
        &mut block.codes[i]
    }

    fn scale(&self, block: &Grid, _: usize) -> f64 {
        f64::from(block.d.to_f32())
    }

    fn with_scale(&self, block: &Grid, _: usize, scale: f64) -> Option<Grid> {
        let d = other_f16(block.d, scale)?;
        Some(Grid { d, ..*block })
    }

    fn base(&self, block: &Grid, _: usize) -> f64 {
        f64::from(block.m.to_f32())
    }

    fn with_base(&self, block: &Grid, _: usize, base: f64) -> Option<Grid> {
        let m = other_f16(block.m, base)?;
        Some(Grid { m, ..*block })
    }
}

/// The number closest to `value` if it is another than `has`.
fn other_f16(has: f16, value: f64) -> Option<f16> {
    let other = to_f16(value);
    (other.is_finite() && other != has).then_some(other)
}

/// The number closest to `value`, of those that are finite.
pub(super) fn to_f16(value: f64) -> f16 {
    f16::from_f64(value.clamp(f64::from(f16::MIN), f64::from(f16::MAX)))
}

#[cfg(test)]
mod tests {
    use faer::Mat;

    use super::super::tests::numbers;
    use super::*;

    /// Each lane costs what the codes of its grid cost by themselves, and the best is taken.
    #[test]
    fn grids_side_by_side_cost_what_each_costs_alone() {
        let random = numbers(WIDTH * WIDTH, 7);
        let upper = Mat::from_fn(WIDTH, WIDTH, |i, j| match i.cmp(&j) {
            std::cmp::Ordering::Less => 0.2 * random[i * WIDTH + j],
            std::cmp::Ordering::Equal => 1.5 + 0.5 * random[i * WIDTH + j],
            std::cmp::Ordering::Greater => 0.0,
        });
        let block = Block::new(upper.as_ref());
        for (seed, name) in (8..).zip(["q4_0", "q4_1", "q5_0", "q5_1", "q8_0"]) {
            let of = Affine::of(name).unwrap();
            let row = numbers(WIDTH, seed);
            let old = (f16::from_f32(0.05), f16::from_f32(-0.4));
            let grids = of.grids(&row, Some(old));
            let alone = |&(d, m): &(f16, f16)| {
                let grid = of.on_grid(&row, &block, d, m);
                let values: Vec<f32> = (0..WIDTH).map(|i| grid.value(i)).collect();
                block.cost(&row, &values)
            };
            let mut least = f64::INFINITY;
            for grids in grids.chunks(LANES) {
                let costs = of.costs(&row, &block, grids, f64::INFINITY);
                for (grid, cost) in grids.iter().zip(costs) {
                    let alone = alone(grid);
                    assert!(
                        (cost - alone).abs() < 1e-5 * alone,
                        "{name}: {cost}, {alone}"
                    );
                    least = least.min(alone);
                }
            }
            let best = of.best(&row, &block, Some(old));
            let found = alone(&(best.d, best.m));
            assert!(found <= least * (1.0 + 1e-5), "{name}: {found}, {least}");
        }
    }
}
