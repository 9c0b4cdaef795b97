//! Columns that are quantized together, and what they become.

use faer::Mat;

/// Encoded blocks.
#[derive(Debug, Clone, Default)]
pub struct Coded {
    /// Their bytes.
    pub bytes: Vec<u8>,
    /// What they stand for.
    pub values: Vec<f32>,
}

impl Coded {
    /// Puts `other` after these.
    pub fn append(&mut self, other: Self) {
        self.bytes.extend(other.bytes);
        self.values.extend(other.values);
    }
}

/// A matrix that is encoded.
#[derive(Debug, Clone)]
pub struct EncodedMatrix {
    /// Rows of blocks, as ggml lays them out.
    pub bytes: Vec<u8>,
    /// What they stand for, transposed: a column for each row.
    pub weights: Mat<f64>,
}

/// A block of columns: the part of U between them.
#[derive(Debug, Clone)]
pub struct Block {
    width: usize,
    /// Row after row.
    upper: Vec<f64>,
}

impl Block {
    pub(super) fn new(upper: faer::MatRef<'_, f64>) -> Self {
        let width = upper.nrows();
        Self {
            width,
            upper: (0..width)
                .flat_map(|i| (0..width).map(move |j| upper[(i, j)]))
                .collect(),
        }
    }

    /// Its columns.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Row `i` of U, from the diagonal on.
    pub fn row(&self, i: usize) -> &[f64] {
        &self.upper[i * self.width + i..(i + 1) * self.width]
    }

    /// What an error of 1 in column `i` costs once the columns after it make
    /// up for it.
    pub fn importance(&self, i: usize) -> f64 {
        let diagonal = self.row(i)[0];
        1.0 / (diagonal * diagonal)
    }

    /// What rounding `wanted` to `got` costs, once the columns after this block
    /// make up for it.
    pub fn cost(&self, wanted: &[f64], got: &[f32]) -> f64 {
        self.solve(wanted, got).iter().map(|e| e * e).sum()
    }

    /// (wanted - got) U^-1.
    pub(super) fn solve(&self, wanted: &[f64], got: &[f32]) -> Vec<f64> {
        let mut error: Vec<f64> = wanted
            .iter()
            .zip(got)
            .map(|(w, &g)| w - f64::from(g))
            .collect();
        for i in 0..self.width {
            let row = self.row(i);
            error[i] /= row[0];
            let value = error[i];
            for (later, factor) in error[i + 1..].iter_mut().zip(&row[1..]) {
                *later -= value * factor;
            }
        }
        error
    }
}
