//! Coordinate descent on codes that are there already.
//!
//! Weights that are stored in 4 bits and move by less than a step gain nothing
//! from rounding anew: nearly all round to where they were, and what rounding
//! costs is more than what they moved for. So the codes are taken as they are,
//! and one at a time is changed, by what lowers the cost
//!
//!   (w - w*)^T H (w - w*)
//!
//! most, w* being the weights that are wanted and H the Gram matrix of the
//! inputs, until no change of a code, a scale or a minimum helps. The cost is
//! never more than it was. Like GPTQ's, the objective is each row's own.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, Par};
use rayon::prelude::*;

use super::affine::{Affine, Grid, WIDTH};
use super::error::QuantizeError;
use super::gptq::EncodedMatrix;

/// Ways through all codes of a row, at most.
const SWEEPS: usize = 8;
/// A way that gains less than this part of the cost is the last one.
const LEAST_GAIN: f64 = 2e-3;

/// Lowers the cost of `bytes`, rows of blocks of the type `affine`, against
/// the matrix whose transpose is `wanted`.
///
/// # Errors
/// When rows are no whole blocks, or `bytes` not as many as they take.
pub fn descend(
    affine: Affine,
    bytes: &[u8],
    wanted: &Mat<f64>,
    hessian: &Mat<f64>,
    par: Par,
) -> Result<EncodedMatrix, QuantizeError> {
    let (p, n) = (wanted.nrows(), wanted.ncols());
    let of_row = p / WIDTH * affine.block_bytes();
    let whole = p > 0 && p.is_multiple_of(WIDTH) && hessian.nrows() == p;
    if !whole || bytes.len() != n * of_row {
        return Err(QuantizeError::Shape {
            columns: p,
            width: WIDTH,
        });
    }
    let decoded: Vec<Vec<Grid>> = bytes
        .par_chunks(of_row)
        .map(|row| {
            row.chunks(affine.block_bytes())
                .map(|block| affine.unpack(block))
                .collect()
        })
        .collect();
    let errors = Mat::from_fn(p, n, |i, row| {
        decoded[row][i / WIDTH].value(i % WIDTH) - wanted[(i, row)]
    });
    let mut gradients = Mat::zeros(p, n);
    matmul(&mut gradients, Accum::Replace, hessian, &errors, 1.0, par);
    let inputs = Inputs::new(hessian);
    let rows: Vec<Vec<Grid>> = decoded
        .into_par_iter()
        .enumerate()
        .map(|(row, blocks)| {
            let gradient: Vec<f64> = (0..p).map(|i| gradients[(i, row)]).collect();
            let cost = (0..p).map(|i| gradient[i] * errors[(i, row)]).sum();
            let mut descent = Descent {
                affine,
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
        affine.pack(block, &mut packed);
    }
    Ok(EncodedMatrix {
        bytes: packed,
        weights: Mat::from_fn(p, n, |i, row| rows[row][i / WIDTH].value(i % WIDTH)),
    })
}

/// H, as the descent needs it. Single precision decides where to go; what is
/// gained is measured in double precision by those who call.
struct Inputs {
    p: usize,
    /// Row after row; symmetric.
    hessian: Vec<f32>,
    /// For each block of columns, H times their sum.
    sums: Vec<Vec<f32>>,
}

impl Inputs {
    fn new(hessian: &Mat<f64>) -> Self {
        let p = hessian.nrows();
        let rows: Vec<f32> = (0..p)
            .flat_map(|j| (0..p).map(move |i| hessian[(i, j)] as f32))
            .collect();
        let sums = (0..p / WIDTH)
            .map(|block| {
                let mut sum = vec![0f32; p];
                for row in rows[block * WIDTH * p..(block + 1) * WIDTH * p].chunks(p) {
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
struct Descent<'a> {
    affine: Affine,
    inputs: &'a Inputs,
    /// H (w - w*): half the cost's gradient.
    gradient: Vec<f64>,
    blocks: Vec<Grid>,
}

impl Descent<'_> {
    fn run(&mut self, mut cost: f64) {
        for sweep in 0..SWEEPS {
            let mut gain = 0.0;
            for block in 0..self.blocks.len() {
                // Scales change everything in a block, so they settle first.
                if sweep < 2 {
                    gain += self.move_minimum(block);
                    gain += self.move_scale(block);
                }
                gain += self.move_codes(block);
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

    fn move_codes(&mut self, block: usize) -> f64 {
        let (first, last) = self.affine.range();
        let mut gained = 0.0;
        for i in 0..WIDTH {
            let at = block * WIDTH + i;
            let grid = &mut self.blocks[block];
            let step = grid.step();
            let row = self.inputs.row(at);
            let curvature = f64::from(row[at]);
            if step == 0.0 || curvature <= 0.0 {
                continue;
            }
            let slope = self.gradient[at];
            let old = grid.code(i);
            let new = (old - slope / (curvature * step))
                .round()
                .clamp(first, last);
            let moved = (new - old) * step;
            let gain = Self::gain(slope, curvature, moved);
            if new == old || gain <= 0.0 {
                continue;
            }
            grid.set_code(i, new);
            add(&mut self.gradient, row, moved);
            gained += gain;
        }
        gained
    }

    fn move_minimum(&mut self, block: usize) -> f64 {
        if !self.affine.has_minimum() {
            return 0.0;
        }
        let sums = &self.inputs.sums[block];
        let columns = block * WIDTH..(block + 1) * WIDTH;
        let slope: f64 = self.gradient[columns.clone()].iter().sum();
        let curvature: f64 = sums[columns].iter().map(|&v| f64::from(v)).sum();
        if curvature <= 0.0 {
            return 0.0;
        }
        let Some(moved) = self.blocks[block].moved_minimum(-slope / curvature) else {
            return 0.0;
        };
        let (grid, by) = moved;
        let gain = Self::gain(slope, curvature, by);
        if gain <= 0.0 {
            return 0.0;
        }
        self.blocks[block] = grid;
        add(&mut self.gradient, sums, by);
        gain
    }

    fn move_scale(&mut self, block: usize) -> f64 {
        let columns = block * WIDTH..(block + 1) * WIDTH;
        let codes: [f64; WIDTH] = std::array::from_fn(|i| self.blocks[block].code(i));
        let slope: f64 = (codes.iter().zip(&self.gradient[columns.clone()]))
            .map(|(code, g)| code * g)
            .sum();
        let curvature: f64 = (codes.iter().zip(columns.clone()))
            .map(|(code, at)| {
                let row = &self.inputs.row(at)[columns.clone()];
                let image: f64 = row.iter().zip(&codes).map(|(&h, c)| f64::from(h) * c).sum();
                code * image
            })
            .sum();
        if curvature <= 0.0 {
            return 0.0;
        }
        let Some((grid, by)) = self.blocks[block].moved_scale(-slope / curvature) else {
            return 0.0;
        };
        let gain = Self::gain(slope, curvature, by);
        if gain <= 0.0 {
            return 0.0;
        }
        self.blocks[block] = grid;
        for (code, at) in codes.iter().zip(columns) {
            if *code != 0.0 {
                add(&mut self.gradient, self.inputs.row(at), code * by);
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
