//! Weighted least squares from sums: the normal equations of a layer, gathered
//! once and solved for any ridge.
//!
//! With inputs z_t, targets y_t and weights w_t of tokens t, a weight matrix O
//! (rows are outputs) is judged by sum_t w_t |y_t - O z_t|^2. All of that is in
//! G = sum w z z^T, C = sum w z y^T and s = sum w |y|^2.

use std::borrow::Cow;

use faer::linalg::matmul::{matmul, triangular};
use faer::linalg::solvers::Solve;
use faer::{Accum, Mat, MatMut, MatRef, Par, Side};
use rayon::prelude::*;

/// Rows that are multiplied in f32 before they are added up in f64.
const SLAB: usize = 1024;

/// The sums over some tokens.
#[derive(Clone, Debug)]
pub struct Normal {
    /// G, both triangles.
    pub gram: Mat<f64>,
    /// C, a column for each output.
    pub cross: Mat<f64>,
    /// s.
    pub target: f64,
    /// How many tokens.
    pub rows: usize,
}

/// The sums over the tokens to fit on, and over those that are held out.
#[derive(Clone, Debug)]
pub struct Sums {
    /// To fit on.
    pub fitted: Normal,
    /// To choose on.
    pub held: Normal,
}

/// The Gram matrices of inputs, of the tokens to fit on and of those held out.
pub type Grams = [Mat<f64>; 2];

/// Rows to sum up, and what each counts.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    /// Inputs, so many a row.
    pub inputs: (&'a [f32], usize),
    /// Targets, so many a row.
    pub targets: (&'a [f32], usize),
    /// What each row counts.
    pub weights: &'a [f32],
    /// The first row of those that are held out.
    pub held_from: usize,
}

impl<'a> Rows<'a> {
    /// Those to fit on and those held out: inputs, targets, weights.
    fn parts(self) -> [(&'a [f32], &'a [f32], &'a [f32]); 2] {
        let [(inputs, p), (targets, n)] = [self.inputs, self.targets];
        [0..self.held_from, self.held_from..self.weights.len()].map(|rows| {
            (
                &inputs[rows.start * p..rows.end * p],
                &targets[rows.start * n..rows.end * n],
                &self.weights[rows],
            )
        })
    }

    /// Their Gram matrices.
    pub fn grams(self, par: Par) -> Grams {
        let p = self.inputs.1;
        self.parts().map(|(inputs, _, weights)| {
            let mut gram = GramSum::new(p);
            for (inputs, weights) in inputs.chunks(SLAB * p).zip(weights.chunks(SLAB)) {
                gram.add(&weighted(inputs, weights), par);
            }
            gram.finish()
        })
    }
}

impl Sums {
    /// Bytes that the sums of a matrix take, with so many inputs and outputs.
    pub fn bytes(inputs: u64, outputs: u64) -> u64 {
        let normal = inputs.saturating_mul(inputs.saturating_add(outputs));
        normal.saturating_mul(2 * size_of::<f64>() as u64)
    }

    /// The sums of `rows`.
    pub fn of(rows: Rows<'_>, par: Par) -> Self {
        let grams = rows.grams(par);
        Self::beside(&grams, rows, par)
    }

    /// The same where the Gram matrices are known already.
    pub fn beside(grams: &Grams, rows: Rows<'_>, par: Par) -> Self {
        let (p, n) = (rows.inputs.1, rows.targets.1);
        let [fitted, held] = [0, 1].map(|i| {
            let (inputs, targets, weights) = rows.parts()[i];
            let mut cross = ProductSum::new(p, n);
            let mut target = 0.0;
            let slabs = inputs.chunks(SLAB * p).zip(targets.chunks(SLAB * n.max(1)));
            for ((inputs, targets), weights) in slabs.zip(weights.chunks(SLAB)) {
                let y = weighted(targets, weights);
                cross.add(&weighted(inputs, weights), &y, par);
                target += squares(&y, n);
            }
            Normal {
                gram: grams[i].clone(),
                cross: cross.finish(),
                target,
                rows: weights.len(),
            }
        });
        Self { fitted, held }
    }

    /// The sums over the tokens of both.
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            fitted: self.fitted.plus(&other.fitted),
            held: self.held.plus(&other.held),
        }
    }

    /// The same as if zeros went into the columns that are `silent`.
    #[must_use]
    pub fn without(mut self, silent: &[bool]) -> Self {
        if silent.contains(&true) {
            self.fitted.silence(silent);
            self.held.silence(silent);
        }
        self
    }

    /// The sums over all tokens.
    pub fn all(&self) -> Normal {
        self.fitted.plus(&self.held)
    }
}

