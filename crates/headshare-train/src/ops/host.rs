//! Numbers in the machine's memory: tensors of the CPU as slices, products of
//! matrices, sums in an order that does not depend on the threads.

use candle_core::{CpuStorage, Layout, Result, Shape, Storage, Tensor, bail};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

/// Rows that one task of a parallel loop takes: fixed, so that partial sums are
/// the same whatever the number of threads.
pub(crate) const ROWS: usize = 32;

/// The numbers of a contiguous f32 tensor of the CPU.
pub(crate) fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("an operation of headshare-train on a tensor that is not contiguous")
    };
    Ok(&storage.as_slice::<f32>()?[start..end])
}

/// Hands the numbers of an f32 tensor of the CPU to `with`.
pub(crate) fn with<T>(tensor: &Tensor, with: impl FnOnce(&[f32]) -> Result<T>) -> Result<T> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => with(slice(storage, layout)?),
        _ => bail!("an operation of headshare-train for the CPU on another device"),
    }
}

/// What a forward pass gives back to candle.
pub(crate) fn made(values: Vec<f32>, shape: impl Into<Shape>) -> Result<(CpuStorage, Shape)> {
    Ok((CpuStorage::F32(values), shape.into()))
}

/// A matrix whose rows lie one after the other.
pub(crate) fn matrix(values: &[f32], rows: usize, columns: usize) -> MatRef<'_, f32> {
    MatRef::from_row_major_slice(values, rows, columns)
}

/// A matrix to write to, whose rows lie one after the other.
pub(crate) fn matrix_mut(values: &mut [f32], rows: usize, columns: usize) -> MatMut<'_, f32> {
    MatMut::from_row_major_slice_mut(values, rows, columns)
}

/// `out = scale a b`, or added to what is there, on all threads.
pub(crate) fn product(
    out: MatMut<'_, f32>,
    add: bool,
    a: MatRef<'_, f32>,
    b: MatRef<'_, f32>,
    scale: f32,
) {
    multiply(out, add, a, b, scale, Par::rayon(0));
}

/// [`product`] on this thread.
pub(crate) fn product_here(
    out: MatMut<'_, f32>,
    add: bool,
    a: MatRef<'_, f32>,
    b: MatRef<'_, f32>,
    scale: f32,
) {
    multiply(out, add, a, b, scale, Par::Seq);
}

fn multiply(
    out: MatMut<'_, f32>,
    add: bool,
    a: MatRef<'_, f32>,
    b: MatRef<'_, f32>,
    scale: f32,
    par: Par,
) {
    let accum = if add { Accum::Add } else { Accum::Replace };
    matmul(out, accum, a, b, scale, par);
}

/// Adds the sum of the rows of `values`, of `out.len()` each, to `out`.
pub(crate) fn add_rows(out: &mut [f32], values: &[f32]) {
    let width = out.len();
    let parts: Vec<Vec<f32>> = values
        .par_chunks(ROWS * width)
        .map(|rows| {
            let mut sum = vec![0.0; width];
            for row in rows.chunks_exact(width) {
                add(&mut sum, row);
            }
            sum
        })
        .collect();
    for part in &parts {
        add(out, part);
    }
}

/// `out += values`.
pub(crate) fn add(out: &mut [f32], values: &[f32]) {
    for (out, value) in out.iter_mut().zip(values) {
        *out += value;
    }
}

/// The sum of squares, in f64, in a fixed order.
pub(crate) fn squares(values: &[f32]) -> f64 {
    let parts: Vec<f64> = values
        .par_chunks(1 << 16)
        .map(|part| part.iter().map(|&v| f64::from(v) * f64::from(v)).sum())
        .collect();
    parts.iter().sum()
}
