//! The written models are valid GGUF and what their specification says.

use std::collections::HashSet;

use headshare_format::gguf::Value;
use headshare_format::{GgmlType, Gguf};
use headshare_testmodels::{
    FileEnd, KeyOrder, ModelSpec, PerLayer, parse_layer_list, self_merge, type_named,
};

fn small(name: &str) -> ModelSpec {
    ModelSpec::preset(name).unwrap()
}

fn data<'a>(file: &'a [u8], gguf: &Gguf, name: &str) -> &'a [u8] {
    let range = gguf.data_range(gguf.tensor(name).expect(name));
    &file[range.start as usize..range.end as usize]
}

#[test]
fn every_tiny_preset_is_a_valid_file() {
    for name in ModelSpec::PRESETS.iter().filter(|n| n.starts_with("tiny")) {
        let file = small(name).to_bytes().unwrap();
        let gguf = Gguf::parse(&file).unwrap_or_else(|e| panic!("{name}: {e}"));
        // Layers of all kinds end as wide as the residual stream.
        let last = gguf
            .tensors()
            .iter()
            .rfind(|t| t.name.starts_with("blk.3."));
        let dims = &last.expect(name).dims;
        assert_eq!(dims.get(1).or(dims.first()), Some(&64), "{name}");
    }
}

struct Counter(u64);

impl std::io::Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn the_llama_2_7b_preset_has_that_models_size() {
    let mut counter = Counter(0);
    small("llama-2-7b").write_to(&mut counter).unwrap();
    // 6,738,415,616 parameters; 65 norms of 4,096 are F32, the rest is Q4_0.
    let norms = 65 * 4096;
    let data = (6_738_415_616 - norms) / 32 * 18 + norms * 4;
    assert!((data..data + (2 << 20)).contains(&counter.0));
}

#[test]
fn every_type_is_written_with_finite_scales() {
    for ggml_type in GgmlType::all() {
        let spec = ModelSpec {
            n_embd: 512,
            n_ff: 512,
            n_layer: 1,
            n_vocab: 8,
            weight_type: ggml_type,
            ..small("tiny-gqa")
        };
        let file = spec.to_bytes().unwrap();
        let gguf = Gguf::parse(&file).unwrap_or_else(|e| panic!("{ggml_type}: {e}"));
        let bytes = data(&file, &gguf, "blk.0.attn_q.weight");
        assert_eq!(
            bytes.len() as u64,
            512 * ggml_type.row_bytes(512).unwrap(),
            "{ggml_type}"
        );
        // Half floats at the start of a block are neither infinite nor large.
        if ["q4_0", "q8_0", "q4_K", "iq4_nl", "f16"].contains(&ggml_type.name()) {
            for block in bytes.chunks_exact(ggml_type.block_bytes() as usize) {
                let half = u16::from_le_bytes([block[0], block[1]]);
                assert!((half >> 10) & 31 < 15, "{ggml_type}: {half:#x}");
            }
        }
    }
}

#[test]
fn the_seed_decides_the_bytes() {
    let spec = small("tiny-llama");
    let other = ModelSpec {
        seed: 2,
        ..spec.clone()
    };
    assert_eq!(spec.to_bytes().unwrap(), spec.to_bytes().unwrap());
    assert_ne!(spec.to_bytes().unwrap(), other.to_bytes().unwrap());
}

#[test]
fn no_two_head_blocks_are_equal() {
    let spec = ModelSpec {
        weight_type: type_named("q4_0").unwrap(),
        ..small("tiny-llama")
    };
    let file = spec.to_bytes().unwrap();
    let gguf = Gguf::parse(&file).unwrap();
    let mut seen = HashSet::new();
    for layer in 0..4 {
        for part in ["q", "k", "v"] {
            let bytes = data(&file, &gguf, &format!("blk.{layer}.attn_{part}.weight"));
            for block in bytes.chunks_exact(bytes.len() / 4) {
                assert!(seen.insert(block));
            }
        }
    }
}

