//! `docs/FORMAT.md` says what the code does: its keys, rules and example.

mod support;

use std::collections::BTreeSet;

use headshare_format::alias::AliasTable;
use headshare_format::layout::SharedRows;
use headshare_format::{GgmlType, Gguf, PageSize};
use support::converted::convert;
use support::{RawGguf, f32_tensor, kv_str, kv_u32, tensor};

const DOCUMENT: &str = include_str!("../../../docs/FORMAT.md");
const KEYS: &str = include_str!("../src/alias/mod.rs");
const READER: &str = include_str!("../src/alias/read.rs");
const TESTS: [&str; 3] = [
    include_str!("malformed_alias/source.rs"),
    include_str!("malformed_alias/segments.rs"),
    include_str!("malformed_alias/stored.rs"),
];

/// The example's source and what is shared in it.
fn example() -> (Vec<u8>, [SharedRows; 2]) {
    let f16 = GgmlType::from_id(1).unwrap();
    let source = RawGguf {
        kvs: vec![
            kv_str("general.architecture", "llama"),
            kv_u32("general.alignment", 64),
            kv_u32("llama.block_count", 2),
        ],
        tensors: vec![
            f32_tensor("blk.0.attn_q.weight", &[64, 64]),
            f32_tensor("blk.1.attn_q.weight", &[64, 64]),
            tensor("blk.1.ffn_up.weight", f16, &[64, 64], 1),
            f32_tensor("output_norm.weight", &[60]),
        ],
        alignment: 64,
        padding: 0xee,
        ..RawGguf::default()
    };
    let shared = [0, 32].map(|row| SharedRows {
        alias: 1,
        alias_offset: row * 256,
        donor: 0,
        donor_offset: 16 * 256,
        len: 16 * 256,
    });
    (source.bytes(), shared)
}

#[test]
fn the_example_is_what_the_code_writes() {
    let (source, shared) = example();
    let gguf = Gguf::parse(&convert(&source, &shared, PageSize::KIB_4).unwrap()).unwrap();
    for stored in gguf.tensors() {
        let dims: Vec<_> = stored.dims.iter().map(u64::to_string).collect();
        let row = format!(
            "| `{}` | {} | {} | {} |",
            stored.name,
            stored.ggml_type,
            dims.join(" x "),
            stored.offset
        );
        assert!(DOCUMENT.contains(&row), "{row}");
    }
    let table = AliasTable::read(&gguf).unwrap().unwrap();
    for (i, s) in table.segments.iter().enumerate() {
        let row = format!(
            "| {i} | {} | {} | {} | {} | {} |",
            s.tensor, s.offset, s.len, s.stored, s.stored_offset
        );
        assert!(DOCUMENT.contains(&row), "{row}");
    }
    assert!(DOCUMENT.contains(&format!("the {} bytes to restore", source.len())));
    assert_eq!(table.source.size, source.len() as u64);
}

#[test]
fn every_key_is_documented() {
    let keys: BTreeSet<&str> = KEYS
        .split('"')
        .filter(|s| s.starts_with("headshare.") && s.len() > "headshare.".len())
        .collect();
    assert!(keys.len() > 20);
    for key in keys {
        assert!(DOCUMENT.contains(&format!("`{key}`")), "{key}");
    }
}

#[test]
fn rules_have_the_same_numbers_in_document_code_and_tests() {
    let number = |text: &str| {
        let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<u32>().ok()
    };
    let documented: BTreeSet<u32> = DOCUMENT.split("\n**R").filter_map(number).collect();
    let read: BTreeSet<u32> = READER
        .lines()
        .filter(|line| line.starts_with("// "))
        .flat_map(|line| line.split(" R").skip(1).filter_map(number))
        .collect();
    let tested: BTreeSet<u32> = TESTS
        .iter()
        .flat_map(|file| file.split("\nfn r").filter_map(number))
        .collect();
    assert_eq!(documented, (1..=13).collect());
    assert_eq!(read, documented);
    assert_eq!(tested, documented);
}
