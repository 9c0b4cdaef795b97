//! Encoders of ggml's simple types: 32 weights as d q + m, or d (q - middle).
//!
//! Block layouts after `ggml-common.h` and `ggml-quants.c` of llama.cpp: `d`
//! and `m` are f16; four-bit codes of elements i and i + 16 share byte i, the
//! first in its low half; a fifth bit of element i is bit i of a 32-bit word.

use half::f16;
use rayon::prelude::*;

use super::block::{Block, Coded};
use super::feedback::{Levels, Span};
use super::ideal::{Base, Search};
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

    fn best(self, row: &[f64], block: &Block, old: Option<(f16, f16)>) -> Grid {
        let old = old.filter(|(d, m)| d.is_finite() && m.is_finite());
        let known: Vec<(f64, f64)> = old.iter().map(|(d, m)| (d.to_f64(), m.to_f64())).collect();
        let search = Search {
            levels: self.levels(),
            base: if self.has_min { Base::Any } else { Base::None },
            signs: self.bits < 8,
            stored: &|number| to_f16(number).to_f64(),
        };
        match search.best(Span::new(block, 0, WIDTH), row, &known) {
            Some(found) => Grid {
                d: f16::from_f64(found.scale),
                m: f16::from_f64(found.base),
                codes: std::array::from_fn(|i| found.levels[i]),
            },
            // Only weights that are no numbers cost nothing less than infinity.
            None => Grid {
                d: f16::NAN,
                m: f16::ZERO,
                codes: [0; WIDTH],
            },
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
