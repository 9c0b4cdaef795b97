//! How fast training is, next to what the machine can multiply.

use std::time::Instant;

use candle_core::{Device, Tensor};

use crate::error::TrainError;

/// Rows, inner length and columns of the products that [`products`] measures.
const SHAPE: [usize; 3] = [1024, 1024, 2048];

/// Floating-point operations of a forward and a backward pass of a model with so many
/// parameters: a multiplication and an addition for each in each of three products. What is
/// computed again is not counted, nor are attention's products.
pub fn work(parameters: usize, tokens: usize) -> f64 {
    6.0 * parameters as f64 * tokens as f64
}

/// Floating-point operations a second of candle's products of large f32 matrices on the CPU,
/// in the best of `tries`.
///
/// # Errors
/// Candle's.
pub fn products(tries: usize) -> Result<f64, TrainError> {
    let [rows, inner, columns] = SHAPE;
    let a = Tensor::rand(-1f32, 1.0, (rows, inner), &Device::Cpu)?;
    let b = Tensor::rand(-1f32, 1.0, (inner, columns), &Device::Cpu)?;
    let mut best = 0f64;
    for _ in 0..tries {
        let start = Instant::now();
        std::hint::black_box(a.matmul(&b)?);
        let seconds = start.elapsed().as_secs_f64();
        best = best.max(2.0 * (rows * inner * columns) as f64 / seconds);
    }
    Ok(best)
}
