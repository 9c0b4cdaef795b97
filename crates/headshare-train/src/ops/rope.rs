//! Rotary positions (Su et al. 2021), in both orders of pairs that llama.cpp knows.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::host::{self, ROWS, made};

/// Which numbers of a head are a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopePairs {
    /// Neighbours: llama.cpp's NORM.
    Adjacent,
    /// Those half the rotated width apart: llama.cpp's NEOX.
    Halves,
}

/// Cosines and sines for each position and pair.
#[derive(Debug)]
pub(crate) struct Rotation {
    pub pairs: RopePairs,
    /// Numbers of a head.
    pub head: usize,
    /// Of these, how many are rotated; a multiple of 2.
    pub rotated: usize,
    /// Positions.
    pub positions: usize,
    /// positions x rotated / 2.
    pub cos: Vec<f32>,
    /// As `cos`.
    pub sin: Vec<f32>,
}

impl Rotation {
    /// For positions 0 to `positions`. `factors`, one a pair, divide the angles.
    ///
    /// Angles are multiplied up in f32 as ggml's `ggml_rope_cache_init` does: far
    /// from the start they differ from the exact ones.
    pub fn new(
        pairs: RopePairs,
        head: usize,
        rotated: usize,
        positions: usize,
        (base, scale): (f32, f32),
        factors: Option<&[f32]>,
    ) -> Self {
        let step = base.powf(-2.0 / rotated as f32);
        let mut angles = Vec::with_capacity(positions * rotated / 2);
        for position in 0..positions {
            let mut angle = position as f32;
            for pair in 0..rotated / 2 {
                let factor = factors.map_or(1.0, |factors| factors[pair]);
                angles.push(angle / factor * scale);
                angle *= step;
            }
        }
        Self {
            pairs,
            head,
            rotated,
            positions,
            cos: angles.iter().map(|a| a.cos()).collect(),
            sin: angles.iter().map(|a| a.sin()).collect(),
        }
    }

    /// Rotates the heads of consecutive tokens, the first of which is `token`;
    /// backwards where `sign` is -1.
    fn rotate(&self, values: &mut [f32], width: usize, token: usize, sign: f32) {
        let half = self.rotated / 2;
        for (i, row) in values.chunks_exact_mut(width).enumerate() {
            let at = (token + i) % self.positions * half;
            let (cos, sin) = (&self.cos[at..at + half], &self.sin[at..at + half]);
            for head in row.chunks_exact_mut(self.head) {
                match self.pairs {
                    RopePairs::Adjacent => {
                        for (pair, (c, s)) in head.chunks_exact_mut(2).zip(cos.iter().zip(sin)) {
                            let (a, b, s) = (pair[0], pair[1], s * sign);
                            pair[0] = a * c - b * s;
                            pair[1] = a * s + b * c;
                        }
                    }
                    RopePairs::Halves => {
                        let (low, high) = head[..self.rotated].split_at_mut(half);
                        let turns = cos.iter().zip(sin);
                        for ((a, b), (c, s)) in low.iter_mut().zip(high).zip(turns) {
                            let s = s * sign;
                            (*a, *b) = (*a * c - *b * s, *a * s + *b * c);
                        }
                    }
                }
            }
        }
    }

    fn rotated(&self, x: &[f32], width: usize, sign: f32) -> Vec<f32> {
        let mut out = x.to_vec();
        (out.par_chunks_mut(ROWS * width).enumerate())
            .for_each(|(i, rows)| self.rotate(rows, width, i * ROWS, sign));
        out
    }
}

/// Rotates `x` (tokens x heads * head size); token i is at position i modulo the
/// number of positions.
pub(crate) struct Rope(pub Arc<Rotation>);

impl CustomOp1 for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let width = layout.dims().last().copied().unwrap_or(1);
        let out = self.0.rotated(host::slice(x, layout)?, width, 1.0);
        made(out, layout.shape().clone())
    }

    /// A rotation's transpose is the rotation backwards.
    fn bwd(&self, x: &Tensor, _: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let width = x.dims().last().copied().unwrap_or(1);
        let dx = host::with(g, |g| Ok(self.0.rotated(g, width, -1.0)))?;
        Tensor::from_vec(dx, x.dims(), x.device()).map(Some)
    }
}
