//! What [`super::descent`] has to know of a type: its blocks are levels, and each part
//! of a block has a scale and a base, so that a weight is scale x level + base.

use super::feedback::{Grid, Levels};

/// A type of ggml whose blocks are like that.
pub(super) trait LevelType: Sync {
    /// A block, decoded.
    type Block: Clone + Send + Sync;

    /// Weights of a block.
    fn width(&self) -> usize;
    /// Weights that have a scale and a base in common.
    fn part(&self) -> usize;
    /// Bytes of a block.
    fn block_bytes(&self) -> usize;
    /// The levels that there are.
    fn levels(&self) -> Levels;
    /// Whether bases are stored; they are 0 otherwise.
    fn has_base(&self) -> bool;

    /// A stored block.
    fn unpack(&self, bytes: &[u8]) -> Self::Block;
    /// Appends a block as it is stored.
    fn pack(&self, block: &Self::Block, out: &mut Vec<u8>);
    /// Weight `i`, as ggml's dequantizer computes it.
    fn value(&self, block: &Self::Block, i: usize) -> f32;

    /// The level of weight `i` of a part.
    fn level_mut<'b>(&self, block: &'b mut Self::Block, part: usize, i: usize) -> &'b mut i8;
    /// The scale of a part.
    fn scale(&self, block: &Self::Block, part: usize) -> f64;
    /// The same block with the scale that is closest to `scale` and can be stored;
    /// `None` where that is the one it has.
    fn with_scale(&self, block: &Self::Block, part: usize, scale: f64) -> Option<Self::Block>;
    /// The base of a part.
    fn base(&self, block: &Self::Block, part: usize) -> f64;
    /// The same for the base.
    fn with_base(&self, block: &Self::Block, part: usize, base: f64) -> Option<Self::Block>;
}

/// Blocks with the levels of `silent` weights as close to zero as their scales and bases
/// allow; all else of them stays.
pub(super) fn silence<T: LevelType>(of: &T, blocks: &[u8], silent: &[bool]) -> Vec<u8> {
    let mut out = Vec::with_capacity(blocks.len());
    let levels = of.levels();
    for bytes in blocks.chunks(of.block_bytes()) {
        let mut block = of.unpack(bytes);
        for i in (0..of.width()).filter(|&i| silent[i]) {
            let (part, i) = (i / of.part(), i % of.part());
            let grid = Grid {
                levels: &levels,
                scale: of.scale(&block, part),
                base: of.base(&block, part),
            };
            *of.level_mut(&mut block, part, i) = grid.nearest(0.0);
        }
        of.pack(&block, &mut out);
    }
    out
}
