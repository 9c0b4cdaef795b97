//! Causal attention with grouped heads, without a matrix of all scores.
//!
//! A task is one head of one window; it takes a block of queries at a time, so
//! that scores of `BLOCK` queries are there at once. The backward pass computes
//! them anew, as FlashAttention does (Dao et al. 2022).

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use faer::{MatMut, MatRef};
use rayon::prelude::*;

use super::host::{self, made, matrix, matrix_mut, product_here};
use super::math::{dot, exp, largest, sum, tanh};

/// Queries whose scores are there at once.
const BLOCK: usize = 64;

/// Attention of each head over its own window: q (tokens x heads * key), k (tokens
/// x kv_heads * key), v (tokens x kv_heads * value) to tokens x heads * value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Attention {
    /// Tokens of a window; the tokens are whole windows.
    pub window: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads, of which each serves as many query heads.
    pub kv_heads: usize,
    /// Numbers of a query and of a key.
    pub key: usize,
    /// Numbers of a value.
    pub value: usize,
    /// What scores are multiplied by.
    pub scale: f32,
    /// `c tanh(score / c)` in the place of a score.
    pub softcap: Option<f32>,
    /// A query sees itself and this many tokens less one before it.
    pub sliding: Option<usize>,
}

/// One head of one window.
#[derive(Clone, Copy)]
struct Inputs<'a> {
    q: MatRef<'a, f32>,
    k: MatRef<'a, f32>,
    v: MatRef<'a, f32>,
}

impl Attention {
    /// The first key that query `i` sees.
    fn first(&self, i: usize) -> usize {
        self.sliding.map_or(0, |n| (i + 1).saturating_sub(n))
    }

    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    fn inputs<'a>(&self, q: &'a [f32], k: &'a [f32], v: &'a [f32], task: usize) -> Inputs<'a> {
        let (window, head) = (task / self.heads, task % self.heads);
        let kv = head / self.group();
        let part = |values: &'a [f32], heads: usize, head: usize, size: usize| {
            let rows = values.len() / (heads * size);
            matrix(values, rows, heads * size).submatrix(
                window * self.window,
                head * size,
                self.window,
                size,
            )
        };
        Inputs {
            q: part(q, self.heads, head, self.key),
            k: part(k, self.kv_heads, kv, self.key),
            v: part(v, self.kv_heads, kv, self.value),
        }
    }

    /// One block of `values` for each task, in the tasks' order.
    fn split<'a>(&self, values: &'a mut [f32], size: usize) -> Vec<MatMut<'a, f32>> {
        let width = self.heads * size;
        let mut blocks = Vec::new();
        for window in values.chunks_exact_mut(self.window * width) {
            let mut rest = matrix_mut(window, self.window, width);
            for _ in 0..self.heads {
                let (head, others) = rest.split_at_col_mut(size);
                blocks.push(head);
                rest = others;
            }
        }
        blocks
    }

    /// Writes the weights of queries `from..to` over keys `low..to` to `weights`,
    /// and to `capped`, where scores are capped, what the cap's slope is.
    fn weigh(
        &self,
        inputs: Inputs<'_>,
        (from, to, low): (usize, usize, usize),
        weights: &mut [f32],
        slopes: Option<&mut [f32]>,
    ) {
        let (rows, keys) = (to - from, to - low);
        let q = inputs.q.subrows(from, rows);
        let k = inputs.k.subrows(low, keys);
        let out = matrix_mut(weights, rows, keys);
        product_here(out, false, q, k.transpose(), self.scale);
        if let Some(cap) = self.softcap {
            for score in weights.iter_mut() {
                *score = cap * tanh(*score / cap);
            }
            if let Some(slopes) = slopes {
                for (slope, score) in slopes.iter_mut().zip(weights.iter()) {
                    *slope = 1.0 - (score / cap) * (score / cap);
                }
            }
        }
        for (i, row) in (from..).zip(weights.chunks_exact_mut(keys)) {
            let seen = self.first(i) - low..i + 1 - low;
            let after = seen.end;
            row[..seen.start].fill(0.0);
            row[after..].fill(0.0);
            softmax(&mut row[seen]);
        }
    }

    /// Blocks of queries: first, end, first key.
    fn blocks(&self) -> impl Iterator<Item = (usize, usize, usize)> + '_ {
        (0..self.window).step_by(BLOCK).map(|from| {
            let to = (from + BLOCK).min(self.window);
            (from, to, self.first(from))
        })
    }

    fn forward(&self, inputs: Inputs<'_>, mut out: MatMut<'_, f32>) {
        let mut weights = vec![0.0; BLOCK * self.window];
        for (from, to, low) in self.blocks() {
            let (rows, keys) = (to - from, to - low);
            let weights = &mut weights[..rows * keys];
            self.weigh(inputs, (from, to, low), weights, None);
            let v = inputs.v.subrows(low, keys);
            let out = out.as_mut().subrows_mut(from, rows);
            product_here(out, false, matrix(weights, rows, keys), v, 1.0);
        }
    }

    /// Writes the gradient of q to `dq` and gives those of k and v: with P the
    /// weights and dP = dO V^T, dS = P (dP - rows' sums of P dP).
    fn backward(
        &self,
        inputs: Inputs<'_>,
        g: MatRef<'_, f32>,
        mut dq: MatMut<'_, f32>,
    ) -> (Vec<f32>, Vec<f32>) {
        let (window, key, value) = (self.window, self.key, self.value);
        let (mut dk, mut dv) = (vec![0.0; window * key], vec![0.0; window * value]);
        let mut weights = vec![0.0; BLOCK * window];
        let mut changes = vec![0.0; BLOCK * window];
        let mut slopes = vec![
            0.0;
            if self.softcap.is_some() {
                BLOCK * window
            } else {
                0
            }
        ];
        for (from, to, low) in self.blocks() {
            let (rows, keys) = (to - from, to - low);
            let weights = &mut weights[..rows * keys];
            let changes = &mut changes[..rows * keys];
            let slopes = slopes.get_mut(..rows * keys);
            let capped = slopes.map(|slopes| {
                self.weigh(inputs, (from, to, low), weights, Some(slopes));
                &*slopes
            });
            if capped.is_none() {
                self.weigh(inputs, (from, to, low), weights, None);
            }
            let g = g.subrows(from, rows);
            let v = inputs.v.subrows(low, keys);
            let p = matrix(weights, rows, keys).transpose();
            product_here(
                matrix_mut(&mut dv[low * value..to * value], keys, value),
                true,
                p,
                g,
                1.0,
            );
            product_here(
                matrix_mut(changes, rows, keys),
                false,
                g,
                v.transpose(),
                1.0,
            );
            let both = weights
                .chunks_exact(keys)
                .zip(changes.chunks_exact_mut(keys));
            for (p, d) in both {
                let level = dot(p, d);
                for (p, d) in p.iter().zip(d) {
                    *d = p * (*d - level);
                }
            }
            if let Some(slopes) = capped {
                for (d, slope) in changes.iter_mut().zip(slopes) {
                    *d *= slope;
                }
            }
            let ds = matrix(changes, rows, keys);
            let k = inputs.k.subrows(low, keys);
            let q = inputs.q.subrows(from, rows);
            product_here(
                dq.as_mut().subrows_mut(from, rows),
                false,
                ds,
                k,
                self.scale,
            );
            let dk = matrix_mut(&mut dk[low * key..to * key], keys, key);
            product_here(dk, true, ds.transpose(), q, self.scale);
        }
        (dk, dv)
    }
}

