//! What [`super::descent`] has to know of a type: its blocks are levels, and each part
//! of a block has a scale and a base, so that a weight is scale x level + base.

use super::feedback::Levels;

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