/// Of rows of `columns` weights, the columns that are zero in all: what goes into those
/// counts for nothing.
pub fn silent_columns(weights: &[f32], columns: usize) -> Vec<bool> {
    let mut silent = vec![true; columns];
    for row in weights.chunks(columns.max(1)) {
        for (silent, &weight) in silent.iter_mut().zip(row) {
            *silent &= weight == 0.0;
        }
    }
    silent
}

impl Normal {
    fn silence(&mut self, silent: &[bool]) {
        for i in (0..silent.len()).filter(|&i| silent[i]) {
            self.gram.row_mut(i).fill(0.0);
            self.gram.col_mut(i).fill(0.0);
            self.cross.row_mut(i).fill(0.0);
        }
    }

    /// The sums over the tokens of both.
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            gram: &self.gram + &other.gram,
            cross: &self.cross + &other.cross,
            target: self.target + other.target,
            rows: self.rows + other.rows,
        }
    }

    /// sum w |y - O z|^2 for the matrix whose transpose is `weights`.
    pub fn error(&self, weights: &Mat<f64>) -> f64 {
        let image = &self.gram * weights;
        let mut error = self.target;
        for j in 0..weights.ncols() {
            for i in 0..weights.nrows() {
                error += weights[(i, j)] * (image[(i, j)] - 2.0 * self.cross[(i, j)]);
            }
        }
        error.max(0.0)
    }

    /// How far to go from `now` to `solved`, from 0 to 1, for the smallest error: to be
    /// asked of tokens that `solved` was not fitted to. (One for each output follows noise:
    /// it did worse.)
    pub fn strength(&self, now: &Mat<f64>, solved: &Mat<f64>) -> f64 {
        let step = solved - now;
        let pull = &self.cross - &self.gram * now;
        let image = &self.gram * &step;
        let dot = |a: &Mat<f64>| -> f64 {
            let of_column = |j: usize| -> f64 {
                let products = (0..a.nrows()).map(|i| a[(i, j)] * step[(i, j)]);
                products.sum()
            };
            (0..a.ncols()).map(of_column).sum()
        };
        let (linear, square) = (dot(&pull), dot(&image));
        match square > 0.0 {
            true => (linear / square).clamp(0.0, 1.0),
            false => 0.0,
        }
    }

    /// G with a ridge of `lambda` times its mean diagonal; of 1 where that is
    /// zero, so that the result can always be inverted.
    pub fn ridged(&self, lambda: f64) -> Mat<f64> {
        ridged(&self.gram, lambda)
    }

    /// The minimum of the error plus the ridge times |O - O0|^2, `from` being
    /// the transpose of O0; as a transpose, too. `None` when the sums are not
    /// finite.
    pub fn solve(&self, from: &Mat<f64>, lambda: f64) -> Option<Mat<f64>> {
        self.solve_each(from, &[lambda]).pop()?
    }

    /// [`solve`](Self::solve) for several ridges.
    pub fn solve_each(&self, from: &Mat<f64>, lambdas: &[f64]) -> Vec<Option<Mat<f64>>> {
        let residual = &self.cross - &self.gram * from;
        let solve = |&lambda: &f64| {
            let llt = self.ridged(lambda).llt(Side::Lower).ok()?;
            let result = from + llt.solve(&residual);
            result.is_all_finite().then_some(result)
        };
        lambdas.iter().map(solve).collect()
    }
}

