//! `convert --lossless` then `expand` gives the source back, byte for byte.

use std::path::Path;

use headshare_format::Gguf;
use headshare_testmodels::{FileEnd, KeyOrder, ModelSpec, PerLayer, self_merge, type_named};

use super::raw::{self, Raw, tensor};
use crate::support::{
    Folder, GEMMA, SMOLLM2, assert_same, gemma, needs, preset, read, small, smollm2,
};

const PAGE_SIZES: [&str; 3] = ["4096", "16384", "65536"];

/// Converts `source` losslessly, checks the result and expands it again;
/// returns what `convert --json` said.
#[track_caller]
fn check(source: &Path, page_size: &str) -> serde_json::Value {
    let folder = Folder::new();
    let (converted, expanded) = (folder.file("converted.gguf"), folder.file("expanded.gguf"));
    let result = run![
        "convert",
        source,
        "--lossless",
        "-o",
        converted,
        "--page-size",
        page_size,
        "--json"
    ]
    .ok()
    .json();
    assert_eq!(
        result["output"]["bytes"],
        read(&converted).len(),
        "{result}"
    );
    assert_eq!(result["page_size"].to_string(), page_size);
    assert_eq!(result["plan"], serde_json::Value::Null);
    let report = run!["verify", converted, "--source", source, "--json"]
        .ok()
        .json();
    assert_eq!(
        (&report["ok"], &report["lossless"]),
        (&true.into(), &true.into())
    );
    run!["verify", converted].ok();
    run!["expand", converted, "-o", expanded].ok();
    assert_same(source, &expanded);
    assert_eq!(folder.names(), ["converted.gguf", "expanded.gguf"]);
    result
}

#[track_caller]
fn check_bytes(bytes: &[u8], what: &str) {
    Gguf::parse(bytes).unwrap_or_else(|e| panic!("{what}: {e}"));
    let folder = Folder::new();
    let source = folder.write("source.gguf", bytes);
    for page_size in PAGE_SIZES {
        println!("{what}, pages of {page_size}");
        check(&source, page_size);
    }
}

fn number(json: &serde_json::Value) -> i64 {
    json.as_i64().expect("a whole number")
}

#[test]
fn smollm2_comes_back_byte_for_byte() {
    needs!(SMOLLM2);
    for page_size in PAGE_SIZES {
        check(&smollm2(), page_size);
    }
}

#[test]
fn gemma_comes_back_byte_for_byte() {
    needs!(GEMMA);
    for page_size in PAGE_SIZES {
        check(&gemma(), page_size);
    }
}

#[test]
fn a_self_merge_shrinks_by_all_that_repeats() {
    needs!(SMOLLM2);
    let folder = Folder::new();
    let merge = folder.file("merge.gguf");
    let layers: Vec<u32> = (0..20).chain(10..30).collect();
    self_merge(&smollm2(), &layers, &merge).unwrap();
    let source = Gguf::parse(&read(&merge)).unwrap();
    let repeated: Vec<i64> = source
        .tensors()
        .iter()
        .filter(|t| (20..30).any(|layer| t.name.starts_with(&format!("blk.{layer}."))))
        .map(|t| t.byte_len() as i64)
        .collect();
    let bytes: i64 = repeated.iter().sum();
    for page_size in PAGE_SIZES {
        let page: i64 = page_size.parse().unwrap();
        let result = check(&merge, page_size);
        let saved = &result["saved"];
        // Every stored tensor may end in a page that is not full, and so may
        // the header.
        let stored = source.tensors().len() as i64 - repeated.len() as i64;
        let file_bytes = number(&saved["file_bytes"]);
        assert!(
            file_bytes >= bytes - (stored + 1) * page,
            "{page_size}: {saved}"
        );
        // Likewise each repeated tensor's last page; tensors smaller than a
        // page share none.
        let resident = number(&saved["resident_bytes"]);
        let pages: i64 = repeated.iter().map(|len| len / page * page).sum();
        assert!(
            resident >= pages && resident <= bytes,
            "{page_size}: {saved}"
        );
        if page == 4096 {
            assert!(resident * 100 >= bytes * 97, "{resident} of {bytes}");
            assert!(file_bytes * 100 >= bytes * 95, "{file_bytes} of {bytes}");
        }
        let duplicates = &result["duplicates"];
        assert!(
            number(&duplicates["tensors"]) >= repeated.len() as i64,
            "{duplicates}"
        );
        assert!(number(&duplicates["bytes"]) >= bytes, "{duplicates}");
    }
}

#[test]
fn synthetic_models_of_every_architecture_come_back() {
    for name in ModelSpec::PRESETS.iter().filter(|n| n.starts_with("tiny")) {
        check_bytes(&small(name).to_bytes().unwrap(), name);
    }
}

