//! The steps of a repair: a text, a conversion, a look at what came out.

use std::path::{Path, PathBuf};

use headshare_gguf::input::ModelFile;
use headshare_runtime::quants;
use serde_json::Value;

use crate::support::{json, program};

/// Arguments that keep a conversion short.
pub const SMALL: [&str; 6] = ["--ratio", "0.4", "--windows", "6", "--window", "64"];

/// A small model of every kind that can be repaired.
pub const DECODERS: [&str; 9] = [
    "tiny-llama",
    "tiny-gqa",
    "tiny-qwen2",
    "tiny-qwen3",
    "tiny-gemma3",
    "tiny-phi3",
    "tiny-gpt2",
    "tiny-moe",
    "tiny-refact",
];

/// Words without pattern.
pub fn words(folder: &Path) -> PathBuf {
    let path = folder.join("text.txt");
    let mut state = 7u32;
    let words: String = (0..6000)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            match (state >> 24) % 32 {
                n @ 0..26 => char::from(b'a' + n as u8),
                _ => ' ',
            }
        })
        .collect();
    std::fs::write(&path, words).unwrap();
    path
}

/// `convert SOURCE -o OUT --repair TEXT`; what else it is to do is added.
pub fn repairing(source: &Path, text: &Path, out: &Path) -> assert_cmd::Command {
    let mut command = program();
    command
        .arg("convert")
        .arg(source)
        .arg("-o")
        .arg(out)
        .arg("--repair")
        .arg(text);
    command
}

/// The plain file that a converted one stands for.
#[track_caller]
pub fn expand(converted: &Path, plain: &Path) {
    program()
        .arg("expand")
        .arg(converted)
        .arg("-o")
        .arg(plain)
        .assert()
        .success();
}

/// What `verify` says of a converted file and its source.
#[track_caller]
pub fn verify(converted: &Path, source: &Path) -> Value {
    json(
        program()
            .arg("verify")
            .arg(converted)
            .arg("--source")
            .arg(source)
            .arg("--json"),
    )
}

/// The tokens that the model in `file` finds most probable.
#[track_caller]
pub fn tokens(file: &Path) -> Value {
    let arguments = ["-p", "a b", "-n", "8", "--temp", "0", "-t", "1", "--json"];
    json(program().arg("run").arg(file).args(arguments))["tokens"].clone()
}

/// The numbers of a tensor of a file, in rows.
pub fn rows(file: &Path, name: &str) -> Vec<Vec<f32>> {
    let file = ModelFile::open(file).unwrap();
    let info = file.gguf.tensor(name).unwrap();
    let mut values = vec![0f32; (info.rows() * info.row_elems()) as usize];
    let bytes = file.bytes(file.gguf.data_range(info));
    quants::dequantize_row(info.ggml_type.id(), bytes, &mut values).unwrap();
    let rows = values.chunks(info.row_elems() as usize);
    rows.map(<[f32]>::to_vec).collect()
}

/// `source` with `value` for every weight of the F32 tensors `names`.
pub fn filled(source: &Path, out: &Path, names: &[&str], value: f32) {
    std::fs::copy(source, out).unwrap();
    for name in names {
        with_numbers(out, out, name, std::iter::repeat(value));
    }
}

/// `source` with `values` for the first weights of the F32 tensor `name`.
pub fn with_numbers(source: &Path, out: &Path, name: &str, values: impl IntoIterator<Item = f32>) {
    let file = ModelFile::open_plain(source).unwrap();
    let mut bytes = std::fs::read(source).unwrap();
    let data = file.gguf.data_range(file.gguf.tensor(name).unwrap());
    let weights = bytes[data.start as usize..data.end as usize].chunks_mut(4);
    for (weight, value) in weights.zip(values) {
        weight.copy_from_slice(&value.to_le_bytes());
    }
    // It may be the one that is written.
    drop(file);
    std::fs::write(out, bytes).unwrap();
}
