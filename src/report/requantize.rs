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
        let quantized = |t: &GgmlType| quants::type_info(t.id()).is_some_and(|t| t.is_quantized);
        if gguf.kv(KEY_QUANTIZATION_VERSION).is_none() && types.values().any(quantized) {
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
                        ReportError::Requantize {
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
    quants::dequantize_row(from.ggml_type.id(), rows, &mut values)?;
    quants::quantize_rows(to.id(), &values, row, None)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use headshare_runtime::{Context, ContextParams, Model, ModelParams};
    use headshare_testmodels::ModelSpec;

    use super::*;
    use crate::report::lower::{Lowered, Lowering};

    fn named(name: &str) -> GgmlType {
        GgmlType::all().find(|t| t.name() == name).unwrap()
    }

    fn spec(weight_type: &str, width: u32) -> ModelSpec {
        ModelSpec {
            n_embd: width,
            n_ff: width * 2,
            weight_type: named(weight_type),
            ..ModelSpec::preset("tiny-gqa").unwrap()
        }
    }

    /// Lowers a file to what saves `parts` of the 20 parts that the whole body
    /// could save in one step, and reads it again.
    fn lowered(source: &ModelFile, out: &Path, parts: u64) -> (Lowered, ModelFile) {
        let lowering = Lowering::of(&source.gguf);
        let lowest = lowering.down_to(0).map_or_else(
            || {
                let once = |i: &usize| {
                    let info = &source.gguf.tensors[*i];
                    let to = crate::report::lower::next_below(info.ggml_type, info.row_elems());
                    (*i, to.unwrap())
                };
                let all = lowering.order.iter().map(once).collect();
                Layout::new(&source.gguf, &all).file_bytes
            },
            |_| 0,
        );
        let target = source.len() - (source.len() - lowest) * parts / 20;
        let lowered = lowering.down_to(target).unwrap();
        assert!(lowered.file_bytes <= target);
        let written = write(source, &lowered.types, out, &|_| ()).unwrap();
        assert_eq!(written, lowered.file_bytes);
        let file = ModelFile::open_plain(out).unwrap();
        assert_eq!(file.len(), lowered.file_bytes);
        (lowered, file)
    }

    /// What llama.cpp itself predicts after a few tokens.
    fn logits(path: &Path) -> Vec<f32> {
        let model = Arc::new(Model::load(path, &ModelParams::default(), None).unwrap());
        let params = ContextParams {
            n_ctx: Some(64),
            n_threads: Some(1),
            ..ContextParams::default()
        };
        let mut context = Context::new(&model, &params).unwrap();
        context.decode(&[1, 5, 9, 30]).unwrap();
        for _ in 0..4 {
            let best = context.logits().unwrap().iter().enumerate();
            let best = best.max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0;
            context.decode(&[best as i32]).unwrap();
        }
        context.logits().unwrap().to_vec()
    }

    #[test]
    fn every_type_that_goes_down_loads_and_generates_in_llama_cpp() {
        let folder = tempfile::tempdir().unwrap();
        let (path, out) = (folder.path().join("a.gguf"), folder.path().join("b.gguf"));
        let narrow = ["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1"].map(|t| (t, 64));
        let wide = ["q8_0", "q6_K", "q5_K", "q4_K", "q3_K", "q4_0", "iq4_nl"].map(|t| (t, 256));
        for (weight_type, width) in narrow.into_iter().chain(wide) {
            spec(weight_type, width).write(&path).unwrap();
            let source = ModelFile::open_plain(&path).unwrap();
            for parts in [3, 10, 20] {
                let (lowered, file) = lowered(&source, &out, parts);
                assert!(!lowered.types.is_empty());
                let (before, after) = (&source.gguf, &file.gguf);
                for (i, (from, to)) in before.tensors.iter().zip(&after.tensors).enumerate() {
                    let data = file.bytes(after.data_range(to));
                    let original = source.bytes(before.data_range(from));
                    assert_eq!((&from.name, &from.dims), (&to.name, &to.dims));
                    match lowered.types.get(&i) {
                        None => assert!(to.ggml_type == from.ggml_type && data == original),
                        Some(&lower) => {
                            assert_eq!(to.ggml_type, lower);
                            assert_eq!(data, convert(original, from, lower).unwrap());
                        }
                    }
                }
                let logits = logits(&out);
                assert!(logits.iter().all(|l| l.is_finite()), "{weight_type}");
            }
        }
    }

    #[test]
    fn one_tensor_less_would_be_too_large() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.gguf");
        spec("q4_1", 64).write(&path).unwrap();
        let source = ModelFile::open_plain(&path).unwrap();
        let lowering = Lowering::of(&source.gguf);
        let target = source.len() - 5000;
        let lowered = lowering.down_to(target).unwrap();
        let last = lowering
            .order
            .iter()
            .rfind(|i| lowered.types.contains_key(i));
        let mut fewer = lowered.types.clone();
        fewer.remove(last.unwrap());
        assert!(Layout::new(&source.gguf, &fewer).file_bytes > target);
        // Nothing is asked for, nothing done; the impossible is not done.
        let nothing = lowering.down_to(source.len()).unwrap();
        assert!(nothing.types.is_empty());
        assert_eq!(nothing.file_bytes, source.len());
        assert_eq!(lowering.down_to(1000), None);
        assert_eq!((nothing.share(), nothing.steps(&source.gguf)), (0.0, 0));
        // Sensitive tensors are the last ones.
        let names: Vec<&str> = lowering
            .order
            .iter()
            .map(|&i| source.gguf.tensors[i].name.as_str())
            .collect();
        assert_eq!(names.len(), 7 * 4);
        let sensitive = |name: &&str| name.contains("attn_v.") || name.contains("ffn_down");
        assert!(names[20..].iter().all(sensitive), "{names:?}");
    }

    #[test]
    fn the_file_type_is_that_of_most_tensors() {
        let infos: Vec<TensorInfo> = (0..3)
            .map(|i| TensorInfo {
                name: format!("blk.{i}.ffn_up.weight"),
                ggml_type: named("f16"),
                dims: vec![32, 4],
                offset: i * 256,
            })
            .collect();
        let file_type = |stated: Option<u32>, lower: u64| {
            let mut builder = HeaderBuilder::new(3);
            builder.str("general.architecture", "llama");
            if let Some(stated) = stated {
                builder.u32(KEY_FILE_TYPE, stated);
            }
            builder.str("general.name", "x");
            infos.iter().for_each(|info| builder.tensor(info));
            let header = builder.finish();
            let gguf = Gguf::parse_header(&header, header.len() as u64 + 2048).unwrap();
            let types = (0..lower as usize).map(|i| (i, named("q8_0"))).collect();
            let layout = Layout::new(&gguf, &types);
            let after = Gguf::parse_header(&layout.header, layout.file_bytes).unwrap();
            let value = |key| after.u64_value(key).unwrap();
            let keys: Vec<&str> = after.kvs.iter().map(|kv| kv.key.as_str()).collect();
            let place = keys.iter().position(|key| *key == KEY_FILE_TYPE);
            assert_eq!(place, stated.map(|_| 1), "{keys:?}");
            (value(KEY_FILE_TYPE), value(KEY_QUANTIZATION_VERSION))
        };
        assert_eq!(file_type(Some(1), 0), (Some(1), None));
        assert_eq!(file_type(Some(1), 1), (Some(1), Some(2)));
        assert_eq!(file_type(Some(1), 2), (Some(7), Some(2)));
        assert_eq!(file_type(None, 3), (None, Some(2)));
    }

    #[test]
    fn weights_that_are_no_numbers_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.gguf");
        spec("f32", 64).write(&path).unwrap();
        let source = ModelFile::open_plain(&path).unwrap();
        let (i, info) = source
            .gguf
            .tensors
            .iter()
            .enumerate()
            .find(|(_, info)| info.name == "blk.1.ffn_up.weight")
            .unwrap();
        let at = source.gguf.data_range(info).start as usize;
        let mut bytes = source.file.to_vec();
        bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
        let broken = folder.path().join("broken.gguf");
        std::fs::write(&broken, bytes).unwrap();
        let broken = ModelFile::open_plain(&broken).unwrap();
        let out = folder.path().join("out.gguf");
        let types = [(i, named("f16"))].into();
        let error = write(&broken, &types, &out, &|_| ()).unwrap_err();
        assert!(error.to_string().contains("blk.1.ffn_up.weight"), "{error}");
        assert!(!out.exists());
    }
}
