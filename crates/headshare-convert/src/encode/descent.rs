//! Coordinate descent on codes that are there already.
//!
//! Weights that are stored in 4 bits and move by less than a step gain nothing
//! from rounding anew: nearly all round to where they were, and what rounding
//! costs is more than what they moved for. And what GPTQ rounds in order, with
//! the columns before fixed, can often be bettered once all columns are there.
//! So the codes are taken as they are, and one at a time is changed, by what
//! lowers the cost
//!
//!   (w - w*)^T H (w - w*)
//!
//! most, w* being the weights that are wanted and H the Gram matrix of the
//! inputs, until no change of a level, a scale or a base helps. The cost is
//! never more than it was. Like GPTQ's, the objective is each row's own.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, Par};
use rayon::prelude::*;

use super::block::EncodedMatrix;
use super::error::QuantizeError;
use super::level_type::LevelType;

/// Ways through all levels of a row, at most.
const SWEEPS: usize = 8;
/// A way that gains less than this part of the cost is the last one.
const LEAST_GAIN: f64 = 2e-3;

/// Lowers the cost of `bytes`, rows of blocks of the type `of`, against the matrix
/// whose transpose is `wanted`.
///
/// # Errors
/// When rows are no whole blocks, or `bytes` not as many as they take.
pub(super) fn descend<T: LevelType>(
    of: &T,
    bytes: &[u8],
    wanted: &Mat<f64>,
    hessian: &Mat<f64>,
    par: Par,
) -> Result<EncodedMatrix, QuantizeError> {
    let (p, n) = (wanted.nrows(), wanted.ncols());
    let width = of.width();
    let of_row = p / width * of.block_bytes();
    let whole = p > 0 && p.is_multiple_of(width) && hessian.nrows() == p;
    if !whole || bytes.len() != n * of_row {
        return Err(QuantizeError::Shape { columns: p, width });
    }
    let decoded: Vec<Vec<T::Block>> = bytes
        .par_chunks(of_row)
        .map(|row| {
            row.chunks(of.block_bytes())
                .map(|block| of.unpack(block))
                .collect()
        })
        .collect();
    let value = |row: &[T::Block], i: usize| f64::from(of.value(&row[i / width], i % width));
    let errors = Mat::from_fn(p, n, |i, row| value(&decoded[row], i) - wanted[(i, row)]);
    let mut gradients = Mat::zeros(p, n);
    matmul(&mut gradients, Accum::Replace, hessian, &errors, 1.0, par);
    let inputs = Inputs::new(hessian, of.part());
    let rows: Vec<Vec<T::Block>> = decoded
        .into_par_iter()
        .enumerate()
        .map(|(row, blocks)| {
            let gradient: Vec<f64> = (0..p).map(|i| gradients[(i, row)]).collect();
            let cost = (0..p).map(|i| gradient[i] * errors[(i, row)]).sum();
            let mut descent = Descent {
                of,
                inputs: &inputs,
                gradient,
                blocks,
            };
            descent.run(cost);
            descent.blocks
        })
        .collect();
    let mut packed = Vec::with_capacity(bytes.len());
    for block in rows.iter().flatten() {
        of.pack(block, &mut packed);
    }
    Ok(EncodedMatrix {
        bytes: packed,
        weights: Mat::from_fn(p, n, |i, row| value(&rows[row], i)),
    })
}

/// H, as the descent needs it. Single precision decides where to go; what is
/// gained is measured in double precision by those who call.
struct Inputs {
    p: usize,
    /// Row after row; symmetric.
    hessian: Vec<f32>,
    /// For each part, H times the sum of its columns.
    sums: Vec<Vec<f32>>,
}

impl Inputs {
    fn new(hessian: &Mat<f64>, part: usize) -> Self {
        let p = hessian.nrows();
        let rows: Vec<f32> = (0..p)
            .flat_map(|j| (0..p).map(move |i| hessian[(i, j)] as f32))
            .collect();
        let sums = (rows.chunks(part * p))
            .map(|rows| {
                let mut sum = vec![0f32; p];
                for row in rows.chunks(p) {
                    sum.iter_mut().zip(row).for_each(|(to, v)| *to += v);
                }
                sum
            })
            .collect();
        Self {
            p,
            hessian: rows,
            sums,
        }
    }

    fn row(&self, i: usize) -> &[f32] {
        &self.hessian[i * self.p..(i + 1) * self.p]
    }
}

/// One row of the matrix on its way down.
struct Descent<'a, T: LevelType> {
    of: &'a T,
    inputs: &'a Inputs,
    /// H (w - w*): half the cost's gradient.
    gradient: Vec<f64>,
    blocks: Vec<T::Block>,
}