#[test]
fn repeated_layers_are_equal_byte_for_byte() {
    let spec = ModelSpec {
        n_layer: 2,
        repeat: 2,
        n_head: PerLayer::Each(vec![4, 2]),
        n_head_kv: PerLayer::Each(vec![2, 1]),
        key_length: Some(16),
        value_length: Some(16),
        ..small("tiny-gqa")
    };
    let file = spec.to_bytes().unwrap();
    let gguf = Gguf::parse(&file).unwrap();
    assert_eq!(gguf.u64_value("llama.block_count").unwrap(), Some(4));
    let heads = gguf.array_value("llama.attention.head_count").unwrap();
    assert_eq!(heads.unwrap().u32s(), Some(vec![4, 2, 4, 2]));
    for (a, b) in [(0, 2), (1, 3)] {
        for part in ["attn_q", "attn_v", "ffn_down", "attn_norm"] {
            let name = |l: u32| format!("blk.{l}.{part}.weight");
            assert_eq!(data(&file, &gguf, &name(a)), data(&file, &gguf, &name(b)));
        }
    }
    assert_ne!(
        data(&file, &gguf, "blk.0.attn_norm.weight"),
        data(&file, &gguf, "blk.1.attn_norm.weight")
    );
}

#[test]
fn habits_of_the_file_are_as_asked() {
    let spec = ModelSpec {
        version: 2,
        alignment: Some(256),
        key_order: KeyOrder::Reversed,
        random_padding: true,
        end: FileEnd::Trailing(77),
        ..small("tiny-gpt2")
    };
    let file = spec.to_bytes().unwrap();
    let gguf = Gguf::parse(&file).unwrap();
    assert_eq!((gguf.version(), gguf.alignment()), (2, 256));
    assert_eq!(gguf.kvs().last().unwrap().key, "general.architecture");
    let end = gguf.data_end().next_multiple_of(256);
    assert_eq!(gguf.file_len(), end + 77);
    let padding = &file[gguf.header_end() as usize..gguf.data_offset() as usize];
    assert!(padding.iter().any(|&b| b != 0));

    let unpadded = ModelSpec {
        end: FileEnd::Unpadded,
        ..spec
    };
    let gguf = Gguf::parse(&unpadded.to_bytes().unwrap()).unwrap();
    assert_eq!(gguf.file_len(), gguf.data_end());
}

#[test]
fn a_self_merge_repeats_the_layers_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let (source, out) = (dir.path().join("a.gguf"), dir.path().join("b.gguf"));
    let spec = ModelSpec {
        n_head_kv: PerLayer::Each(vec![4, 2, 1, 2]),
        end: FileEnd::Unpadded,
        ..small("tiny-llama")
    };
    spec.write(&source).unwrap();
    self_merge(&source, &parse_layer_list("0-2,1-3").unwrap(), &out).unwrap();

    let (old, new) = (
        std::fs::read(&source).unwrap(),
        std::fs::read(&out).unwrap(),
    );
    let (a, b) = (Gguf::parse(&old).unwrap(), Gguf::parse(&new).unwrap());
    assert_eq!(b.value("llama.block_count"), Some(Value::U32(6)));
    let heads = b.array_value("llama.attention.head_count_kv").unwrap();
    assert_eq!(heads.unwrap().u32s(), Some(vec![4, 2, 1, 2, 1, 2]));
    assert_eq!(a.kvs().len(), b.kvs().len());
    for (new_layer, old_layer) in [0, 1, 2, 1, 2, 3].into_iter().enumerate() {
        for part in ["attn_q", "ffn_norm"] {
            assert_eq!(
                data(&new, &b, &format!("blk.{new_layer}.{part}.weight")),
                data(&old, &a, &format!("blk.{old_layer}.{part}.weight"))
            );
        }
    }
    assert_eq!(
        data(&new, &b, "output.weight"),
        data(&old, &a, "output.weight")
    );
}

#[test]
fn a_self_merge_of_all_layers_in_order_is_the_source() {
    let dir = tempfile::tempdir().unwrap();
    let (source, out) = (dir.path().join("a.gguf"), dir.path().join("b.gguf"));
    small("tiny-qwen2").write(&source).unwrap();
    self_merge(&source, &[0, 1, 2, 3], &out).unwrap();
    assert!(std::fs::read(source).unwrap() == std::fs::read(out).unwrap());
}

#[test]
fn layers_that_are_not_there_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("a.gguf");
    small("tiny-llama").write(&source).unwrap();
    let error = self_merge(&source, &[4], &dir.path().join("b.gguf")).unwrap_err();
    assert!(format!("{error:#}").contains("layer 4"), "{error:#}");
    for bad in ["", "1-", "3-1", "x"] {
        assert!(parse_layer_list(bad).is_err(), "{bad}");
    }
}
