//! `headshare.replaced.*` (part of R13): what a reader accepts.

mod support;

use headshare_format::alias::{AliasTable, Digests, Provenance, Replaced};
use headshare_format::gguf::align_up;
use headshare_format::layout;
use headshare_format::{Gguf, PageSize};
use support::{RawGguf, f32_tensor, kv_str};

/// The header of a conversion of a small model, with these provenance fields.
fn converted(lossless: bool, replaced: Option<Replaced>) -> (Vec<u8>, u64) {
    let file = RawGguf {
        kvs: vec![kv_str("general.architecture", "llama")],
        tensors: vec![f32_tensor("a", &[64, 2]), f32_tensor("b", &[64, 2])],
        ..RawGguf::default()
    }
    .bytes();
    let source = Gguf::parse(&file).unwrap();
    let digest = format!("blake3:{}", "0".repeat(64));
    let mut provenance = Provenance::lossless("test", digest);
    provenance.lossless = lossless;
    provenance.replaced = replaced;
    let made = layout::plan(
        &source,
        &|r| {
            file[r.start as usize..r.end as usize]
                .iter()
                .all(|&b| b == 0)
        },
        &[],
        PageSize::KIB_4,
        provenance,
    )
    .unwrap();
    let header = made
        .table
        .encode(&source, &made.infos(), PageSize::KIB_4, Digests::Unknown);
    let len = align_up(header.len() as u64, 4096).unwrap() + made.data_len();
    (header, len)
}

fn read(lossless: bool, replaced: Option<Replaced>) -> Result<AliasTable, String> {
    let (header, len) = converted(lossless, replaced);
    let gguf = Gguf::parse_header(&header, len).map_err(|e| e.to_string())?;
    let table = AliasTable::read(&gguf).map_err(|e| e.to_string())?;
    Ok(table.unwrap())
}

#[test]
fn replaced_tensors_come_back() {
    let replaced = Replaced {
        by: r#"{"text":"x"}"#.into(),
        tensors: vec![0, 1],
    };
    let table = read(false, Some(replaced.clone())).unwrap();
    assert_eq!(table.provenance.replaced, Some(replaced));
    assert_eq!(read(true, None).unwrap().provenance.replaced, None);
}

#[test]
fn r13_replaced_tensors_are_named_once_in_order_and_never_lossless() {
    let with = |tensors: Vec<u32>| {
        Some(Replaced {
            by: "{}".into(),
            tensors,
        })
    };
    for (lossless, tensors, says) in [
        (true, vec![0], "lossless"),
        (false, vec![1, 0], "order"),
        (false, vec![0, 0], "order"),
        (false, vec![], "at least one"),
    ] {
        let error = read(lossless, with(tensors)).unwrap_err();
        assert!(error.contains(says), "{says:?} in {error:?}");
    }
}
