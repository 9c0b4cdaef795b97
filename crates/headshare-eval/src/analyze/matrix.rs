//! Symmetric matrices, stored once.

use serde::ser::{Serialize, SerializeSeq, Serializer};

/// A symmetric matrix: the lower triangle with the diagonal, row by row.
#[derive(Debug, Clone, PartialEq)]
pub struct SymmetricMatrix {
    n: usize,
    values: Vec<f64>,
}

impl SymmetricMatrix {
    /// `n` rows and columns of zeros.
    pub fn zeros(n: usize) -> Self {
        Self {
            n,
            values: vec![0.0; n * (n + 1) / 2],
        }
    }

    /// Rows, and columns.
    pub fn len(&self) -> usize {
        self.n
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.n == 0
    }

    /// One value.
    pub fn get(&self, a: usize, b: usize) -> f64 {
        let (row, column) = if a < b { (b, a) } else { (a, b) };
        assert!(row < self.n, "row {row} of {}", self.n);
        self.values[row * (row + 1) / 2 + column]
    }

    /// Adds `value(row, column)` everywhere; asked for row >= column only.
    pub(super) fn add(&mut self, mut value: impl FnMut(usize, usize) -> f64) {
        let mut values = self.values.iter_mut();
        for row in 0..self.n {
            for (column, sum) in (0..=row).zip(&mut values) {
                *sum += value(row, column);
            }
        }
    }

    /// Divides all by `divisor`.
    pub(super) fn divide(&mut self, divisor: f64) {
        self.values.iter_mut().for_each(|value| *value /= divisor);
    }

    /// The values below the diagonal with their rows and columns, row by row.
    pub fn pairs(&self) -> impl Iterator<Item = (usize, usize, f64)> + '_ {
        (0..self.n)
            .flat_map(|row| (0..row).map(move |column| (row, column)))
            .map(|(row, column)| (row, column, self.get(row, column)))
    }
}

/// As rows of all columns, in single precision; what is not a number is null.
impl Serialize for SymmetricMatrix {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut rows = serializer.serialize_seq(Some(self.n))?;
        for row in 0..self.n {
            let values: Vec<f32> = (0..self.n).map(|c| self.get(row, c) as f32).collect();
            rows.serialize_element(&values)?;
        }
        rows.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_triangles_are_one() {
        let mut matrix = SymmetricMatrix::zeros(3);
        matrix.add(|a, b| (10 * a + b) as f64);
        matrix.add(|a, b| (10 * a + b) as f64);
        matrix.divide(2.0);
        assert_eq!((matrix.get(2, 1), matrix.get(1, 2)), (21.0, 21.0));
        let pairs: Vec<_> = matrix.pairs().collect();
        assert_eq!(pairs, [(1, 0, 10.0), (2, 0, 20.0), (2, 1, 21.0)]);
        assert_eq!(
            serde_json::to_string(&matrix).unwrap(),
            "[[0.0,10.0,20.0],[10.0,11.0,21.0],[20.0,21.0,22.0]]"
        );
    }
}
