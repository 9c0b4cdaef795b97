//! Numbers in the machine's memory: tensors of the CPU as slices, products of
//! matrices, sums in an order that does not depend on the threads.

use candle_core::backend::BackendStorage;
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

/// Numbers that candle's products can be made of.
#[derive(Clone)]
pub(crate) struct Numbers(CpuStorage);

impl std::fmt::Debug for Numbers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} numbers", self.as_slice().len())
    }
}

impl Numbers {
    pub fn new(values: Vec<f32>) -> Self {
        Self(CpuStorage::F32(values))
    }

    pub fn as_slice(&self) -> &[f32] {
        match &self.0 {
            CpuStorage::F32(values) => values,
            _ => &[],
        }
    }

    pub fn as_mut_slice(&mut self) -> &mut [f32] {
        match &mut self.0 {
            CpuStorage::F32(values) => values,
            _ => &mut [],
        }
    }

    /// The matrix of `rows` and `columns` that begins at the number `start`.
    pub fn factor(&self, start: usize, rows: usize, columns: usize) -> Factor<'_> {
        let layout = Layout::new((rows, columns).into(), vec![columns, 1], start);
        Factor(&self.0, layout)
    }
}

/// A matrix in a product of candle's, which is faster than faer's but for sums that it
/// cannot add to.
#[derive(Clone)]
pub(crate) struct Factor<'a>(&'a CpuStorage, Layout);

impl<'a> Factor<'a> {
    /// What a forward pass is handed, as a matrix; its numbers lie one after the other.
    pub fn new(storage: &'a CpuStorage, layout: &Layout, rows: usize, columns: usize) -> Self {
        let shape = Shape::from((rows, columns));
        Self(
            storage,
            Layout::contiguous_with_offset(shape, layout.start_offset()),
        )
    }

    pub fn transposed(self) -> Result<Self> {
        Ok(Self(self.0, self.1.transpose(0, 1)?))
    }

    /// The product, row after row.
    pub fn times(&self, other: &Self) -> Result<Vec<f32>> {
        let (m, k) = self.1.shape().dims2()?;
        let n = other.1.dims()[1];
        match self.0.matmul(other.0, (1, m, n, k), &self.1, &other.1)? {
            CpuStorage::F32(values) => Ok(values),
            _ => bail!("a product of other numbers than f32"),
        }
    }
}

/// Hands an f32 tensor of the CPU to `with` as a matrix.
pub(crate) fn with_factor<T>(
    tensor: &Tensor,
    (rows, columns): (usize, usize),
    with: impl FnOnce(Factor<'_>) -> Result<T>,
) -> Result<T> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => with(Factor::new(storage, layout, rows, columns)),
        _ => bail!("an operation of headshare-train for the CPU on another device"),
    }
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

/// `out += values`, in parallel.
pub(crate) fn add_all(out: &mut [f32], values: &[f32]) {
    const PART: usize = 1 << 15;
    (out.par_chunks_mut(PART).zip(values.par_chunks(PART))).for_each(|(out, v)| add(out, v));
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
