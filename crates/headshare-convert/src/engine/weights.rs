//! The weights of a tensor as numbers.

use headshare_runtime::quants::{self, QuantError};

use crate::input::ModelFile;

/// The weights of tensor `index`, row after row.
pub(crate) fn dequantized(source: &ModelFile, index: usize) -> Result<Vec<f32>, QuantError> {
    let info = &source.gguf.tensors()[index];
    let bytes = source.bytes(source.gguf.data_range(info));
    let rows = info.byte_len() / info.row_bytes();
    let mut values = vec![0f32; (rows * info.row_elems()) as usize];
    quants::dequantize_row(info.ggml_type.id(), bytes, &mut values)?;
    Ok(values)
}
