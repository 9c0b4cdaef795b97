//! A GGUF file with some tensors at other types: all else is copied as it is.

use std::collections::BTreeMap;
use std::path::Path;

use headshare_format::gguf::{HeaderBuilder, align_up};
use headshare_format::{GgmlType, Gguf, TensorInfo};
use headshare_runtime::quants::{self, QuantError};
use headshare_stitch::AtomicFile;
use rayon::prelude::*;

use super::ReportError;
use crate::input::ModelFile;

/// States which mixture of types a file is, as llama.cpp numbers them.
const KEY_FILE_TYPE: &str = "general.file_type";
/// The version of ggml's quantised types.
const KEY_QUANTIZATION_VERSION: &str = "general.quantization_version";
const QUANTIZATION_VERSION: u32 = 2;

/// `enum llama_ftype`, by the type that most of the tensors have, as llama.cpp
/// guesses it.
const FILE_TYPES: &[(&str, u32)] = &[
    ("f32", 0),
    ("f16", 1),
    ("q4_0", 2),
    ("q4_1", 3),
    ("q8_0", 7),
    ("q5_0", 8),
    ("q5_1", 9),
    ("q2_K", 10),
    ("q3_K", 12),
    ("q4_K", 15),
    ("q5_K", 17),
    ("q6_K", 18),
];

/// Elements that are converted at a time.
const CHUNK: usize = 1 << 20;

/// The file to be.
#[derive(Debug, Clone)]
pub struct Layout {
    header: Vec<u8>,
    data_offset: u64,
    infos: Vec<TensorInfo>,
    /// Its size.
    pub file_bytes: u64,
}

impl Layout {
    /// The file `gguf` with other types for some tensors, whose rows must be
    /// whole blocks of them.
    pub fn new(gguf: &Gguf, types: &BTreeMap<usize, GgmlType>) -> Self {
        let mut offset = 0;
        let aligned =
            |n| align_up(n, gguf.alignment).expect("smaller than the source, or little more");
        let mut infos = gguf.tensors.clone();
        for (i, info) in infos.iter_mut().enumerate() {
            info.ggml_type = types.get(&i).copied().unwrap_or(info.ggml_type);
            info.offset = offset;
            offset += aligned(info.byte_len());
        }
        let file_type = (most(&infos) != most(&gguf.tensors))
            .then(|| most(&infos))
            .flatten()
            .and_then(|most| FILE_TYPES.iter().find(|(name, _)| *name == most.name()));
        let mut builder = HeaderBuilder::new(gguf.version);
        for kv in &gguf.kvs {
            match (kv.key.as_str(), file_type) {
                (KEY_FILE_TYPE, Some((_, number))) => builder.u32(KEY_FILE_TYPE, *number),
                _ => builder.record(gguf.record(kv)),
            }
        }
        // What is quantised states by which version of the types.
        let quantised = |t: &GgmlType| quants::type_info(t.id()).is_some_and(|t| t.is_quantized);
        if gguf.kv(KEY_QUANTIZATION_VERSION).is_none() && types.values().any(quantised) {
            builder.u32(KEY_QUANTIZATION_VERSION, QUANTIZATION_VERSION);
        }
        for info in &infos {
            builder.tensor(info);
        }
        let header = builder.finish();
        let data_offset = aligned(header.len() as u64);
        Self {
            header,
            data_offset,
            infos,
            file_bytes: data_offset + offset,
        }
    }
}

/// The type that most matrices have; of equally many, the one with the lower
/// number.
fn most(infos: &[TensorInfo]) -> Option<GgmlType> {
    let mut counts: BTreeMap<GgmlType, usize> = BTreeMap::new();
    for info in infos.iter().filter(|info| info.rows() > 1) {
        *counts.entry(info.ggml_type).or_default() += 1;
    }
    let most = counts.values().max()?;
    counts.iter().find(|(_, n)| *n == most).map(|(t, _)| *t)
}

/// Writes `source` with other types for some tensors to `out`, quantised by
/// ggml without an importance matrix; replaces what is there.
///
/// `progress` is told the bytes done so far.
///
/// # Errors
/// When weights are not finite, or the output cannot be written.
pub fn write(
    source: &ModelFile,
    types: &BTreeMap<usize, GgmlType>,
    out: &Path,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<u64, ReportError> {
    let gguf = &source.gguf;
    let layout = Layout::new(gguf, types);
    let file = AtomicFile::create(out, layout.file_bytes, true, &[source.file.id()])?;
    file.write_at(0, &layout.header)?;
    for (from, to) in gguf.tensors.iter().zip(&layout.infos) {
        let start = layout.data_offset + to.offset;
        let data = source.bytes(gguf.data_range(from));
        if from.ggml_type == to.ggml_type {
            file.write_at(start, data)?;
        } else {
            let rows = (CHUNK / from.row_elems().max(1) as usize).max(1);
            data.par_chunks(rows * from.row_bytes() as usize)
                .enumerate()
                .try_for_each(|(i, chunk)| {
                    let bytes = convert(chunk, from, to.ggml_type).map_err(|error| {
                        ReportError::Requantise {
                            path: source.path().to_owned(),
                            tensor: from.name.clone(),
                            error,
                        }
                    })?;
                    let at = start + (i * rows) as u64 * to.row_bytes();
                    Ok::<(), ReportError>(file.write_at(at, &bytes)?)
                })?;
        }
        progress(start + to.byte_len());
    }
    file.commit()?;
    Ok(layout.file_bytes)
}

/// Whole rows at another type.
fn convert(rows: &[u8], from: &TensorInfo, to: GgmlType) -> Result<Vec<u8>, QuantError> {
    let row = from.row_elems() as usize;
    let mut values = vec![0f32; rows.len() / from.row_bytes() as usize * row];
    quants::dequantise_row(from.ggml_type.id(), rows, &mut values)?;
    quants::quantise_rows(to.id(), &values, row, None)
}
