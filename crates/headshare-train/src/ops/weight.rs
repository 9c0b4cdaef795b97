//! A parameter as operations see it: its numbers, and where its gradient goes.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::Tensor;

use super::host::{Factor, Numbers};

/// Sums of gradients of one parameter, in the parameter's order.
pub(crate) type Sum = Arc<Mutex<Vec<f32>>>;

/// Rows of a parameter.
///
/// On the CPU our operations read the numbers and add gradients to `sum`
/// themselves: autograd would copy both. On other devices `tensor` is there, a
/// variable, for which candle finds the gradient.
#[derive(Debug, Clone)]
pub(crate) struct Weight {
    /// The whole parameter.
    pub values: Arc<Numbers>,
    /// Which of its numbers.
    pub range: Range<usize>,
    /// Rows of these; 1 for a vector.
    pub rows: usize,
    /// Where to add the gradient; `None` where none is wanted.
    pub sum: Option<Sum>,
    /// The same numbers, for candle's operations.
    pub tensor: Option<Tensor>,
}

impl Weight {
    /// The numbers.
    pub fn values(&self) -> &[f32] {
        &self.values.as_slice()[self.range.clone()]
    }

    /// The numbers as a matrix.
    pub fn factor(&self) -> Factor<'_> {
        self.values
            .factor(self.range.start, self.rows, self.columns())
    }

    /// Numbers of a row.
    pub fn columns(&self) -> usize {
        self.range.len() / self.rows.max(1)
    }

    /// Calls `add` with the sum of gradients so far, if one is wanted.
    pub fn add_gradient(&self, add: impl FnOnce(&mut [f32])) {
        if let Some(sum) = &self.sum {
            add(&mut lock(sum)[self.range.clone()]);
        }
    }
}

/// What a panic elsewhere has left behind is still numbers.
pub(crate) fn lock(sum: &Sum) -> MutexGuard<'_, Vec<f32>> {
    sum.lock().unwrap_or_else(PoisonError::into_inner)
}