#[test]
fn habits_of_writers_come_back() {
    let base = || ModelSpec {
        repeat: 2,
        ..small("tiny-gqa")
    };
    let random = |end| ModelSpec {
        random_padding: true,
        end,
        alignment: Some(256),
        ..base()
    };
    let specs = [
        (
            "version 2",
            ModelSpec {
                version: 2,
                ..base()
            },
        ),
        (
            "alignment 8",
            ModelSpec {
                alignment: Some(8),
                ..base()
            },
        ),
        (
            "alignment 1",
            ModelSpec {
                alignment: Some(1),
                ..base()
            },
        ),
        (
            "alignment 32, stated",
            ModelSpec {
                alignment: Some(32),
                ..base()
            },
        ),
        (
            "alignment 65536",
            ModelSpec {
                alignment: Some(65536),
                ..base()
            },
        ),
        (
            "architecture and alignment last",
            ModelSpec {
                alignment: Some(64),
                key_order: KeyOrder::Reversed,
                ..base()
            },
        ),
        (
            "architecture last",
            ModelSpec {
                key_order: KeyOrder::Reversed,
                ..base()
            },
        ),
        (
            "no padding at the end",
            ModelSpec {
                end: FileEnd::Unpadded,
                ..base()
            },
        ),
        (
            "trailing bytes",
            ModelSpec {
                end: FileEnd::Trailing(1),
                ..base()
            },
        ),
        (
            "many trailing bytes",
            ModelSpec {
                end: FileEnd::Trailing(100_001),
                ..base()
            },
        ),
        ("padding that is not zero", random(FileEnd::Padded)),
        (
            "padding that is not zero, none at the end",
            random(FileEnd::Unpadded),
        ),
        (
            "padding that is not zero, trailing bytes",
            random(FileEnd::Trailing(77)),
        ),
        (
            "version 2 with all of it",
            ModelSpec {
                version: 2,
                key_order: KeyOrder::Reversed,
                ..random(FileEnd::Trailing(9))
            },
        ),
        (
            "heads that vary by layer",
            ModelSpec {
                n_head: PerLayer::Each(vec![8, 4]),
                n_head_kv: PerLayer::Each(vec![2, 4]),
                key_length: Some(16),
                value_length: Some(8),
                ..base()
            },
        ),
    ];
    for (what, spec) in specs {
        check_bytes(&spec.to_bytes().unwrap(), what);
    }
}

#[test]
fn a_stack_written_twice_is_stored_once() {
    let folder = Folder::new();
    let source = folder.file("source.gguf");
    ModelSpec {
        repeat: 2,
        ..preset("tiny-llama")
    }
    .write(&source)
    .unwrap();
    let gguf = Gguf::parse(&read(&source)).unwrap();
    let in_layers = |t: &&headshare_format::TensorInfo| t.name.starts_with("blk.");
    let layers: Vec<_> = gguf.tensors().iter().filter(in_layers).collect();
    let result = check(&source, "4096");
    assert_eq!(result["duplicates"]["tensors"], layers.len() / 2);
    let half: u64 = layers.iter().map(|t| t.byte_len()).sum::<u64>() / 2;
    assert_eq!(result["duplicates"]["bytes"], half);
}

#[test]
fn equal_head_blocks_in_other_slots_are_stored_once() {
    // Head 3 of layer 1 is head 0 of layer 0.
    let mut raw = Raw::parse(&preset("tiny-llama").to_bytes().unwrap());
    let block = 16 * 64 * 4;
    for part in ["q", "k", "v"] {
        let donor = raw.tensor(&format!("blk.0.attn_{part}.weight")).data[..block].to_vec();
        raw.tensor(&format!("blk.1.attn_{part}.weight")).data[3 * block..].copy_from_slice(&donor);
    }
    let folder = Folder::new();
    let source = folder.write("source.gguf", raw.bytes());
    let result = check(&source, "4096");
    assert_eq!(result["duplicates"]["tensors"], 0);
    assert_eq!(result["duplicates"]["blocks"], 3);
    assert_eq!(result["duplicates"]["bytes"], 3 * block);
    // Whole pages in congruent slots.
    assert_eq!(result["saved"]["resident_bytes"], 3 * block);
}

#[test]
fn equal_bytes_of_other_types_or_row_lengths_stay_apart() {
    let data: Vec<u8> = (0..8192u32).map(|i| (i * 7) as u8).collect();
    let raw = Raw::new(
        vec![raw::string("general.architecture", "llama")],
        vec![
            tensor("a", 24, &[8192], data.clone()),
            tensor("b", 25, &[4096], data.clone()),
            tensor("c", 24, &[64, 128], data.clone()),
            tensor("d", 24, &[128, 64], data.clone()),
            tensor("e", 24, &[64, 2, 64], data),
        ],
    );
    let folder = Folder::new();
    let source = folder.write("source.gguf", raw.bytes());
    // The same rows of the same type, although the shapes differ.
    assert_eq!(check(&source, "4096")["duplicates"]["tensors"], 1);
    check_bytes(&raw.bytes(), "equal bytes");
}

