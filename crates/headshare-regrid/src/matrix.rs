//! Tensors as matrices of doubles.

use anyhow::{Context as _, Result};
use faer::Mat;
use headshare_format::Gguf;
use headshare_runtime::quants;

/// The tensor called `name`: a row for each of its rows. `None` where there is none.
pub(crate) fn read(gguf: &Gguf, file: &[u8], name: &str) -> Result<Option<Mat<f64>>> {
    let Some(info) = gguf.tensor(name) else {
        return Ok(None);
    };
    let range = gguf.data_range(info);
    let bytes = &file[range.start as usize..range.end as usize];
    let columns = info.row_elems() as usize;
    let rows = (info.byte_len() / info.row_bytes()) as usize;
    let mut values = vec![0f32; rows * columns];
    quants::dequantize_row(info.ggml_type.id(), bytes, &mut values).context(name.to_owned())?;
    Ok(Some(Mat::from_fn(rows, columns, |i, j| {
        f64::from(values[i * columns + j])
    })))
}
