//! x W^T + b.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::host::{self, ROWS, made, matrix, matrix_mut, product};
use super::weight::Weight;

/// `x` (tokens x inputs) times the matrix `weight` (outputs x inputs), plus `bias`.
pub(crate) struct Linear {
    pub weight: Weight,
    pub bias: Option<Weight>,
}

impl CustomOp1 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (outputs, inputs) = (self.weight.rows, self.weight.columns());
        let tokens = layout.shape().elem_count() / inputs;
        let x = matrix(host::slice(x, layout)?, tokens, inputs);
        let w = matrix(self.weight.values(), outputs, inputs);
        let mut out = vec![0.0; tokens * outputs];
        product(
            matrix_mut(&mut out, tokens, outputs),
            false,
            x,
            w.transpose(),
            1.0,
        );
        if let Some(bias) = &self.bias {
            out.par_chunks_mut(ROWS * outputs).for_each(|rows| {
                for row in rows.chunks_exact_mut(outputs) {
                    host::add(row, bias.values());
                }
            });
        }
        made(out, (tokens, outputs))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let (outputs, inputs) = (self.weight.rows, self.weight.columns());
        let tokens = x.elem_count() / inputs;
        let mut dx = vec![0.0; tokens * inputs];
        host::with(g, |g| {
            let matrix_g = matrix(g, tokens, outputs);
            let w = matrix(self.weight.values(), outputs, inputs);
            product(matrix_mut(&mut dx, tokens, inputs), false, matrix_g, w, 1.0);
            if let Some(bias) = &self.bias {
                bias.add_gradient(|sum| host::add_rows(sum, g));
            }
            host::with(x, |x| {
                let x = matrix(x, tokens, inputs);
                self.weight.add_gradient(|sum| {
                    let sum = matrix_mut(sum, outputs, inputs);
                    product(sum, true, matrix_g.transpose(), x, 1.0);
                });
                Ok(())
            })
        })?;
        Tensor::from_vec(dx, x.dims(), x.device()).map(Some)
    }
}
