//! Attention layers, and the rows of their heads.

use std::ops::Range;

use headshare_format::{GgmlType, TensorInfo};

use crate::model::{Part, UnitId};

/// One layer with heads that can be shared.
///
/// `n_head` is a multiple of `n_head_kv`, and neither is 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttentionLayer {
    /// Which one, counted from 0 (the N of `blk.N`).
    pub layer: u32,
    /// Query heads.
    pub n_head: u32,
    /// Key and value heads: the layer's units.
    pub n_head_kv: u32,
    /// Rows of a q and of a k head.
    pub key_length: u64,
    /// Rows of a v head.
    pub value_length: u64,
    /// Where the q heads are.
    pub q: BlockTensor,
    /// Where the k heads are.
    pub k: BlockTensor,
    /// Where the v heads are.
    pub v: BlockTensor,
}

impl AttentionLayer {
    /// Query heads that share one key and value head.
    pub fn heads_per_unit(&self) -> u32 {
        self.n_head / self.n_head_kv
    }

    /// Where the heads of `part` are.
    pub fn tensor(&self, part: Part) -> &BlockTensor {
        match part {
            Part::Q => &self.q,
            Part::K => &self.k,
            Part::V => &self.v,
        }
    }

    /// Whether q, k and v are rows of one tensor.
    pub fn is_fused(&self) -> bool {
        self.q.tensor == self.k.tensor
    }

    /// Columns of `attn_output` that belong to a unit.
    pub fn output_width(&self) -> u64 {
        u64::from(self.heads_per_unit()) * self.value_length
    }

    /// Those of `unit`.
    pub fn output_columns(&self, unit: u32) -> Range<u64> {
        let width = self.output_width();
        u64::from(unit) * width..u64::from(unit + 1) * width
    }

    /// Checks that the layer's `attn_output`, `output`, has the columns of all units and no
    /// others.
    ///
    /// # Errors
    /// Says how many it has.
    pub fn check_output(&self, output: &TensorInfo) -> Result<(), String> {
        let has = output.row_elems();
        let units = u128::from(self.n_head_kv) * u128::from(self.output_width());
        if u128::from(has) == units {
            return Ok(());
        }
        Err(format!(
            "has {has} columns, which are not those of its heads"
        ))
    }

    /// The heads of `part` that belong to `unit`.
    pub fn heads(&self, part: Part, unit: u32) -> Range<u32> {
        let n = match part {
            Part::Q => self.heads_per_unit(),
            Part::K | Part::V => 1,
        };
        unit * n..(unit + 1) * n
    }

    /// The units of the layer, ascending.
    pub fn units(&self) -> impl Iterator<Item = UnitId> + use<> {
        let layer = self.layer;
        (0..self.n_head_kv).map(move |unit| UnitId { layer, unit })
    }
}

/// The rows of a tensor that hold the heads of one part, one head after the
/// other. The rows of a fused tensor are three of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockTensor {
    /// Index in [`Gguf::tensors`](headshare_format::Gguf::tensors).
    pub tensor: usize,
    /// Type of the tensor's elements.
    pub ggml_type: GgmlType,
    /// Elements of a row.
    pub row_elems: u64,
    /// Bytes of a row.
    pub row_bytes: u64,
    /// The first head's first row.
    pub first_row: u64,
    /// Rows of a head.
    pub rows_per_head: u64,
    /// Heads.
    pub heads: u32,
}

impl BlockTensor {
    /// The heads of a layer's part as rows of `info`, the tensor at `tensor`.
    /// The caller has checked that the tensor has these rows.
    pub(super) fn new(
        tensor: usize,
        info: &TensorInfo,
        first_row: u64,
        rows_per_head: u64,
        heads: u32,
    ) -> Self {
        debug_assert!(first_row + rows_per_head * u64::from(heads) <= info.rows());
        Self {
            tensor,
            ggml_type: info.ggml_type,
            row_elems: info.row_elems(),
            row_bytes: info.row_bytes(),
            first_row,
            rows_per_head,
            heads,
        }
    }

    /// All rows of the part.
    pub fn rows(&self) -> u64 {
        u64::from(self.heads) * self.rows_per_head
    }

    /// The bytes of consecutive heads, which must be among the part's.
    pub fn range(&self, heads: Range<u32>) -> RowsRange {
        debug_assert!(heads.start <= heads.end && heads.end <= self.heads);
        let rows = u64::from(heads.end - heads.start) * self.rows_per_head;
        let first = self.first_row + u64::from(heads.start) * self.rows_per_head;
        RowsRange {
            tensor: self.tensor,
            offset: first * self.row_bytes,
            len: rows * self.row_bytes,
        }
    }
}

/// Consecutive whole rows of a tensor, as bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowsRange {
    /// Index in [`Gguf::tensors`](headshare_format::Gguf::tensors).
    pub tensor: usize,
    /// Where the first row begins, in bytes from the tensor's start.
    pub offset: u64,
    /// Bytes of all rows.
    pub len: u64,
}

/// The block of one q, k or v head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadBlock {
    /// The layer.
    pub layer: u32,
    /// Query, key or value.
    pub part: Part,
    /// The head among those of its part.
    pub head: u32,
    /// Its rows.
    pub rows: RowsRange,
}
