//! Where the data of a variant's tensors come from, and handing them out.

use std::borrow::Cow;
use std::ops::Range;

use headshare_format::TensorInfo;
use headshare_runtime::quants::{self, QuantError};
use rayon::prelude::*;

use super::zeros::{cuts_blocks, zero_columns};
use crate::input::ModelFile;

/// Elements that a thread encodes at a time.
const ENCODED: u64 = 1 << 18;

/// What a tensor of a variant is made of: a tensor of the source, whole or some
/// rows or columns of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The source's tensor.
    pub tensor: usize,
    /// The rows that stay (the elements, of a vector), one run after the other.
    pub rows: Option<Vec<Range<u64>>>,
    /// The columns that stay.
    pub columns: Option<Vec<Range<u64>>>,
    /// The columns in whose place zeros are, as the source counts them.
    pub zeros: Vec<Range<u64>>,
}

impl Origin {
    pub(super) fn whole(tensor: usize) -> Self {
        Self {
            tensor,
            rows: None,
            columns: None,
            zeros: Vec::new(),
        }
    }

    /// Whether these are runs of the source's bytes, at the same type.
    pub(super) fn is_copied(&self, source: &ModelFile, info: &TensorInfo) -> bool {
        let from = &source.gguf.tensors()[self.tensor];
        self.columns.is_none() && self.zeros.is_empty() && from.ggml_type == info.ggml_type
    }

    /// Whether blocks of `info` are encoded: other than the source's, and not zeros.
    pub(super) fn is_encoded(&self, source: &ModelFile, info: &TensorInfo) -> bool {
        let from = &source.gguf.tensors()[self.tensor];
        from.ggml_type != info.ggml_type
            || cuts_blocks(from, &self.zeros)
            || self.columns_cut_blocks(from)
    }

    /// Whether columns that stay begin or end within blocks of the source's tensor `from`.
    fn columns_cut_blocks(&self, from: &TensorInfo) -> bool {
        let columns = self.columns.as_deref();
        columns.is_some_and(|columns| cuts_blocks(from, columns))
    }

    fn put_zeros(&self, row: &mut [f32]) {
        for zeros in &self.zeros {
            row[zeros.start as usize..zeros.end as usize].fill(0.0);
        }
    }

    /// The runs of the source's file that make up `range` of the tensor, which
    /// [is copied](Self::is_copied).
    pub(super) fn runs(
        &self,
        source: &ModelFile,
        range: Range<u64>,
    ) -> impl Iterator<Item = Range<u64>> {
        let from = &source.gguf.tensors()[self.tensor];
        let start = source.gguf.data_range(from).start;
        let unit = unit_bytes(from);
        let whole = 0..from.byte_len() / unit;
        let rows = self.rows.clone().unwrap_or_else(|| vec![whole]);
        let mut at = 0;
        rows.into_iter().filter_map(move |rows| {
            let len = (rows.end - rows.start) * unit;
            let (first, end) = (range.start.max(at), range.end.min(at + len));
            let begin = start + rows.start * unit + first.saturating_sub(at);
            at += len;
            (first < end).then(|| begin..begin + (end - first))
        })
    }