/// Makes scores weights that add up to 1.
fn softmax(row: &mut [f32]) {
    let top = largest(row);
    for score in row.iter_mut() {
        *score = exp(*score - top);
    }
    let factor = 1.0 / sum(row, |v| v);
    for weight in row.iter_mut() {
        *weight *= factor;
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        lq: &Layout,
        k: &CpuStorage,
        lk: &Layout,
        v: &CpuStorage,
        lv: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (q, k, v) = (
            host::slice(q, lq)?,
            host::slice(k, lk)?,
            host::slice(v, lv)?,
        );
        let tokens = q.len() / (self.heads * self.key);
        let width = self.heads * self.value;
        let mut out = vec![0.0; tokens * width];
        let blocks = self.split(&mut out, self.value);
        (blocks.into_par_iter().enumerate())
            .for_each(|(task, out)| self.forward(self.inputs(q, k, v, task), out));
        made(out, (tokens, width))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let mut dq = vec![0.0; q.elem_count()];
        let (mut dk, mut dv) = (vec![0.0; k.elem_count()], vec![0.0; v.elem_count()]);
        host::with(q, |q| {
            host::with(k, |k| {
                host::with(v, |v| {
                    host::with(g, |g| {
                        self.all_backward((q, k, v, g), (&mut dq, &mut dk, &mut dv));
                        Ok(())
                    })
                })
            })
        })?;
        let tensor = |values, of: &Tensor| Tensor::from_vec(values, of.dims(), of.device());
        Ok((
            Some(tensor(dq, q)?),
            Some(tensor(dk, k)?),
            Some(tensor(dv, v)?),
        ))
    }
}

impl Attention {
    fn all_backward(
        &self,
        (q, k, v, g): (&[f32], &[f32], &[f32], &[f32]),
        (dq, dk, dv): (&mut [f32], &mut [f32], &mut [f32]),
    ) {
        let width = self.heads * self.value;
        let g = matrix(g, g.len() / width, width);
        let blocks = self.split(dq, self.key);
        let parts: Vec<(Vec<f32>, Vec<f32>)> = (blocks.into_par_iter().enumerate())
            .map(|(task, dq)| {
                let (window, head) = (task / self.heads, task % self.heads);
                let g = g.submatrix(
                    window * self.window,
                    head * self.value,
                    self.window,
                    self.value,
                );
                self.backward(self.inputs(q, k, v, task), g, dq)
            })
            .collect();
        // Heads of a group are added in order.
        for (task, (head_dk, head_dv)) in parts.iter().enumerate() {
            let (window, head) = (task / self.heads, task % self.heads);
            let kv = head / self.group();
            for (out, part, size) in [
                (&mut *dk, head_dk, self.key),
                (&mut *dv, head_dv, self.value),
            ] {
                let row = self.kv_heads * size;
                let out = &mut out[window * self.window * row..(window + 1) * self.window * row];
                for (out, part) in out.chunks_exact_mut(row).zip(part.chunks_exact(size)) {
                    host::add(&mut out[kv * size..(kv + 1) * size], part);
                }
            }
        }
    }
}
