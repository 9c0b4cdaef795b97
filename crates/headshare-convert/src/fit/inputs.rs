//! What goes into a matrix, and its rows.

use headshare_format::TensorInfo;
use headshare_runtime::quants::dequantize_row;

use crate::encode::QuantizeError;
use crate::engine::{Site, Target, Wants};
use crate::input::ModelFile;

/// What shows the inputs of `site`: with a target, those of what writes to the residual
/// stream count as they do when it is quantized.
pub(super) fn inputs_of(site: &Site) -> Wants {
    let is_fitted = !matches!(site.target, Target::NoPlain { .. });
    match site.role.writes_to_stream() && is_fitted {
        true => Wants::Fit,
        false => Wants::Inputs,
    }
}

/// These rows of a tensor.
pub(super) fn rows_of(
    source: &ModelFile,
    info: &TensorInfo,
    rows: &[usize],
) -> Result<Vec<f32>, QuantizeError> {
    let data = source.bytes(source.gguf.data_range(info));
    let len = info.row_bytes() as usize;
    let p = info.row_elems() as usize;
    let mut out = vec![0.0; rows.len() * p];
    for (&row, out) in rows.iter().zip(out.chunks_mut(p)) {
        let bytes = &data[row * len..(row + 1) * len];
        dequantize_row(info.ggml_type.id(), bytes, out)?;
    }
    Ok(out)
}
