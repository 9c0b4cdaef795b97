//! The distance of paired heads, PostShare's own loss.

use headshare_convert::convert::variant::Variant;
use headshare_convert::model::RowsRange;

use crate::error::TrainError;
use crate::model::Model;
use crate::ops::squares;
use crate::parameters::{Gradients, Parameters, Tie, ties};

/// Pairs of heads that training pulls together.
#[derive(Debug, Clone)]
pub struct HeadPairs {
    /// For each pair, its blocks, which may be tied in the end.
    pairs: Vec<Vec<Tie>>,
    /// N: where q, k and v are paired apart, there are as many of each.
    count: usize,
}

impl HeadPairs {
    /// Pairs of blocks, each as rows of the tensors of the model that `model` was
    /// loaded from: for each pair its q, k and v blocks, or those that are shared. `count`
    /// is the paper's N, by which L_w is divided.
    ///
    /// # Errors
    /// When rows are not there, those of a pair are not alike, or a donor is to share
    /// itself.
    pub fn new(
        model: &Model,
        variant: &Variant<'_>,
        pairs: &[Vec<(RowsRange, RowsRange)>],
        count: usize,
    ) -> Result<Self, TrainError> {
        let pairs = pairs.iter().map(|pair| ties(variant, pair));
        let pairs = Self {
            pairs: pairs.collect::<Result<_, _>>()?,
            count: count.max(1),
        };
        model.parameters().check_ties(&pairs.pairs.concat())?;
        Ok(pairs)
    }

    /// Lets the pairs of `parameters` share: aliases get their donors' numbers.
    ///
    /// # Errors
    /// When they are not the parameters of the model that the pairs are of.
    pub fn share(&self, parameters: &mut Parameters) -> Result<(), TrainError> {
        parameters.tie_all(self.pairs.concat())
    }

    /// How many pairs there are.
    pub fn len(&self) -> usize {
        self.pairs.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// For each pair the sum over its blocks of the Frobenius norm of the difference.
    pub fn distances(&self, model: &Model) -> Vec<f64> {
        let of = |pair: &Vec<Tie>| pair.iter().map(|tie| norm(model, tie).1).sum();
        self.pairs.iter().map(of).collect()
    }

    /// L_w (the paper's equations 4 and 5): the sum of [`distances`](Self::distances)
    /// over N.
    pub fn loss(&self, model: &Model) -> f64 {
        self.distances(model).iter().sum::<f64>() / self.count as f64
    }

    /// Adds `gamma` times the gradient of L_w to `sums` and gives L_w. With D the
    /// difference of two blocks, the gradient is D / (N |D|) for one and its negative
    /// for the other; where D is 0, it is 0.
    pub fn add_gradients(&self, model: &Model, gamma: f32, sums: &Gradients) -> f64 {
        let n = self.count as f64;
        let mut total = 0.0;
        let parameters = model.parameters();
        for tie in self.pairs.iter().flatten() {
            let (difference, norm) = norm(model, tie);
            total += norm;
            if norm == 0.0 {
                continue;
            }
            let factor = (f64::from(gamma) / (n * norm)) as f32;
            for (rows, factor) in [(&tie.alias, factor), (&tie.donor, -factor)] {
                sums.with(rows.0, |sum| {
                    for (sum, d) in sum[parameters.numbers(rows)].iter_mut().zip(&difference) {
                        *sum += factor * d;
                    }
                });
            }
        }
        total / n
    }
}

/// The difference of two blocks and its Frobenius norm.
fn norm(model: &Model, tie: &Tie) -> (Vec<f32>, f64) {
    let parameters = model.parameters();
    let (a, b) = (parameters.rows(&tie.alias), parameters.rows(&tie.donor));
    let difference: Vec<f32> = a.iter().zip(b).map(|(a, b)| a - b).collect();
    let norm = squares(&difference).sqrt();
    (difference, norm)
}
