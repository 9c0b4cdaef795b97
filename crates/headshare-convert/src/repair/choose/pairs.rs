//! What one unit of a layer costs when another one's features stand in for its
//! own, or nothing does, and the layer's `attn_output` is refitted.
//!
//! With G the Gram matrix of all features of a layer (weighted rows) and
//! K = (G + eps I)^-1, what the other units leave unexplained of unit a is
//! K_aa^-1. A donor's features F add to what explains it: with c = Z^T F,
//! Y = K c and C = K_aa^-1 Y_a, the rest is
//!
//! S = K_aa^-1 - C D^-1 C^T,  D = F^T F + eps I - c^T Y + Y_a^T C,
//!
//! so that each layer is inverted once, each donor multiplied with it once, and
//! a pair costs no more than a matrix of one unit's size.

use std::ops::Range;

use faer::linalg::solvers::{DenseSolveCore, Solve};
use faer::{Mat, MatRef, Side};

/// eps, relative to the mean diagonal of the Gram matrix.
const RIDGE: f64 = 1e-3;

/// The features of one layer.
#[derive(Debug)]
pub struct Layer {
    inverse: Mat<f64>,
    ridge: f64,
    units: Vec<Unit>,
}

#[derive(Debug)]
struct Unit {
    columns: Range<usize>,
    /// `K_aa^-1`.
    rest: Mat<f64>,
    /// What the layer makes of the features: `O_a^T O_a`.
    outputs: Mat<f64>,
}

/// Features that could stand in for a unit's.
#[derive(Debug)]
pub struct Donor {
    /// K c.
    image: Mat<f64>,
    /// D without the unit's part.
    rest: Mat<f64>,
}

/// How a unit's features follow from others: features = own x + donor y.
#[derive(Debug, Clone, PartialEq)]
pub struct Fit {
    /// A row for each of the unit's features, a column for each of the layer's;
    /// zeros for the unit's own.
    pub own: Mat<f32>,
    /// A column for each of the donor's features; none without a donor.
    pub donor: Mat<f32>,
}

impl Layer {
    /// `gram` is Z^T Z; `outputs` are the columns of `attn_output` of each unit,
    /// which has the features `columns`. `None` when sums are not finite.
    pub fn new(gram: &Mat<f64>, units: Vec<(Range<usize>, Mat<f64>)>) -> Option<Self> {
        let p = gram.nrows();
        let trace: f64 = (0..p).map(|i| gram[(i, i)]).sum();
        let ridge = RIDGE * trace / p as f64;
        let ridge = if ridge > 0.0 { ridge } else { 1.0 };
        let mut ridged = gram.clone();
        (0..p).for_each(|i| ridged[(i, i)] += ridge);
        let inverse = ridged.llt(Side::Lower).ok()?.inverse();
        let units = units
            .into_iter()
            .map(|(columns, outputs)| {
                let n = columns.len();
                let own = inverse.submatrix(columns.start, columns.start, n, n);
                Some(Unit {
                    rest: own.llt(Side::Lower).ok()?.inverse(),
                    outputs: outputs.transpose() * &outputs,
                    columns,
                })
            })
            .collect::<Option<_>>()?;
        inverse.is_all_finite().then_some(Self {
            inverse,
            ridge,
            units,
        })
    }

    /// The weighted squares that the outputs lose when unit `a` goes.
    pub fn cost_of_dropping(&self, a: usize) -> f64 {
        self.cost(&self.units[a], &self.units[a].rest)
    }

    /// Features of a donor: `cross` is Z^T F, `own` F^T F.
    pub fn donor(&self, cross: MatRef<'_, f64>, own: &Mat<f64>) -> Donor {
        let image = &self.inverse * cross;
        let mut rest = own - cross.transpose() * &image;
        (0..rest.nrows()).for_each(|i| rest[(i, i)] += self.ridge);
        Donor { image, rest }
    }

    /// The weighted squares that the outputs lose when `donor` stands in for
    /// unit `a`; `None` when sums are not finite.
    pub fn cost_of_sharing(&self, a: usize, donor: &Donor) -> Option<f64> {
        let unit = &self.units[a];
        let (image, solved) = unit.with(donor)?;
        let rest = &unit.rest - &image * &solved;
        Some(self.cost(unit, &rest))
    }

    fn cost(&self, unit: &Unit, rest: &Mat<f64>) -> f64 {
        let n = rest.nrows();
        let mut cost = 0.0;
        for j in 0..n {
            for i in 0..n {
                let ridge = if i == j { self.ridge } else { 0.0 };
                cost += (rest[(i, j)] - ridge) * unit.outputs[(i, j)];
            }
        }
        // Not `max`, which would make a sum that is no number cost nothing.
        if cost < 0.0 { 0.0 } else { cost }
    }

    /// How unit `a`'s features follow from those of the others.
    pub fn fit_dropped(&self, a: usize) -> Fit {
        let unit = &self.units[a];
        Fit {
            own: self.by_others(unit, None),
            donor: Mat::zeros(unit.columns.len(), 0),
        }
    }

