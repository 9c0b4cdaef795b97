//! How much memory matching takes: the sizes of the buffers through which the
//! Gram matrix of the paper's match functions is streamed.
//!
//! All units' weights never are in memory at once. They pass through one slab:
//! the same range of columns of every unit, so that all pairs meet within it.

/// Side of the square tiles of the Gram matrix. 128 keeps a tile's operands in
/// a second-level cache and wastes little on the diagonal.
pub(super) const TILE: usize = 128;

/// Weights of each unit in a slab, unless the quantization block is larger.
/// More would loosen the error bound of the f32 products, less would cost
/// speed.
const SLAB_ELEMENTS: usize = 2048;

/// Largest slab, unless the quantization block needs a larger one.
const SLAB_BYTES: usize = 64 << 20;

/// Pairs that are compared in `f64` in one pass over the weights.
pub(super) const PAIRS: usize = 1 << 20;

/// Bytes that a pair takes: two indices and a sum.
const PAIR_BYTES: usize = 16;

/// Sizes of the buffers with which units are matched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlabPlan {
    /// Weights of each unit in a slab: a multiple of the granularity.
    pub slab_elements: usize,
    /// The slab: `f32` weights of all units.
    pub slab_bytes: usize,
    /// The `f64` sums of the tiles on and below the diagonal.
    pub gram_bytes: usize,
    /// The pairs that are compared in `f64`.
    pub pair_bytes: usize,
    /// Tiles and packed operands of the threads, at most.
    pub scratch_bytes: usize,
}

impl SlabPlan {
    /// All buffers together.
    pub fn total_bytes(&self) -> usize {
        [
            self.slab_bytes,
            self.gram_bytes,
            self.pair_bytes,
            self.scratch_bytes,
        ]
        .into_iter()
        .fold(0, usize::saturating_add)
    }
}

/// Plans the buffers for `units` units that are compared with each other, whose
/// parts are read in multiples of `granularity`, on `threads` threads.
pub fn plan_slabs(units: usize, granularity: usize, threads: usize) -> SlabPlan {
    let granularity = granularity.max(1);
    let row_bytes = units.max(1).saturating_mul(size_of::<f32>());
    let fitting = SLAB_ELEMENTS.min(SLAB_BYTES / row_bytes);
    let slab_elements = (fitting / granularity).max(1).saturating_mul(granularity);
    let side = units.div_ceil(TILE);
    let tiles = side.saturating_mul(side.saturating_add(1)) / 2;
    let most_pairs = units.saturating_mul(units.saturating_sub(1)) / 2;
    let per_thread = (TILE * TILE + 2 * TILE.saturating_mul(slab_elements)) * size_of::<f32>();
    SlabPlan {
        slab_elements,
        slab_bytes: slab_elements.saturating_mul(row_bytes),
        gram_bytes: tiles.saturating_mul(TILE * TILE * size_of::<f64>()),
        pair_bytes: most_pairs
            .min(PAIRS.saturating_add(units))
            .saturating_mul(PAIR_BYTES),
        scratch_bytes: threads.max(1).saturating_mul(per_thread),
    }
}
