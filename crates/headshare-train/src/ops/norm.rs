//! RMSNorm and LayerNorm of rows.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::host::{self, ROWS, made};
use super::math::sum;
use super::weight::Weight;

/// Which numbers a norm makes alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// The root of the mean square is 1 (Zhang and Sennrich 2019).
    Rms,
    /// The mean is 0 and the variance 1 (Ba et al. 2016).
    Layer,
}

/// Normalises rows as long as `weight`, then scales and shifts them.
pub(crate) struct Norm {
    pub kind: NormKind,
    pub epsilon: f32,
    pub weight: Weight,
    pub bias: Option<Weight>,
}

impl Norm {
    /// The mean that is taken off a row, and the factor.
    fn moments(&self, row: &[f32]) -> (f32, f32) {
        let n = row.len() as f32;
        let mean = match self.kind {
            NormKind::Rms => 0.0,
            NormKind::Layer => sum(row, |v| v) / n,
        };
        let variance = sum(row, |v| (v - mean) * (v - mean)) / n;
        (mean, 1.0 / (variance + self.epsilon).sqrt())
    }
}

impl CustomOp1 for Norm {
    fn name(&self) -> &'static str {
        "norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = host::slice(x, layout)?;
        let weight = self.weight.values();
        let width = weight.len();
        let mut out = vec![0.0; x.len()];
        (out.par_chunks_mut(ROWS * width)
            .zip(x.par_chunks(ROWS * width)))
        .for_each(|(out, x)| {
            for (out, x) in out.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                let (mean, factor) = self.moments(x);
                for ((out, x), w) in out.iter_mut().zip(x).zip(weight) {
                    *out = (x - mean) * factor * w;
                }
                if let Some(bias) = &self.bias {
                    host::add(out, bias.values());
                }
            }
        });
        made(out, layout.shape().clone())
    }

    /// With y = (x - mean) f and h = g w: dx = f (h - mean(h) - y mean(h y)), where
    /// mean(h) is left out for RMSNorm; dw = sum of g y, db = sum of g.
    fn bwd(&self, x: &Tensor, _: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let weight = self.weight.values();
        let width = weight.len();
        let mut dx = vec![0.0; x.elem_count()];
        host::with(x, |x| {
            host::with(g, |g| {
                let chunk = ROWS * width;
                let parts: Vec<Vec<f32>> = (dx.par_chunks_mut(chunk))
                    .zip(x.par_chunks(chunk).zip(g.par_chunks(chunk)))
                    .map(|(dx, (x, g))| {
                        let mut dw = vec![0.0; width];
                        let rows = dx.chunks_exact_mut(width);
                        let given = x.chunks_exact(width).zip(g.chunks_exact(width));
                        for (dx, (x, g)) in rows.zip(given) {
                            self.row_backward(dx, x, g, &mut dw);
                        }
                        dw
                    })
                    .collect();
                self.weight.add_gradient(|sum| {
                    for part in &parts {
                        host::add(sum, part);
                    }
                });
                if let Some(bias) = &self.bias {
                    bias.add_gradient(|sum| host::add_rows(sum, g));
                }
                Ok(())
            })
        })?;
        Tensor::from_vec(dx, x.dims(), x.device()).map(Some)
    }
}

impl Norm {
    fn row_backward(&self, dx: &mut [f32], x: &[f32], g: &[f32], dw: &mut [f32]) {
        let weight = self.weight.values();
        let n = x.len() as f32;
        let (mean, factor) = self.moments(x);
        let each = || x.iter().zip(g).zip(weight);
        for (((x, g), w), dx) in each().zip(dx.iter_mut()) {
            *dx = g * w * (x - mean);
        }
        let along = sum(dx, |v| v) * factor / n;
        for ((x, g), dw) in x.iter().zip(g).zip(dw.iter_mut()) {
            *dw += g * (x - mean) * factor;
        }
        for (((_, g), w), dx) in each().zip(dx.iter_mut()) {
            *dx = g * w;
        }
        let level = match self.kind {
            NormKind::Rms => 0.0,
            NormKind::Layer => sum(dx, |v| v) / n,
        };
        for (x, dx) in x.iter().zip(dx) {
            *dx = factor * (*dx - level - (x - mean) * factor * along);
        }
    }
}
