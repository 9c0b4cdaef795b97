//! Dot products of all pairs of rows, streamed: rows pass through in pieces, and
//! only the products' sums stay.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use super::plan::TILE;

/// The Gram matrix of `rows` rows, of which a piece is [added](Self::add) at a
/// time: `f32` products, summed over the pieces in `f64`. The same for any
/// number of threads.
#[derive(Clone, Debug)]
pub struct Products {
    rows: usize,
    /// Row by row, on and below the diagonal.
    tiles: Vec<Tile>,
}

#[derive(Clone, Debug)]
struct Tile {
    row: usize,
    column: usize,
    sums: Vec<f64>,
}

impl Products {
    /// All zero.
    pub fn new(rows: usize) -> Self {
        Self {
            rows,
            tiles: tiles(rows),
        }
    }

    /// Adds the products of a piece: `len` numbers of each row, which stand for
    /// those numbers times the row's scale.
    ///
    /// Within a piece the sums are `f32`, so its length bounds the precision.
    pub fn add(&mut self, piece: &[f32], len: usize, scales: &[f64]) {
        add_products(&mut self.tiles, piece, len, scales);
    }

    /// Sets all products to zero.
    pub fn clear(&mut self) {
        for tile in &mut self.tiles {
            tile.sums.fill(0.0);
        }
    }

    /// The dot product of two rows.
    pub fn get(&self, a: usize, b: usize) -> f64 {
        let (row, column) = if a < b { (b, a) } else { (a, b) };
        let (r, c) = (row / TILE, column / TILE);
        let tile = &self.tiles[r * (r + 1) / 2 + c];
        let width = TILE.min(self.rows - c * TILE);
        tile.sums[(row % TILE) * width + column % TILE]
    }
}

/// The tiles on and below the diagonal, row by row.
fn tiles(rows: usize) -> Vec<Tile> {
    (0..rows.div_ceil(TILE))
        .flat_map(|row| (0..=row).map(move |column| (row, column)))
        .map(|(row, column)| Tile {
            row,
            column,
            sums: vec![0.0; TILE.min(rows - row * TILE) * TILE.min(rows - column * TILE)],
        })
        .collect()
}

/// Adds a slab's products to the tiles: `len` scaled weights a row, to be
/// multiplied by the rows' `scales`.
fn add_products(tiles: &mut [Tile], slab: &[f32], len: usize, scales: &[f64]) {
    let units = scales.len();
    let rows = |tile: usize| {
        let first = tile * TILE;
        let count = TILE.min(units - first);
        let weights = MatRef::from_row_major_slice(&slab[first * len..][..count * len], count, len);
        (weights, &scales[first..][..count])
    };
    tiles.par_iter_mut().with_max_len(1).for_each_init(
        || vec![0.0f32; TILE * TILE],
        |scratch, tile| {
            let (left, row_scales) = rows(tile.row);
            let (right, column_scales) = rows(tile.column);
            let (height, width) = (row_scales.len(), column_scales.len());
            let products = &mut scratch[..height * width];
            matmul(
                MatMut::from_row_major_slice_mut(products, height, width),
                Accum::Replace,
                left,
                right.transpose(),
                1.0,
                Par::Seq,
            );
            let lines = tile
                .sums
                .chunks_exact_mut(width)
                .zip(products.chunks_exact(width));
            for ((sums, products), row_scale) in lines.zip(row_scales) {
                let columns = sums.iter_mut().zip(products).zip(column_scales);
                for ((sum, &product), column_scale) in columns {
                    *sum += f64::from(product) * (row_scale * column_scale);
                }
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_the_lower_triangle_once() {
        for rows in [0, 1, TILE - 1, TILE, TILE + 1, 3 * TILE + 5] {
            let entries: usize = tiles(rows).iter().map(|tile| tile.sums.len()).sum();
            let diagonal: usize = (0..rows)
                .step_by(TILE)
                .map(|i| TILE.min(rows - i).pow(2))
                .sum();
            assert_eq!(2 * entries, rows * rows + diagonal, "{rows} rows");
        }
    }
}
