//! x W^T + b.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::host::{self, Factor, ROWS, made};
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
        host::slice(x, layout)?;
        let x = Factor::new(x, layout, tokens, inputs);
        let mut out = x.times(&self.weight.factor().transposed()?)?;
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
        let dx = host::with_factor(g, (tokens, outputs), |g| {
            if self.weight.sum.is_some() {
                let dw =
                    host::with_factor(x, (tokens, inputs), |x| g.clone().transposed()?.times(&x))?;
                self.weight.add_gradient(|sum| host::add_all(sum, &dw));
            }
            g.times(&self.weight.factor())
        })?;
        if let Some(bias) = &self.bias {
            host::with(g, |g| {
                bias.add_gradient(|sum| host::add_rows(sum, g));
                Ok(())
            })?;
        }
        Tensor::from_vec(dx, x.dims(), x.device()).map(Some)
    }
}