impl<T: LevelType> Descent<'_, T> {
    fn run(&mut self, mut cost: f64) {
        let parts = self.of.width() / self.of.part();
        for sweep in 0..SWEEPS {
            let mut gain = 0.0;
            for block in 0..self.blocks.len() {
                for part in 0..parts {
                    // Scales change everything in a part, so they settle first.
                    if sweep < 2 {
                        gain += self.move_base(block, part);
                        gain += self.move_scale(block, part);
                    }
                    gain += self.move_levels(block, part);
                }
            }
            cost -= gain;
            if gain <= LEAST_GAIN * cost {
                return;
            }
        }
    }

    /// What changing one number by `step` gains, where the cost's slope along
    /// it is twice `slope` and its curvature `curvature`.
    fn gain(slope: f64, curvature: f64, step: f64) -> f64 {
        -step * (2.0 * slope + step * curvature)
    }

    /// The first column of a part.
    fn first(&self, block: usize, part: usize) -> usize {
        block * self.of.width() + part * self.of.part()
    }

    fn move_levels(&mut self, block: usize, part: usize) -> f64 {
        let levels = self.of.levels();
        let step = self.of.scale(&self.blocks[block], part);
        if step == 0.0 {
            return 0.0;
        }
        let first = self.first(block, part);
        let mut gained = 0.0;
        for i in 0..self.of.part() {
            let at = first + i;
            let row = self.inputs.row(at);
            let curvature = f64::from(row[at]);
            if curvature <= 0.0 {
                continue;
            }
            let slope = self.gradient[at];
            let level = self.of.level_mut(&mut self.blocks[block], part, i);
            let old = f64::from(*level);
            let new = levels.nearest(old - slope / (curvature * step));
            let moved = (f64::from(new) - old) * step;
            let gain = Self::gain(slope, curvature, moved);
            if new == *level || gain <= 0.0 {
                continue;
            }
            *level = new;
            add(&mut self.gradient, row, moved);
            gained += gain;
        }
        gained
    }

    fn move_base(&mut self, block: usize, part: usize) -> f64 {
        if !self.of.has_base() {
            return 0.0;
        }
        let first = self.first(block, part);
        let sums = &self.inputs.sums[first / self.of.part()];
        let columns = first..first + self.of.part();
        let slope: f64 = self.gradient[columns.clone()].iter().sum();
        let curvature: f64 = sums[columns].iter().map(|&v| f64::from(v)).sum();
        if curvature <= 0.0 {
            return 0.0;
        }
        let old = self.of.base(&self.blocks[block], part);
        let wanted = old - slope / curvature;
        let Some(moved) = self.of.with_base(&self.blocks[block], part, wanted) else {
            return 0.0;
        };
        let by = self.of.base(&moved, part) - old;
        let gain = Self::gain(slope, curvature, by);
        if gain <= 0.0 {
            return 0.0;
        }
        self.blocks[block] = moved;
        add(&mut self.gradient, sums, by);
        gain
    }

    fn move_scale(&mut self, block: usize, part: usize) -> f64 {
        let first = self.first(block, part);
        let columns = first..first + self.of.part();
        let of_block = &mut self.blocks[block];
        let levels = (0..self.of.part()).map(|i| f64::from(*self.of.level_mut(of_block, part, i)));
        let levels: Vec<f64> = levels.collect();
        let slope: f64 = (levels.iter().zip(&self.gradient[columns.clone()]))
            .map(|(level, g)| level * g)
            .sum();
        let curvature: f64 = (levels.iter().zip(columns.clone()))
            .map(|(level, at)| {
                let row = &self.inputs.row(at)[columns.clone()];
                let image: f64 = (row.iter().zip(&levels))
                    .map(|(&h, l)| f64::from(h) * l)
                    .sum();
                level * image
            })
            .sum();
        if curvature <= 0.0 {
            return 0.0;
        }
        let old = self.of.scale(of_block, part);
        let wanted = old - slope / curvature;
        let Some(moved) = self.of.with_scale(of_block, part, wanted) else {
            return 0.0;
        };
        let by = self.of.scale(&moved, part) - old;
        let gain = Self::gain(slope, curvature, by);
        if gain <= 0.0 {
            return 0.0;
        }
        self.blocks[block] = moved;
        for (level, at) in levels.iter().zip(columns) {
            if *level != 0.0 {
                add(&mut self.gradient, self.inputs.row(at), level * by);
            }
        }
        gain
    }
}

fn add(to: &mut [f64], row: &[f32], factor: f64) {
    to.iter_mut()
        .zip(row)
        .for_each(|(to, &v)| *to += factor * f64::from(v));
}
