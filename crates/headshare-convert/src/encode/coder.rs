//! Encoders of ggml's types, a block of columns at a time.

use faer::{Mat, Par};
use headshare_runtime::quants::{self, QuantError, TypeInfo};
use rayon::prelude::*;

use super::affine::Affine;
use super::block::{Block, Coded, EncodedMatrix};
use super::descent::descend;
use super::error::QuantizeError;
use super::level_type::silence;
use super::single_scale::SingleScale;
use super::super_blocks::SuperBlocks;

/// How blocks of a ggml type are made.
#[derive(Debug, Clone)]
pub struct Coder {
    info: TypeInfo,
    by: By,
}

/// Who makes them.
#[derive(Debug, Clone)]
enum By {
    /// Our own encoder, with feedback from column to column.
    Affine(Affine),
    /// Likewise, super-blocks of 256 columns.
    Super(SuperBlocks),
    /// Likewise, blocks with one scale.
    Single(SingleScale),
    /// ggml, with the columns' importances.
    Ggml,
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
        let ours = (Affine::of(info.name).map(By::Affine))
            .or_else(|| SuperBlocks::of(info.name).map(By::Super))
            .or_else(|| SingleScale::of(info.name).map(By::Single));
        let by = ours.unwrap_or(By::Ggml);
        Ok(Self { info, by })
    }

    /// The type's number.
    pub fn id(&self) -> u32 {
        self.info.id
    }

    /// Columns that are quantized at a time: a block's.
    pub fn block_elems(&self) -> usize {
        match self.info.block_elems {
            1 => PLAIN_WIDTH,
            elems => elems,
        }
    }

    /// Bytes of `columns` elements of a row; 0 when they are no whole blocks.
    pub fn bytes_of(&self, columns: usize) -> usize {
        let TypeInfo {
            block_elems,
            block_bytes,
            ..
        } = self.info;
        match columns.is_multiple_of(block_elems) {
            true => columns / block_elems * block_bytes,
            false => 0,
        }
    }

    /// Blocks in which weights that are `silent` (of each block the same) are as close to
    /// zero as it goes without changing any other; `None` where the type's blocks are no
    /// levels on grids.
    pub fn silence(&self, blocks: &[u8], silent: &[bool]) -> Option<Vec<u8>> {
        match &self.by {
            By::Affine(of) => Some(silence(of, blocks, silent)),
            By::Super(of) => Some(silence(of, blocks, silent)),
            By::Single(of) => Some(silence(of, blocks, silent)),
            By::Ggml => None,
        }
    }

    /// What [`descend`] makes of rows of blocks; `None` where the type's blocks are no
    /// levels on grids.
    ///
    /// # Errors
    /// As [`descend`].
    pub(super) fn descend(
        &self,
        bytes: &[u8],
        wanted: &Mat<f64>,
        hessian: &Mat<f64>,
        par: Par,
    ) -> Result<Option<EncodedMatrix>, QuantizeError> {
        let lower = match &self.by {
            By::Affine(of) => descend(of, bytes, wanted, hessian, par),
            By::Super(of) => descend(of, bytes, wanted, hessian, par),
            By::Single(of) => descend(of, bytes, wanted, hessian, par),
            By::Ggml => return Ok(None),
        };
        lower.map(Some)
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
        let mut coded = match &self.by {
            By::Affine(affine) => return Ok(affine.encode(wanted, block, old)),
            By::Super(blocks) => blocks.encode(wanted, block),
            By::Single(blocks) => blocks.encode(wanted, block),
            By::Ggml => self.by_ggml(wanted, block)?,
        };
        if let Some(old) = old {
            self.keep_better(&mut coded, old, wanted, block)?;
        }
        Ok(coded)
    }

    /// Puts the old blocks back where they cost less.
    fn keep_better(
        &self,
        coded: &mut Coded,
        old: &[u8],
        wanted: &[f64],
        block: &Block,
    ) -> Result<(), QuantizeError> {
        let width = block.width();
        let bytes = self.bytes_of(width);
        let mut values = vec![0f32; wanted.len()];
        quants::dequantize_row(self.info.id, old, &mut values)?;
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

    fn by_ggml(&self, wanted: &[f64], block: &Block) -> Result<Coded, QuantizeError> {
        let info = &self.info;
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