/// The part `strength` of the way from `now` to `solved`.
pub fn towards(now: &Mat<f64>, solved: &Mat<f64>, strength: f64) -> Mat<f64> {
    Mat::from_fn(now.nrows(), now.ncols(), |i, j| {
        now[(i, j)] + strength * (solved[(i, j)] - now[(i, j)])
    })
}

/// A Gram matrix with a ridge, as [`Normal::ridged`].
pub fn ridged(gram: &Mat<f64>, lambda: f64) -> Mat<f64> {
    let p = gram.nrows();
    let trace: f64 = (0..p).map(|i| gram[(i, i)]).sum();
    let ridge = lambda * trace / p as f64;
    let ridge = if ridge > 0.0 { ridge } else { 1.0 };
    let mut sum = gram.clone();
    for i in 0..p {
        sum[(i, i)] += ridge;
    }
    sum
}

/// Rows, each times the square root of its weight.
pub fn weighted<'a>(rows: &'a [f32], weights: &[f32]) -> Cow<'a, [f32]> {
    if weights.iter().all(|&weight| weight == 1.0) {
        return Cow::Borrowed(rows);
    }
    let width = rows.len().checked_div(weights.len()).unwrap_or(0).max(1);
    let mut out = vec![0f32; rows.len()];
    let of_rows = out.par_chunks_mut(width).zip(rows.par_chunks(width));
    of_rows.zip(weights).for_each(|((out, row), weight)| {
        let factor = weight.sqrt();
        out.iter_mut().zip(row).for_each(|(o, v)| *o = v * factor);
    });
    Cow::Owned(out)
}

/// The sum of squares of rows of `width` elements.
fn squares(rows: &[f32], width: usize) -> f64 {
    let of_row = |row: &[f32]| row.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
    let sums: Vec<f64> = rows.par_chunks(width.max(1)).map(of_row).collect();
    sums.iter().sum()
}

/// A sum of products of slabs: each slab's in f32, all of them in f64, column by column.
#[derive(Debug)]
struct SlabSum {
    rows: usize,
    sum: Vec<f64>,
    slab: Vec<f32>,
}

impl SlabSum {
    fn new(rows: usize, columns: usize) -> Self {
        Self {
            rows,
            sum: vec![0.0; rows * columns],
            slab: vec![0.0; rows * columns],
        }
    }

    /// Adds what `product` writes; of each column, from the row that `first` says.
    fn add(
        &mut self,
        product: impl FnOnce(MatMut<'_, f32>),
        first: impl Fn(usize) -> usize + Sync,
    ) {
        let rows = self.rows.max(1);
        let columns = self.slab.len() / rows;
        product(MatMut::from_column_major_slice_mut(
            &mut self.slab,
            self.rows,
            columns,
        ));
        let columns = self
            .sum
            .par_chunks_mut(rows)
            .zip(self.slab.par_chunks(rows));
        columns.enumerate().for_each(|(j, (sum, slab))| {
            let first = first(j);
            let of_column = sum[first..].iter_mut().zip(&slab[first..]);
            of_column.for_each(|(sum, &v)| *sum += f64::from(v));
        });
    }
}

/// Z^T Z, of any number of rows that are already weighted.
#[derive(Debug)]
pub struct GramSum(SlabSum);

impl GramSum {
    /// For rows of `width` elements.
    pub fn new(width: usize) -> Self {
        Self(SlabSum::new(width, width))
    }

    /// Adds rows.
    pub fn add(&mut self, rows: &[f32], par: Par) {
        let width = self.0.rows.max(1);
        for slab in rows.chunks(SLAB * width) {
            let z = MatRef::from_row_major_slice(slab, slab.len() / width, width);
            let product = |out: MatMut<'_, f32>| {
                triangular::matmul(
                    out,
                    triangular::BlockStructure::TriangularLower,
                    Accum::Replace,
                    z.transpose(),
                    triangular::BlockStructure::Rectangular,
                    z,
                    triangular::BlockStructure::Rectangular,
                    1f32,
                    par,
                );
            };
            // Below the diagonal only.
            self.0.add(product, |j| j);
        }
    }

