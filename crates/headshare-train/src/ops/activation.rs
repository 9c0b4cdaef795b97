//! The feed-forward layer's functions, alone and with a gate.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};
use half::f16;
use rayon::prelude::*;

use super::host::{self, made};
use super::math::{sigmoid, tanh};

/// A function of one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x sigmoid(x).
    Silu,
    /// GELU by its tanh approximation (Hendrycks and Gimpel 2016).
    Gelu,
    /// The same as ggml's CPU backend has it: from a table of half floats for halves
    /// (`ggml_vec_gelu_f32`). Its slope is GELU's.
    GeluOfHalves,
}

/// sqrt(2 / pi).
const GELU_FACTOR: f32 = 0.797_884_6;
const GELU_CUBE: f32 = 0.044_715;

impl Activation {
    #[inline(always)]
    fn value(self, x: f32) -> f32 {
        match self {
            Self::Silu => x * sigmoid(x),
            Self::Gelu => 0.5 * x * (1.0 + tanh(GELU_FACTOR * x * (1.0 + GELU_CUBE * x * x))),
            Self::GeluOfHalves if x <= -10.0 => 0.0,
            Self::GeluOfHalves if x >= 10.0 => x,
            Self::GeluOfHalves => halved(Self::Gelu.value(halved(x))),
        }
    }

    /// The value and the slope.
    #[inline(always)]
    fn both(self, x: f32) -> (f32, f32) {
        match self {
            Self::Silu => {
                let s = sigmoid(x);
                (x * s, s * (1.0 + x * (1.0 - s)))
            }
            Self::GeluOfHalves => (self.value(x), Self::Gelu.both(x).1),
            Self::Gelu => {
                let t = tanh(GELU_FACTOR * x * (1.0 + GELU_CUBE * x * x));
                let inner = GELU_FACTOR * (1.0 + 3.0 * GELU_CUBE * x * x);
                let slope = 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * inner;
                (0.5 * x * (1.0 + t), slope)
            }
        }
    }
}

/// The half float that is closest to `x`.
fn halved(x: f32) -> f32 {
    f16::from_f32(x).to_f32()
}

/// Numbers of one task.
const CHUNK: usize = 1 << 14;

/// The activation of `gate`, times `up`.
pub(crate) struct Gated(pub Activation);

impl CustomOp2 for Gated {
    fn name(&self) -> &'static str {
        "gated"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        lg: &Layout,
        up: &CpuStorage,
        lu: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (host::slice(gate, lg)?, host::slice(up, lu)?);
        let mut out = vec![0.0; gate.len()];
        let inputs = gate.par_chunks(CHUNK).zip(up.par_chunks(CHUNK));
        (out.par_chunks_mut(CHUNK).zip(inputs)).for_each(|(out, (gate, up))| {
            for ((out, &gate), up) in out.iter_mut().zip(gate).zip(up) {
                *out = self.0.value(gate) * up;
            }
        });
        made(out, lg.shape().clone())
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let n = gate.elem_count();
        let (mut dgate, mut dup) = (vec![0.0; n], vec![0.0; n]);
        host::with(gate, |gate| {
            host::with(up, |up| {
                host::with(g, |g| {
                    let inputs =
                        (gate.par_chunks(CHUNK).zip(up.par_chunks(CHUNK))).zip(g.par_chunks(CHUNK));
                    let outputs = dgate.par_chunks_mut(CHUNK).zip(dup.par_chunks_mut(CHUNK));
                    outputs
                        .zip(inputs)
                        .for_each(|((dgate, dup), ((gate, up), g))| {
                            let inputs = gate.iter().zip(up).zip(g);
                            for ((dgate, dup), ((&gate, up), g)) in
                                dgate.iter_mut().zip(dup).zip(inputs)
                            {
                                let (value, slope) = self.0.both(gate);
                                *dgate = g * up * slope;
                                *dup = g * value;
                            }
                        });
                    Ok(())
                })
            })
        })?;
        let tensor = |values| Tensor::from_vec(values, gate.dims(), gate.device());
        Ok((Some(tensor(dgate)?), Some(tensor(dup)?)))
    }
}

/// The activation of each number.
pub(crate) struct Plain(pub Activation);

impl CustomOp1 for Plain {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = host::slice(x, layout)?;
        let mut out = vec![0.0; x.len()];
        (out.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK))).for_each(|(out, x)| {
            for (out, &x) in out.iter_mut().zip(x) {
                *out = self.0.value(x);
            }
        });
        made(out, layout.shape().clone())
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let mut dx = vec![0.0; x.elem_count()];
        host::with(x, |x| {
            host::with(g, |g| {
                let inputs = x.par_chunks(CHUNK).zip(g.par_chunks(CHUNK));
                (dx.par_chunks_mut(CHUNK).zip(inputs)).for_each(|(dx, (x, g))| {
                    for ((dx, &x), g) in dx.iter_mut().zip(x).zip(g) {
                        *dx = g * self.0.both(x).1;
                    }
                });
                Ok(())
            })
        })?;
        Tensor::from_vec(dx, x.dims(), x.device()).map(Some)
    }
}
