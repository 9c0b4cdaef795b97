//! Writing the new model: the source's key-values, and its tensors as numbers.

use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context as _, Result};
use faer::Mat;
use half::f16;
use headshare_files::{AtomicFile, FileId};
use headshare_format::gguf::{HeaderBuilder, align_up};
use headshare_format::{GgmlType, Gguf, TensorInfo};

use crate::matrix::read;
use crate::transform::Changed;

/// llama.cpp's numbers of file types (`llama_ftype`): all F32, mostly F16.
const FILE_TYPES: [u32; 2] = [0, 1];

/// Writes the model to `out`, which must not be its source, its matrices as type `to`.
pub(crate) fn write(
    gguf: &Gguf,
    (file, source): (&[u8], FileId),
    mut changed: Changed,
    to: GgmlType,
    out: &Path,
) -> Result<()> {
    let is_f32 = to == GgmlType::F32;
    let mut header = HeaderBuilder::new(gguf.version());
    // How the source was made is not how this is.
    let stays = |key: &str| key != FILE_TYPE && !key.starts_with("headshare_gguf.");
    for kv in gguf.kvs().iter().filter(|kv| stays(&kv.key)) {
        header.record(gguf.record(kv));
    }
    header.u32(FILE_TYPE, FILE_TYPES[usize::from(!is_f32)]);
    let mut infos: Vec<TensorInfo> = gguf.tensors().to_vec();
    if gguf.tensor("output.weight").is_none() && changed.contains_key("output.weight") {
        let like = gguf
            .tensor("token_embd.weight")
            .context("it has no token_embd.weight")?;
        infos.push(TensorInfo {
            name: "output.weight".into(),
            ..like.clone()
        });
    }
    let mut end = 0;
    for info in &mut infos {
        // What is one-dimensional is added or multiplied with, and stays exact.
        info.ggml_type = if info.dims.len() > 1 {
            to
        } else {
            GgmlType::F32
        };
        info.offset = align_up(end, gguf.alignment()).context("the size overflows")?;
        end = info.offset + info.byte_len();
        header.tensor(info);
    }
    let header = header.finish();
    let mut written = header.len() as u64;
    let start = align_up(written, gguf.alignment()).context("the size overflows")?;
    let end = align_up(start + end, gguf.alignment()).context("the size overflows")?;
    let output = AtomicFile::create(out, end, true, &[source])?;
    let mut out = BufWriter::with_capacity(4 << 20, output.file());
    out.write_all(&header)?;
    for info in &infos {
        let at = start + info.offset;
        out.write_all(&vec![0; (at - written) as usize])?;
        let values = match changed.remove(&info.name) {
            Some(values) => values,
            None => read(gguf, file, &info.name)?.context("it is one of the tensors")?,
        };
        write_values(&values, info.ggml_type, &mut out)?;
        written = at + info.byte_len();
    }
    out.flush()?;
    drop(out);
    output.commit()?;
    Ok(())
}

const FILE_TYPE: &str = "general.file_type";

fn write_values(values: &Mat<f64>, to: GgmlType, out: &mut impl Write) -> Result<()> {
    let mut bytes = Vec::new();
    for i in 0..values.nrows() {
        bytes.clear();
        for j in 0..values.ncols() {
            let value = values[(i, j)] as f32;
            match to == GgmlType::F32 {
                true => bytes.extend(value.to_le_bytes()),
                false => bytes.extend(f16::from_f32(value).to_le_bytes()),
            }
        }
        out.write_all(&bytes)?;
    }
    Ok(())
}
