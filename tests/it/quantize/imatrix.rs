//! Importance matrices: files of llama-imatrix's kind.

use headshare_format::gguf::Value;
use headshare_gguf::input::ModelFile;

use super::{quantizing, tokens_both_ways};
use crate::support::{json, program, written};

#[test]
fn an_importance_matrix_is_written_and_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let source = written(folder.path(), "tiny-moe");
    let (out, imatrix) = (file("out.gguf"), file("imatrix.gguf"));
    let save = ["--save-imatrix", imatrix.to_str().unwrap()];
    json(quantizing(&source, "q4_0", &out, &save).args(["--json", "--dry-run"]));
    assert!(!imatrix.exists(), "a dry run has written");
    json(quantizing(&source, "q4_0", &out, &save).args(["--json"]));
    let of = ModelFile::open_plain(&imatrix).unwrap();
    let sums = of.gguf.tensor("blk.0.ffn_down_exps.weight.in_sum2");
    assert_eq!(sums.unwrap().dims, [128, 4]);
    let counts = of.gguf.tensor("blk.0.attn_q.weight.counts").unwrap();
    let count = of.bytes(of.gguf.data_range(counts));
    assert_eq!(count, (6.0f32 * 64.0).to_le_bytes());
    let counts = of.gguf.tensor("blk.0.ffn_down_exps.weight.counts");
    assert_eq!(counts.unwrap().dims, [1, 4]);
    // What llama.cpp's reader of these files (`common/imatrix-loader.cpp`) asks for.
    assert_eq!(of.gguf.str_value("general.type").unwrap(), Some("imatrix"));
    let number = |key| of.gguf.u64_value(key).unwrap();
    assert_eq!(number("imatrix.chunk_count"), Some(6));
    assert_eq!(number("imatrix.chunk_size"), Some(64));
    let texts = of.gguf.array_value("imatrix.datasets").unwrap().unwrap();
    let texts: Vec<_> = texts.values().collect();
    assert!(matches!(&texts[..], [Value::String(_)]), "{texts:?}");
    for info in of.gguf.tensors() {
        let is_one = [".in_sum2", ".counts"].map(|end| info.name.ends_with(end));
        assert!(is_one[0] != is_one[1], "{}", info.name);
        assert_eq!(info.ggml_type.name(), "f32", "{}", info.name);
    }
    let run = |last: &str| {
        let mut command = program();
        command.arg("convert").arg(&source).arg("-o").arg(&out);
        command.args(["--quantize", "iq3_xxs", "--json", last, "--imatrix"]);
        json(command.arg(&imatrix))
    };
    let (dry, done) = (run("--dry-run"), run("--force"));
    assert_eq!(dry["output"], done["output"]);
    assert!(
        !done["quantized"]["by"]["imatrix"]["digest"].is_null(),
        "{done}"
    );
    assert!(done["quantized"]["matrices"]["weighted"].as_u64().unwrap() > 8);
    tokens_both_ways(&out);
    let of = ModelFile::open(&out).unwrap();
    let router = of.gguf.tensor("blk.0.ffn_gate_inp.weight").unwrap();
    assert_eq!(router.ggml_type.name(), "f32");
}