    /// The bytes that make up `range`, which is counted as in the source's rows
    /// that stay.
    pub(super) fn bytes<'s>(&self, source: &'s ModelFile, range: Range<u64>) -> Cow<'s, [u8]> {
        let runs: Vec<Range<u64>> = self.runs(source, range).collect();
        match &runs[..] {
            [run] => source.bytes(run.clone()).into(),
            _ => {
                let runs = runs.into_iter().map(|run| source.bytes(run));
                runs.collect::<Vec<&[u8]>>().concat().into()
            }
        }
    }

    /// The weights that stay, row after row.
    ///
    /// # Errors
    /// When their type has no numbers.
    pub(super) fn weights(&self, source: &ModelFile) -> Result<Vec<f32>, QuantError> {
        let from = &source.gguf.tensors()[self.tensor];
        let bytes = self.bytes(source, 0..from.byte_len());
        let width = from.row_elems() as usize;
        let rows = bytes.len() / from.row_bytes() as usize;
        let mut values = vec![0f32; rows * width];
        quants::dequantize_row(from.ggml_type.id(), &bytes, &mut values)?;
        for row in values.chunks_mut(width) {
            self.put_zeros(row);
        }
        Ok(match &self.columns {
            None => values,
            Some(columns) => (values.chunks(width))
                .flat_map(|row| {
                    (columns.iter()).flat_map(|c| &row[c.start as usize..c.end as usize])
                })
                .copied()
                .collect(),
        })
    }

    /// Rows `rows` of the tensor `info`, made of others' columns or encoded.
    ///
    /// # Errors
    /// When ggml refuses, since weights are not finite.
    pub(super) fn rows(
        &self,
        source: &ModelFile,
        info: &TensorInfo,
        rows: Range<u64>,
    ) -> Result<Vec<u8>, QuantError> {
        let from = &source.gguf.tensors()[self.tensor];
        let bytes = from.row_bytes();
        let old: Vec<Range<u64>> = self
            .runs(source, rows.start * bytes..rows.end * bytes)
            .collect();
        let old: Vec<&[u8]> = (old.into_iter())
            .flat_map(|run| source.bytes(run).chunks(bytes as usize))
            .collect();
        if from.ggml_type == info.ggml_type && !self.columns_cut_blocks(from) {
            if self.zeros.is_empty() {
                return Ok(self.pick_bytes(from, &old));
            }
            let mut rows = old.concat();
            zero_columns(from, &mut rows, &self.zeros)?;
            let rows: Vec<&[u8]> = rows.chunks(bytes as usize).collect();
            return Ok(self.pick_bytes(from, &rows));
        }
        let width = info.row_elems() as usize;
        let at_a_time = (ENCODED / from.row_elems().max(1)).max(1) as usize;
        let parts: Vec<Vec<u8>> = old
            .par_chunks(at_a_time)
            .map(|old| {
                let mut wide = vec![0f32; from.row_elems() as usize];
                let mut values = Vec::with_capacity(old.len() * width);
                for row in old {
                    quants::dequantize_row(from.ggml_type.id(), row, &mut wide)?;
                    self.put_zeros(&mut wide);
                    match &self.columns {
                        None => values.extend_from_slice(&wide),
                        Some(columns) => {
                            for c in columns {
                                values.extend_from_slice(&wide[c.start as usize..c.end as usize]);
                            }
                        }
                    }
                }
                quants::quantize_rows(info.ggml_type.id(), &values, width, None)
            })
            .collect::<Result<_, QuantError>>()?;
        Ok(parts.concat())
    }

    /// The columns of these rows that stay, which are whole blocks.
    fn pick_bytes(&self, from: &TensorInfo, rows: &[&[u8]]) -> Vec<u8> {
        let Some(columns) = &self.columns else {
            return rows.concat();
        };
        let columns = columns.iter().map(|c| block_range(from, c));
        let columns: Vec<Range<usize>> = columns.collect();
        let picked = rows
            .iter()
            .flat_map(|row| columns.iter().flat_map(|c| &row[c.clone()]));
        picked.copied().collect()
    }
}

/// What is counted as a row: of a vector, each element.
fn unit_bytes(info: &TensorInfo) -> u64 {
    match info.dims.len() {
        0 | 1 => info.ggml_type.block_bytes(),
        _ => info.row_bytes(),
    }
    .max(1)
}

/// The bytes of a row at which columns lie that begin and end with blocks.
fn block_range(info: &TensorInfo, columns: &Range<u64>) -> Range<usize> {
    let (elems, bytes) = (info.ggml_type.block_elems(), info.ggml_type.block_bytes());
    (columns.start / elems * bytes) as usize..(columns.end / elems * bytes) as usize
}

/// Some columns of a tensor's rows, which begin and end with blocks.
pub fn cut_columns<'a>(info: &TensorInfo, data: &'a [u8], columns: &[Range<u64>]) -> Cow<'a, [u8]> {
    let origin = Origin {
        columns: Some(columns.to_vec()),
        ..Origin::whole(0)
    };
    let rows: Vec<&[u8]> = data.chunks(info.row_bytes() as usize).collect();
    origin.pick_bytes(info, &rows).into()
}

/// Puts cut columns back into rows of the old width, zeros where nothing is.
pub fn spread_columns(info: &TensorInfo, data: &[u8], columns: &[Range<u64>]) -> Vec<u8> {
    let columns: Vec<Range<usize>> = columns.iter().map(|c| block_range(info, c)).collect();
    let narrow: usize = columns.iter().map(Range::len).sum();
    let mut out = vec![0u8; info.byte_len() as usize];
    if narrow == 0 {
        return out;
    }
    let rows = out.chunks_mut(info.row_bytes() as usize);
    for (to, mut from) in rows.zip(data.chunks(narrow)) {
        for column in &columns {
            let (bytes, rest) = from.split_at(column.len());
            to[column.clone()].copy_from_slice(bytes);
            from = rest;
        }
    }
    out
}
