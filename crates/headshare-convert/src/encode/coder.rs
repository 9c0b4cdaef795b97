//! Encoders of ggml's types, a block of columns at a time.

use headshare_runtime::quants::{self, QuantError, TypeInfo};
use rayon::prelude::*;

use super::affine::{self, Affine};
use super::block::{Block, Coded};
use super::error::QuantizeError;
use super::single_scale::SingleScale;
use super::super_blocks::SuperBlocks;

/// How blocks of a ggml type are made.
#[derive(Debug, Clone)]
pub enum Coder {
    /// By our own encoder, with feedback from column to column.
    Affine(Affine),
    /// Likewise, super-blocks of 256 columns.
    Super(SuperBlocks, TypeInfo),
    /// Likewise, blocks with one scale.
    Single(SingleScale, TypeInfo),
    /// By ggml, with the columns' importances.
    Ggml(TypeInfo),
}

/// Columns that are quantized at a time where the type has no blocks.
const PLAIN_WIDTH: usize = 32;

impl Coder {
    /// The coder of ggml type `id`.
    ///
    /// # Errors
    /// When there is no such type.
    pub fn of(id: u32) -> Result<Self, QuantizeError> {
        let info = quants::type_info(id).ok_or(QuantError::UnknownType(id))?;
        if let Some(affine) = Affine::of(info.name) {
            return Ok(Self::Affine(affine));
        }
        if let Some(blocks) = SuperBlocks::of(info.name) {
            return Ok(Self::Super(blocks, info));
        }
        Ok(match SingleScale::of(info.name) {
            Some(blocks) => Self::Single(blocks, info),
            None => Self::Ggml(info),
        })
    }

    /// Columns that are quantized at a time: a block's.
    pub fn block_elems(&self) -> usize {
        match self {
            Self::Affine(_) => affine::WIDTH,
            Self::Super(_, info) | Self::Single(_, info) => info.block_elems,
            Self::Ggml(info) if info.block_elems == 1 => PLAIN_WIDTH,
            Self::Ggml(info) => info.block_elems,
        }
    }

    /// Bytes of `columns` elements of a row; 0 when they are no whole blocks.
    pub fn bytes_of(&self, columns: usize) -> usize {
        let (elems, bytes) = match self {
            Self::Affine(affine) => (affine::WIDTH, affine.block_bytes()),
            Self::Super(_, info) | Self::Single(_, info) | Self::Ggml(info) => {
                (info.block_elems, info.block_bytes)
            }
        };
        if columns.is_multiple_of(elems) {
            columns / elems * bytes
        } else {
            0
        }
    }

    /// Encodes blocks, the same columns of several rows; `old` are the blocks
    /// that stood there, if there were any.
    ///
    /// # Errors
    /// When ggml refuses.
    pub fn encode(
        &self,
        wanted: &[f64],
        block: &Block,
        old: Option<&[u8]>,
    ) -> Result<Coded, QuantizeError> {
        let (mut coded, info) = match self {
            Self::Affine(affine) => return Ok(affine.encode(wanted, block, old)),
            Self::Super(blocks, info) => (blocks.encode(wanted, block), info),
            Self::Single(blocks, info) => (blocks.encode(wanted, block), info),
            Self::Ggml(info) => (self.by_ggml(info, wanted, block)?, info),
        };
        if let Some(old) = old {
            self.keep_better(info, &mut coded, old, wanted, block)?;
        }
        Ok(coded)
    }

    /// Puts the old blocks back where they cost less.
    fn keep_better(
        &self,
        info: &TypeInfo,
        coded: &mut Coded,
        old: &[u8],
        wanted: &[f64],
        block: &Block,
    ) -> Result<(), QuantizeError> {
        let width = block.width();
        let bytes = self.bytes_of(width);
        let mut values = vec![0f32; wanted.len()];
        quants::dequantize_row(info.id, old, &mut values)?;
        for (row, wanted) in wanted.chunks(width).enumerate() {
            let place = row * width..(row + 1) * width;
            let (new, kept) = (&coded.values[place.clone()], &values[place.clone()]);
            if block.cost(wanted, kept) < block.cost(wanted, new) {
                let of_bytes = row * bytes..(row + 1) * bytes;
                coded.bytes[of_bytes.clone()].copy_from_slice(&old[of_bytes]);
                coded.values[place.clone()].copy_from_slice(&values[place]);
            }
        }
        Ok(())
    }

    fn by_ggml(
        &self,
        info: &TypeInfo,
        wanted: &[f64],
        block: &Block,
    ) -> Result<Coded, QuantizeError> {
        let width = block.width();
        let importance: Vec<f32> = (0..width).map(|i| block.importance(i) as f32).collect();
        let importance = info.is_quantized.then_some(importance.as_slice());
        let parts: Vec<Coded> = wanted
            .par_chunks(width * 16)
            .map(|rows| {
                let rows: Vec<f32> = rows.iter().map(|&v| v as f32).collect();
                let bytes = quants::quantize_rows(info.id, &rows, width, importance)?;
                let mut values = vec![0f32; rows.len()];
                quants::dequantize_row(info.id, &bytes, &mut values)?;
                Ok(Coded { bytes, values })
            })
            .collect::<Result<_, QuantizeError>>()?;
        Ok(Coded {
            bytes: parts.iter().flat_map(|p| p.bytes.clone()).collect(),
            values: parts.into_iter().flat_map(|p| p.values).collect(),
        })
    }
}