    /// The sum, both triangles.
    pub fn finish(self) -> Mat<f64> {
        let SlabSum { rows, sum, .. } = self.0;
        Mat::from_fn(rows, rows, |i, j| sum[i.min(j) * rows + i.max(j)])
    }
}

/// Z^T Y, likewise.
#[derive(Debug)]
pub struct ProductSum(SlabSum, usize);

impl ProductSum {
    /// For rows of `left` and of `right` elements.
    pub fn new(left: usize, right: usize) -> Self {
        Self(SlabSum::new(left, right), right)
    }

    /// Adds rows of both.
    pub fn add(&mut self, left: &[f32], right: &[f32], par: Par) {
        let (p, n) = (self.0.rows, self.1);
        let slabs = left
            .chunks(SLAB * p.max(1))
            .zip(right.chunks(SLAB * n.max(1)));
        for (z, y) in slabs {
            let rows = z.len() / p;
            let z = MatRef::from_row_major_slice(z, rows, p);
            let y = MatRef::from_row_major_slice(y, rows, n);
            let product = |out: MatMut<'_, f32>| {
                matmul(out, Accum::Replace, z.transpose(), y, 1f32, par);
            };
            self.0.add(product, |_| 0);
        }
    }

    /// The sum.
    pub fn finish(self) -> Mat<f64> {
        let SlabSum { rows, sum, .. } = self.0;
        Mat::from_fn(rows, self.1, |i, j| sum[j * rows + i])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Small numbers without pattern.
    fn numbers(len: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        (0..len)
            .map(|_| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                ((state >> 40) as f32) / (1u64 << 23) as f32 - 1.0
            })
            .collect()
    }

    /// The sums over all rows, the last third of which is held out.
    fn sums(inputs: &[f32], targets: &[f32], weights: &[f32]) -> Normal {
        let n = weights.len();
        let rows = Rows {
            inputs: (inputs, inputs.len() / n),
            targets: (targets, targets.len() / n),
            weights,
            held_from: n - n / 3,
        };
        let sums = Sums::of(rows, Par::Seq);
        assert_eq!(sums.fitted.rows, n - n / 3);
        sums.all()
    }

    #[test]
    fn sums_equal_naive_ones_and_the_solution_is_the_minimum() {
        let (rows, p, n) = (2500, 7, 3);
        let z = numbers(rows * p, 1);
        let y = numbers(rows * n, 2);
        let w: Vec<f32> = numbers(rows, 3).iter().map(|v| v.abs() + 0.1).collect();
        let normal = sums(&z, &y, &w);
        for i in 0..p {
            for j in 0..p {
                let naive: f64 = (0..rows)
                    .map(|t| f64::from(w[t]) * f64::from(z[t * p + i]) * f64::from(z[t * p + j]))
                    .sum();
                assert!((normal.gram[(i, j)] - naive).abs() < 1e-3, "G {i} {j}");
            }
            for j in 0..n {
                let naive: f64 = (0..rows)
                    .map(|t| f64::from(w[t]) * f64::from(z[t * p + i]) * f64::from(y[t * n + j]))
                    .sum();
                assert!((normal.cross[(i, j)] - naive).abs() < 1e-3, "C {i} {j}");
            }
        }
        let naive_error = |o: &Mat<f64>| -> f64 {
            (0..rows)
                .map(|t| {
                    let off: f64 = (0..n)
                        .map(|j| {
                            let got: f64 =
                                (0..p).map(|i| o[(i, j)] * f64::from(z[t * p + i])).sum();
                            (f64::from(y[t * n + j]) - got).powi(2)
                        })
                        .sum();
                    f64::from(w[t]) * off
                })
                .sum()
        };
        let from = Mat::from_fn(p, n, |i, j| (i as f64 - j as f64) * 0.1);
        assert!((normal.error(&from) - naive_error(&from)).abs() < 1e-2);
        let lambda = 0.05;
        let ridge = lambda * (0..p).map(|i| normal.gram[(i, i)]).sum::<f64>() / p as f64;
        let cost = |o: &Mat<f64>| normal.error(o) + ridge * (o - &from).squared_norm_l2();
        let best = normal.solve(&from, lambda).expect("finite");
        for i in 0..p {
            for j in 0..n {
                for step in [-1e-3, 1e-3] {
                    let mut other = best.clone();
                    other[(i, j)] += step;
                    assert!(cost(&other) > cost(&best), "a step at {i} {j} is better");
                }
            }
        }
    }

    #[test]
    fn silent_columns_stay_so() {
        let (rows, p, n) = (300, 5, 2);
        let mut z = numbers(rows * p, 1);
        let y = numbers(rows * n, 2);
        let weights = vec![1.0; rows];
        let of = |z: &[f32]| {
            let rows = Rows {
                inputs: (z, p),
                targets: (&y, n),
                weights: &weights,
                held_from: 200,
            };
            Sums::of(rows, Par::Seq)
        };
        let matrix = [0.0, 1.0, -0.0, 0.5, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0];
        let silent = silent_columns(&matrix, p);
        assert_eq!(silent, [true, false, true, false, true]);
        let masked = of(&z).without(&silent).all();
        for row in z.chunks_mut(p) {
            for i in [0, 2, 4] {
                row[i] = 0.0;
            }
        }
        let naive = of(&z).all();
        assert_eq!((&masked.gram, &masked.cross), (&naive.gram, &naive.cross));
        let from = Mat::from_fn(p, n, |i, j| f64::from(matrix[j * p + i]));
        let solved = masked.solve(&from, 0.1).unwrap();
        for i in [0, 2, 4] {
            assert!((0..n).all(|j| solved[(i, j)] == 0.0), "{solved:?}");
        }
    }

    /// No other part of the way has a smaller error, within the ends.
    #[test]
    fn strength_is_the_best_part_of_the_way() {
        let (tokens, p, n) = (40, 6, 3);
        let matrix = |rows: usize, columns: usize, seed| {
            let all = numbers(rows * columns, seed);
            Mat::from_fn(rows, columns, |i, j| f64::from(all[i * columns + j]))
        };
        let inputs = matrix(tokens, p, 1);
        let (now, solved) = (matrix(p, n, 2), matrix(p, n, 3));
        let sums_of = |outputs: &Mat<f64>| Normal {
            gram: inputs.transpose() * &inputs,
            cross: inputs.transpose() * outputs,
            target: outputs.squared_norm_l2(),
            rows: tokens,
        };
        for (part, expected) in [(0.3, 0.3), (0.85, 0.85), (1.7, 1.0), (-0.4, 0.0)] {
            let normal = sums_of(&(&inputs * towards(&now, &solved, part)));
            let found = normal.strength(&now, &solved);
            assert!((found - expected).abs() < 1e-9, "{found} for {expected}");
            let least = normal.error(&towards(&now, &solved, found));
            for i in 0..=20 {
                let other = normal.error(&towards(&now, &solved, f64::from(i) / 20.0));
                assert!(least <= other + 1e-9, "{least} against {other} at {i}");
            }
        }
        assert_eq!(sums_of(&matrix(tokens, n, 4)).strength(&now, &now), 0.0);
    }

    #[test]
    fn inputs_of_zeros_change_nothing() {
        let normal = sums(&[0.0; 20], &[1.0; 10], &[1.0; 5]);
        let from = Mat::from_fn(4, 2, |i, j| (i * 2 + j) as f64);
        assert_eq!(normal.solve(&from, 0.01), Some(from));
    }
}
