//! What layers are made of: on the CPU our own operations with a forward and a
//! backward pass in one go each, on other devices chains of candle's.
//!
//! Tensors are f32. Activations are tokens x width; tokens are whole windows, one
//! after the other.

mod activation;
mod attention;
mod host;
mod linear;
mod math;
mod norm;
mod plain;
mod rope;
#[cfg(test)]
mod tests;
mod weight;

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};

pub use activation::Activation;
pub(crate) use attention::Attention;
pub(crate) use host::{Numbers, add, matrix, matrix_mut, product, squares, with, with_factor};
pub(crate) use linear::Linear;
pub(crate) use math::{exp, largest, sum, tanh};
pub(crate) use norm::Norm;
pub use norm::NormKind;
pub use rope::RopePairs;
pub(crate) use rope::Rotation;
pub(crate) use weight::{Sum, Weight, lock};

/// Whose operations are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kernels {
    /// Ours, on the CPU only.
    Own,
    /// candle's.
    Candle,
}

impl Kernels {
    /// `x W^T + b`: tokens x inputs to tokens x outputs.
    pub fn linear(self, x: &Tensor, op: Linear) -> Result<Tensor> {
        match self {
            Self::Own => x.apply_op1(op),
            Self::Candle => plain::linear(x, &op),
        }
    }

    /// Normalises runs as long as the norm's weight.
    pub fn norm(self, x: &Tensor, op: Norm) -> Result<Tensor> {
        match self {
            Self::Own => x.apply_op1(op),
            Self::Candle => plain::norm(x, &op),
        }
    }

    /// Rotates the heads of queries or keys by their positions.
    pub fn rope(self, x: &Tensor, rotation: &Arc<Rotation>) -> Result<Tensor> {
        match self {
            Self::Own => x.apply_op1(rope::Rope(Arc::clone(rotation))),
            Self::Candle => plain::rope(x, rotation),
        }
    }

    /// Causal attention.
    pub fn attention(self, q: &Tensor, k: &Tensor, v: &Tensor, op: Attention) -> Result<Tensor> {
        match self {
            Self::Own => q.apply_op3(k, v, op),
            Self::Candle => plain::attention(q, k, v, &op),
        }
    }

    /// The activation of `gate`, times `up`.
    pub fn gated(self, gate: &Tensor, up: &Tensor, function: Activation) -> Result<Tensor> {
        match self {
            Self::Own => gate.apply_op2(up, activation::Gated(function)),
            Self::Candle => plain::activation(gate, function)? * up,
        }
    }

    /// The activation of each number.
    pub fn activation(self, x: &Tensor, function: Activation) -> Result<Tensor> {
        match self {
            Self::Own => x.apply_op1(activation::Plain(function)),
            Self::Candle => plain::activation(x, function),
        }
    }

    /// `x + y`. candle's own has threads of its own, which wait for each other in loops:
    /// where cores are shared that takes longer than the sum.
    pub fn add(self, x: &Tensor, y: &Tensor) -> Result<Tensor> {
        match self {
            Self::Own => x.apply_op2(y, Sum2),
            Self::Candle => x + y,
        }
    }

    /// A number whose gradient with regard to `y` is `g`: what `backward` starts at
    /// to go back from `y`.
    pub fn start(self, y: &Tensor, g: &Tensor) -> Result<Tensor> {
        match self {
            Self::Own => y.apply_op1(Start(g.clone())),
            Self::Candle => (y * g)?.sum_all(),
        }
    }
}

struct Sum2;

impl CustomOp2 for Sum2 {
    fn name(&self) -> &'static str {
        "add"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        y: &CpuStorage,
        ly: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let mut out = host::slice(x, lx)?.to_vec();
        host::add_all(&mut out, host::slice(y, ly)?);
        host::made(out, lx.shape().clone())
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((Some(g.clone()), Some(g.clone())))
    }
}

struct Start(Tensor);

impl CustomOp1 for Start {
    fn name(&self) -> &'static str {
        "start"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        host::made(vec![0.0], ())
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(self.0.clone()))
    }
}
