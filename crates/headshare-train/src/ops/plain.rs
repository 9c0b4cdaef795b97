//! The same operations in candle's own differentiable ones, for other devices.
//!
//! candle-nn's fused `rms_norm`, `layer_norm`, `softmax_last_dim` and `rope` have
//! no backward pass (0.11): with them gradients would vanish without a word.

use candle_core::{D, Result, Tensor};

use super::activation::Activation;
use super::attention::Attention;
use super::linear::Linear;
use super::norm::{Norm, NormKind};
use super::rope::{RopePairs, Rotation};
use super::weight::Weight;

/// The weight as a tensor of the device.
fn tensor(weight: &Weight) -> Result<&Tensor> {
    let missing = || candle_core::Error::Msg("a weight that is not on the device".into());
    weight.tensor.as_ref().ok_or_else(missing)
}

pub(crate) fn linear(x: &Tensor, op: &Linear) -> Result<Tensor> {
    let y = x.matmul(&tensor(&op.weight)?.t()?)?;
    match &op.bias {
        Some(bias) => y.broadcast_add(tensor(bias)?),
        None => Ok(y),
    }
}

pub(crate) fn norm(x: &Tensor, op: &Norm) -> Result<Tensor> {
    let shape = x.dims().to_vec();
    let x = x.reshape(((), op.weight.range.len()))?;
    let x = match op.kind {
        NormKind::Rms => x,
        NormKind::Layer => x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?,
    };
    let variance = x.sqr()?.mean_keepdim(D::Minus1)?;
    let root = (variance + f64::from(op.epsilon))?.sqrt()?;
    let y = x.broadcast_div(&root)?.broadcast_mul(tensor(&op.weight)?)?;
    let y = match &op.bias {
        Some(bias) => y.broadcast_add(tensor(bias)?)?,
        None => y,
    };
    y.reshape(shape)
}

pub(crate) fn rope(x: &Tensor, rotation: &Rotation) -> Result<Tensor> {
    let (tokens, width) = x.dims2()?;
    let (heads, half) = (width / rotation.head, rotation.rotated / 2);
    let windows = tokens / rotation.positions;
    let turns = |values: &[f32]| {
        let one = Tensor::from_slice(values, (1, rotation.positions, 1, half), x.device())?;
        one.broadcast_as((windows, rotation.positions, heads, half))?
            .reshape((tokens, heads, half))
    };
    let (cos, sin) = (turns(&rotation.cos)?, turns(&rotation.sin)?);
    let x = x.reshape((tokens, heads, rotation.head))?;
    let turned = x.narrow(2, 0, rotation.rotated)?;
    let (a, b) = match rotation.pairs {
        RopePairs::Halves => (turned.narrow(2, 0, half)?, turned.narrow(2, half, half)?),
        RopePairs::Adjacent => {
            let pairs = turned.reshape((tokens, heads, half, 2))?;
            let of = |i| pairs.narrow(3, i, 1)?.squeeze(3);
            (of(0)?, of(1)?)
        }
    };
    let low = ((&a * &cos)? - (&b * &sin)?)?;
    let high = ((&a * &sin)? + (&b * &cos)?)?;
    let turned = match rotation.pairs {
        RopePairs::Halves => Tensor::cat(&[&low, &high], 2)?,
        RopePairs::Adjacent => {
            Tensor::stack(&[&low, &high], 3)?.reshape((tokens, heads, rotation.rotated))?
        }
    };
    let rest = rotation.head - rotation.rotated;
    let all = match rest {
        0 => turned,
        _ => Tensor::cat(&[&turned, &x.narrow(2, rotation.rotated, rest)?], 2)?,
    };
    all.reshape((tokens, width))
}

pub(crate) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, op: &Attention) -> Result<Tensor> {
    let windows = q.dim(0)? / op.window;
    let group = op.heads / op.kv_heads;
    let split = |x: &Tensor, heads: usize, size: usize| {
        x.reshape((windows, op.window, heads, size))?
            .transpose(1, 2)?
            .contiguous()
    };
    let repeat = |x: Tensor, size: usize| {
        x.unsqueeze(2)?
            .broadcast_as((windows, op.kv_heads, group, op.window, size))?
            .reshape((windows, op.heads, op.window, size))
    };
    let q = split(q, op.heads, op.key)?;
    let k = repeat(split(k, op.kv_heads, op.key)?, op.key)?;
    let v = repeat(split(v, op.kv_heads, op.value)?, op.value)?;
    let scores = (q.matmul(&k.t()?)? * f64::from(op.scale))?;
    let scores = match op.softcap {
        Some(cap) => ((scores / f64::from(cap))?.tanh()? * f64::from(cap))?,
        None => scores,
    };
    let hidden = |i: usize, j: usize| j > i || op.sliding.is_some_and(|n| j + n <= i);
    let mask: Vec<f32> = (0..op.window)
        .flat_map(|i| (0..op.window).map(move |j| (i, j)))
        .map(|(i, j)| if hidden(i, j) { -1e30 } else { 0.0 })
        .collect();
    let mask = Tensor::from_vec(mask, (op.window, op.window), q.device())?;
    let scores = scores.broadcast_add(&mask)?;
    let top = scores.max_keepdim(D::Minus1)?.detach();
    let weights = scores.broadcast_sub(&top)?.exp()?;
    let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
    weights
        .matmul(&v)?
        .transpose(1, 2)?
        .contiguous()?
        .reshape((windows * op.window, op.heads * op.value))
}

pub(crate) fn activation(x: &Tensor, activation: Activation) -> Result<Tensor> {
    match activation {
        // candle's own silu and gelu have a backward pass; a test sees to it.
        Activation::Silu => x.silu(),
        Activation::Gelu | Activation::GeluOfHalves => x.gelu(),
    }
}