#[test]
fn files_without_a_known_model_come_back() {
    let name = || raw::string("general.name", "x");
    let arch = |arch: &str| raw::string("general.architecture", arch);
    let floats = |n: usize| -> Vec<u8> { (0..n).flat_map(|i| (i as f32).to_le_bytes()).collect() };
    let lora = Raw::new(
        vec![
            arch("llama"),
            raw::string("general.type", "adapter"),
            raw::string("adapter.type", "lora"),
            raw::record("adapter.lora.alpha", raw::F32, &16f32.to_le_bytes()),
        ],
        vec![
            tensor("blk.0.attn_q.weight.lora_a", 0, &[64, 8], floats(512)),
            tensor("blk.0.attn_q.weight.lora_b", 0, &[8, 64], floats(512)),
            tensor("blk.1.attn_q.weight.lora_a", 0, &[64, 8], floats(512)),
        ],
    );
    let tensors = || {
        vec![
            tensor("scalar", 0, &[], floats(1)),
            tensor("one", 0, &[1], floats(1)),
            tensor("odd", 24, &[3, 1, 5], vec![7; 15]),
            tensor("four", 1, &[2, 3, 4, 5], vec![1; 240]),
            tensor("again", 1, &[2, 3, 4, 5], vec![1; 240]),
            tensor("new type", 40, &[64, 3], vec![9; 108]),
            tensor("", 0, &[2], floats(2)),
        ]
    };
    let unpadded = |raw: Raw| Raw {
        pad_end: false,
        ..raw
    };
    let empty = || Raw::new(vec![arch("llama"), name()], vec![]);
    let files = [
        ("a LoRA adapter", lora),
        (
            "an unknown architecture",
            Raw::new(vec![arch("frobnicator")], tensors()),
        ),
        ("no architecture", Raw::new(vec![name()], tensors())),
        ("nothing", Raw::new(vec![], vec![])),
        ("nothing, not padded", unpadded(Raw::new(vec![], vec![]))),
        ("no tensors", empty()),
        ("no tensors, not padded", unpadded(empty())),
        ("no keys, not padded", unpadded(Raw::new(vec![], tensors()))),
        (
            "empty architecture",
            Raw::new(vec![arch(""), raw::u32("general.alignment", 32)], tensors()),
        ),
    ];
    for (what, raw) in files {
        check_bytes(&raw.bytes(), what);
        let mut trailing = raw.bytes();
        trailing.extend(b"trailing");
        check_bytes(&trailing, &format!("{what}, with trailing bytes"));
    }
}

#[test]
fn keys_of_every_type_come_back() {
    use raw::{BOOL, F32, F64, I8, I16, I32, I64, STRING, U8, U16, array, record, string_bytes};
    let scalars = [
        (U8, vec![0xff]),
        (I8, vec![0x80]),
        (U16, vec![1, 2]),
        (I16, vec![0xfe, 0xff]),
        (raw::U32, vec![1, 2, 3, 4]),
        (I32, vec![0xff; 4]),
        // A NaN with a payload.
        (F32, vec![1, 2, 0xc0, 0x7f]),
        (BOOL, vec![1]),
        (raw::U64, vec![0xff; 8]),
        (I64, vec![0x80; 8]),
        (F64, vec![1, 0, 0, 0, 0, 0, 0xf8, 0xff]),
    ];
    let mut kvs = vec![raw::string("general.architecture", "llama")];
    for (value_type, bytes) in &scalars {
        kvs.push(record(format!("x.{value_type}"), *value_type, bytes));
        kvs.push(array(&format!("x.{value_type}.none"), *value_type, 0, &[]));
        kvs.push(array(
            &format!("x.{value_type}.three"),
            *value_type,
            3,
            &bytes.repeat(3),
        ));
    }
    let texts: Vec<u8> = [
        &b""[..],
        b"\xff\xfe not UTF-8",
        b"a\0b",
        "\u{2581}\n".as_bytes(),
    ]
    .iter()
    .flat_map(|t| string_bytes(t))
    .collect();
    kvs.push(record("x.bytes", STRING, &string_bytes(b"\xff\x00")));
    kvs.push(record("x.empty", STRING, &string_bytes(b"")));
    kvs.push(array("x.texts", STRING, 4, &texts));
    kvs.push(raw::string("a key\nwith \u{e4} and \u{1f600}", "x"));
    let raw = Raw::new(kvs, vec![tensor("t", 24, &[5], vec![1, 2, 3, 4, 5])]);
    check_bytes(&raw.bytes(), "keys of every type");
}

#[test]
fn types_mixed_by_role_come_back() {
    for name in ["q4_0", "q8_0", "q4_K", "q6_K", "f16", "bf16", "iq4_nl"] {
        let spec = ModelSpec {
            n_embd: 256,
            n_ff: 256,
            repeat: 2,
            types: vec![("attn_v.weight".to_owned(), type_named("q8_0").unwrap())],
            weight_type: type_named(name).unwrap(),
            ..small("tiny-gqa")
        };
        check_bytes(&spec.to_bytes().unwrap(), name);
    }
}
