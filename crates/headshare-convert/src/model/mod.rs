//! Knows where the attention heads are in a GGUF file: which rows of which
//! tensor belong to which head of which layer.
//!
//! What the tensors of an architecture mean is not guessed from their names
//! (`attn_qkv` also occurs in layers with linear attention): [`architecture`]
//! looks it up in a table with one row for each architecture of the bundled
//! llama.cpp. [`AttentionMap::of`] then holds a file against its row, down to
//! the number of rows of every tensor, and refuses what does not fit with a
//! sentence that names the architecture, the layer or the tensor. A file that
//! is refused can still be converted losslessly, as whole tensors.
//!
//! Rows are output features, so a head's block is a run of consecutive rows:
//!
//! - separate tensors `blk.N.attn_q`, `attn_k`, `attn_v`: head h is rows
//!   `h*d..(h+1)*d`;
//! - one fused tensor `blk.N.attn_qkv`: the same three stacked, all q heads,
//!   then all k heads, then all v heads.
//!
//! KV head g serves the q heads `g*r..(g+1)*r`, r = n_head / n_head_kv; these
//! r + 2 blocks are unit g of the layer. Biases, norms, gates and sinks are not
//! part of a block: they stay with their head.

mod architecture;
mod blocks;
mod error;
mod hyper;
mod map;
mod names;
mod shape;
mod table;
#[cfg(test)]
mod tests;
mod units;

pub use architecture::{Architecture, Attention, HeadSize, Layout, Residual};
pub use blocks::{AttentionLayer, BlockTensor, HeadBlock, RowsRange};
pub use error::{About, HeadsError};
pub use map::AttentionMap;
pub use names::{in_layer, layer_of};
pub use shape::shape;
pub use table::{ARCHITECTURES, architecture};
pub use units::{Part, UnitId};
