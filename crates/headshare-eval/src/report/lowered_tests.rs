//! Tensors at other types, and what llama.cpp makes of them.

use std::path::Path;
use std::sync::Arc;

use headshare_format::gguf::HeaderBuilder;
use headshare_format::{GgmlType, Gguf, TensorInfo};
use headshare_runtime::{Context, ContextParams, Model, ModelParams, quants};
use headshare_testmodels::ModelSpec;

use crate::report::lower::{Lowered, Lowering};
use headshare_convert::convert::variant::{Types, Variant, typed_header};
use headshare_convert::convert::{ConvertError, write_plain};
use headshare_convert::input::ModelFile;

const KEY_FILE_TYPE: &str = "general.file_type";
const KEY_QUANTIZATION_VERSION: &str = "general.quantization_version";

fn named(name: &str) -> GgmlType {
    GgmlType::named(name).unwrap()
}

fn spec(weight_type: &str, width: u32) -> ModelSpec {
    ModelSpec {
        n_embd: width,
        n_ff: width * 2,
        weight_type: named(weight_type),
        ..ModelSpec::preset("tiny-gqa").unwrap()
    }
}

fn types(all: impl Iterator<Item = (usize, GgmlType)>) -> Types {
    Types {
        tensors: all.collect(),
        untied_head: None,
    }
}

fn write(source: &ModelFile, types: &Types, out: &Path) -> Result<(), ConvertError> {
    let variant = Variant::with_types(source, types).unwrap();
    write_plain(&variant, out, true, &|_| ())
}

/// Whole rows at another type, by ggml.
fn encoded(rows: &[u8], from: &TensorInfo, to: GgmlType) -> Vec<u8> {
    let row = from.row_elems() as usize;
    let mut values = vec![0f32; rows.len() / from.row_bytes() as usize * row];
    quants::dequantize_row(from.ggml_type.id(), rows, &mut values).unwrap();
    quants::quantize_rows(to.id(), &values, row, None).unwrap()
}

/// Lowers a file to what saves `parts` of the 20 parts that the whole body
/// could save in one step, and reads it again.
fn lowered(source: &ModelFile, out: &Path, parts: u64) -> (Lowered, ModelFile) {
    let lowering = Lowering::of(&source.gguf);
    let lowest = lowering.down_to(0).map_or_else(
        || {
            let once = |i: &usize| {
                let info = &source.gguf.tensors()[*i];
                let to = crate::report::lower::next_below(info.ggml_type, info.row_elems());
                (*i, to.unwrap())
            };
            let all = types(lowering.order.iter().map(once));
            typed_header(&source.gguf, &all).unwrap().file_len()
        },
        |_| 0,
    );
    let target = source.len() - (source.len() - lowest) * parts / 20;
    let lowered = lowering.down_to(target).unwrap();
    assert!(lowered.file_bytes <= target);
    write(source, &lowered.types, out).unwrap();
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
            assert!(!lowered.types.tensors.is_empty());
            let (before, after) = (&source.gguf, &file.gguf);
            for (i, (from, to)) in before.tensors().iter().zip(after.tensors()).enumerate() {
                let data = file.bytes(after.data_range(to));
                let original = source.bytes(before.data_range(from));
                assert_eq!((&from.name, &from.dims), (&to.name, &to.dims));
                match lowered.types.tensors.get(&i) {
                    None => assert!(to.ggml_type == from.ggml_type && data == original),
                    Some(&lower) => {
                        assert_eq!(to.ggml_type, lower);
                        assert_eq!(data, encoded(original, from, lower));
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
        .rfind(|i| lowered.types.tensors.contains_key(i));
    let mut fewer = lowered.types.clone();
    fewer.tensors.remove(last.unwrap());
    assert!(typed_header(&source.gguf, &fewer).unwrap().file_len() > target);
    // Nothing is asked for, nothing done; the impossible is not done.
    let nothing = lowering.down_to(source.len()).unwrap();
    assert!(nothing.types.tensors.is_empty());
    assert_eq!(nothing.file_bytes, source.len());
    assert_eq!(lowering.down_to(1000), None);
    assert_eq!((nothing.share(), nothing.steps(&source.gguf)), (0.0, 0));
    // Sensitive tensors are the last ones.
    let names: Vec<&str> = lowering
        .order
        .iter()
        .map(|&i| source.gguf.tensors()[i].name.as_str())
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
        let lower = types((0..lower as usize).map(|i| (i, named("q8_0"))));
        let after = typed_header(&gguf, &lower).unwrap();
        let value = |key| after.u64_value(key).unwrap();
        let keys: Vec<&str> = after.kvs().iter().map(|kv| kv.key.as_str()).collect();
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
        .tensors()
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
    let types = types([(i, named("f16"))].into_iter());
    let error = write(&broken, &types, &out).unwrap_err();
    assert!(error.to_string().contains("blk.1.ffn_up.weight"), "{error}");
    assert!(!out.exists());
}