    /// How unit `a`'s features follow from those of the others and the donor.
    pub fn fit_shared(&self, a: usize, donor: &Donor) -> Option<Fit> {
        let unit = &self.units[a];
        let (image, solved) = unit.with(donor)?;
        let coefficients = solved.transpose().to_owned();
        // What the donor's features have in common with the others'.
        let start = unit.columns.start;
        let n = unit.columns.len();
        let columns = self.inverse.subcols(start, n);
        let common = &donor.image - columns * &image;
        Some(Fit {
            own: self.by_others(unit, Some(&coefficients * common.transpose())),
            donor: single(&coefficients),
        })
    }

    fn by_others(&self, unit: &Unit, less: Option<Mat<f64>>) -> Mat<f32> {
        let rows = self.inverse.subrows(unit.columns.start, unit.columns.len());
        let mut all = &unit.rest * rows;
        if let Some(less) = less {
            all += less;
        }
        Mat::from_fn(all.nrows(), all.ncols(), |i, j| {
            if unit.columns.contains(&j) {
                0.0
            } else {
                -all[(i, j)] as f32
            }
        })
    }
}

impl Unit {
    /// C and D^-1 C^T.
    fn with(&self, donor: &Donor) -> Option<(Mat<f64>, Mat<f64>)> {
        let own = donor.image.subrows(self.columns.start, self.columns.len());
        let image = &self.rest * own;
        let rest = &donor.rest + own.transpose() * &image;
        let llt = rest.llt(Side::Lower).ok()?;
        let solved = llt.solve(image.transpose());
        solved.is_all_finite().then_some((image, solved))
    }
}

fn single(values: &Mat<f64>) -> Mat<f32> {
    Mat::from_fn(values.nrows(), values.ncols(), |i, j| values[(i, j)] as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(rows: usize, columns: usize, seed: u64) -> Mat<f64> {
        let mut state = seed;
        Mat::from_fn(rows, columns, |_, _| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f64 / f64::from(1u32 << 23) - 1.0
        })
    }

    /// Least squares with a ridge on every column, the plain way: the
    /// coefficients, and the part of `outputs` that they do not explain, ridge
    /// included.
    fn naive(x: &Mat<f64>, z: &Mat<f64>, outputs: &Mat<f64>, ridge: f64) -> (Mat<f64>, f64) {
        let mut gram = x.transpose() * x;
        (0..gram.nrows()).for_each(|i| gram[(i, i)] += ridge);
        let coefficients = gram.llt(Side::Lower).unwrap().solve(x.transpose() * z);
        let left = z - x * &coefficients;
        let cost = (&left * outputs.transpose()).squared_norm_l2()
            + ridge * (outputs * coefficients.transpose()).squared_norm_l2();
        (coefficients, cost)
    }

    #[test]
    fn costs_and_fits_are_those_of_plain_least_squares() {
        let (rows, width) = (60, 3);
        let z = numbers(rows, 3 * width, 1);
        let f = numbers(rows, width, 2) + z.subcols(3, width) * 0.7;
        let outputs = numbers(5, 3 * width, 3);
        let units = (0..3)
            .map(|a| {
                let columns = a * width..(a + 1) * width;
                let of_unit = outputs.subcols(columns.start, width).to_owned();
                (columns, of_unit)
            })
            .collect();
        let gram = z.transpose() * &z;
        let layer = Layer::new(&gram, units).unwrap();
        let cross = z.transpose() * &f;
        let donor = layer.donor(cross.as_ref(), &(f.transpose() * &f));
        for a in 0..3 {
            let of_unit = outputs.subcols(a * width, width).to_owned();
            let own = z.subcols(a * width, width).to_owned();
            let others: Vec<usize> = (0..3 * width).filter(|c| c / width != a).collect();
            for shared in [false, true] {
                let columns = others.len() + if shared { width } else { 0 };
                let x = Mat::from_fn(rows, columns, |t, c| match others.get(c) {
                    Some(&c) => z[(t, c)],
                    None => f[(t, c - others.len())],
                });
                let (coefficients, cost) = naive(&x, &own, &of_unit, layer.ridge);
                let (got, fit) = if shared {
                    (
                        layer.cost_of_sharing(a, &donor).unwrap(),
                        layer.fit_shared(a, &donor).unwrap(),
                    )
                } else {
                    (layer.cost_of_dropping(a), layer.fit_dropped(a))
                };
                assert!(
                    (got - cost).abs() < 1e-9 * cost,
                    "{a} {shared}: {got} {cost}"
                );
                for i in 0..width {
                    for (c, &column) in others.iter().enumerate() {
                        let off = f64::from(fit.own[(i, column)]) - coefficients[(c, i)];
                        assert!(off.abs() < 1e-6, "{a} {shared} {i} {c}");
                    }
                    for c in 0..fit.donor.ncols() {
                        let expected = coefficients[(others.len() + c, i)];
                        let off = f64::from(fit.donor[(i, c)]) - expected;
                        assert!(off.abs() < 1e-6, "{a} {i} {c}");
                    }
                    assert!((0..width).all(|c| fit.own[(i, a * width + c)] == 0.0));
                }
            }
        }
    }
}
