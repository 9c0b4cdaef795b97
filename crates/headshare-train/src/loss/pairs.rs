//! The distance of paired heads, PostShare's own loss.

use headshare_convert::model::RowsRange;

use crate::error::TrainError;
use crate::model::Model;
use crate::ops::squares;
use crate::parameters::{Gradients, rows_in};

/// Pairs of heads that training pulls together.
#[derive(Debug, Clone)]
pub struct HeadPairs {
    /// For each pair, its blocks: parameter, first number, numbers, of both heads.
    pairs: Vec<Vec<(Block, Block)>>,
}

#[derive(Debug, Clone, PartialEq)]
struct Block {
    parameter: usize,
    numbers: std::ops::Range<usize>,
}

impl HeadPairs {
    /// Pairs of blocks, each as rows of the tensors of the model that `model` was
    /// loaded from: for each pair its q, k and v blocks, or those that are shared.
    ///
    /// # Errors
    /// When rows are not there, or those of a pair are not as many.
    pub fn new(
        model: &Model,
        variant: &headshare_convert::convert::variant::Variant<'_>,
        pairs: &[Vec<(RowsRange, RowsRange)>],
    ) -> Result<Self, TrainError> {
        let list = model.parameters().list();
        let block = |range: &RowsRange| -> Result<Block, TrainError> {
            let (parameter, rows) = rows_in(variant, range)?;
            let columns = list[parameter].columns;
            let numbers = rows.start * columns..rows.end * columns;
            Ok(Block { parameter, numbers })
        };
        let blocks = |pair: &Vec<(RowsRange, RowsRange)>| {
            let each = pair.iter().map(|(a, b)| {
                let (a, b) = (block(a)?, block(b)?);
                match a.numbers.len() == b.numbers.len() {
                    true => Ok((a, b)),
                    false => Err(TrainError::option("pairs", "blocks are not alike")),
                }
            });
            each.collect::<Result<Vec<_>, TrainError>>()
        };
        let pairs = pairs.iter().map(blocks).collect::<Result<_, _>>()?;
        Ok(Self { pairs })
    }

    /// How many pairs there are: N.
    pub fn len(&self) -> usize {
        self.pairs.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// For each pair the sum over its blocks of the Frobenius norm of the difference.
    pub fn distances(&self, model: &Model) -> Vec<f64> {
        let of = |pair: &Vec<(Block, Block)>| pair.iter().map(|(a, b)| norm(model, a, b).1).sum();
        self.pairs.iter().map(of).collect()
    }

    /// L_w (the paper's equations 4 and 5), the mean over the pairs of
    /// [`distances`](Self::distances).
    pub fn loss(&self, model: &Model) -> f64 {
        self.distances(model).iter().sum::<f64>() / self.pairs.len().max(1) as f64
    }

    /// Adds `gamma` times the gradient of L_w to `sums` and gives L_w. With D the
    /// difference of two blocks, the gradient is D / (N |D|) for one and its negative
    /// for the other; where D is 0, it is 0.
    pub fn add_gradients(&self, model: &Model, gamma: f32, sums: &Gradients) -> f64 {
        let n = self.pairs.len().max(1) as f64;
        let mut total = 0.0;
        for (a, b) in self.pairs.iter().flatten() {
            let (difference, norm) = norm(model, a, b);
            total += norm;
            if norm == 0.0 {
                continue;
            }
            let factor = (f64::from(gamma) / (n * norm)) as f32;
            for (block, factor) in [(a, factor), (b, -factor)] {
                sums.with(block.parameter, |sum| {
                    for (sum, d) in sum[block.numbers.clone()].iter_mut().zip(&difference) {
                        *sum += factor * d;
                    }
                });
            }
        }
        total / n
    }
}

/// The difference of two blocks and its Frobenius norm.
fn norm(model: &Model, a: &Block, b: &Block) -> (Vec<f32>, f64) {
    let list = model.parameters().list();
    let of = |block: &Block| &list[block.parameter].values()[block.numbers.clone()];
    let difference: Vec<f32> = of(a).iter().zip(of(b)).map(|(a, b)| a - b).collect();
    let norm = squares(&difference).sqrt();
    (difference, norm)
}
