//! Random small files and random sharing in them, for property tests, with the
//! plainest possible computation of what sharing means.

use headshare_format::layout::SharedRows;
use headshare_format::{GgmlType, Gguf};
use proptest::prelude::*;

use super::{RawGguf, RawTensor, kv_str, kv_u32, noise};

/// A file whose tensors' rows are drawn from few patterns, so that many rows
/// are equal.
pub fn file() -> impl Strategy<Value = RawGguf> {
    let habits = (
        2u32..=3,
        prop_oneof![Just(None), (0u32..=9).prop_map(|bits| Some(1 << bits))],
        prop_oneof![Just(0u8), Just(0xee)],
        any::<bool>(),
        prop_oneof![Just(0usize), 0usize..100],
        any::<bool>(),
        any::<bool>(),
    );
    let tensors = prop::collection::vec(tensor(), 0..6);
    (habits, tensors).prop_map(
        |((version, alignment, padding, end_padding, trailing, has_arch, arch_last), tensors)| {
            let mut kvs = vec![kv_u32("llama.block_count", 1), kv_str("a.name", "x")];
            if let Some(alignment) = alignment {
                kvs.insert(1, kv_u32("general.alignment", alignment));
            }
            if has_arch {
                let at = if arch_last { kvs.len() } else { 0 };
                kvs.insert(at, kv_str("general.architecture", "llama"));
            }
            RawGguf {
                version,
                kvs,
                tensors: tensors
                    .into_iter()
                    .enumerate()
                    .map(|(i, t)| RawTensor {
                        name: format!("t{i}").into_bytes(),
                        ..t
                    })
                    .collect(),
                alignment: alignment.unwrap_or(32) as usize,
                padding,
                end_padding,
                trailing: noise(trailing, 9),
                ..RawGguf::default()
            }
        },
    )
}

fn tensor() -> impl Strategy<Value = RawTensor> {
    let shape = prop_oneof![
        // f32, f16, q8_0, i8; rows of 4 bytes to 4 KiB.
        (
            Just(0u32),
            prop_oneof![Just(1u64), Just(64), Just(256), Just(1024)]
        ),
        (Just(1u32), prop_oneof![Just(1u64), Just(64), Just(256)]),
        (Just(8u32), prop_oneof![Just(32u64), Just(960)]),
        (Just(24u32), prop_oneof![Just(7u64), Just(4096)]),
    ];
    let rows = prop::collection::vec(0u64..4, 1..40);
    (shape, rows, 0u8..4).prop_map(|((type_id, elems), patterns, dims)| {
        let ggml_type = GgmlType::from_id(type_id).unwrap();
        let row = ggml_type.row_bytes(elems).unwrap() as usize;
        let n = patterns.len() as u64;
        let data: Vec<u8> = patterns
            .iter()
            .flat_map(|&p| noise(row, p + 10 * u64::from(type_id)))
            .collect();
        let dims = match dims {
            0 if n.is_multiple_of(2) => vec![elems, 2, n / 2],
            1 => vec![elems, 1, n, 1],
            2 if n == 1 && elems == 1 => vec![],
            2 if n == 1 => vec![elems],
            _ => vec![elems, n],
        };
        RawTensor {
            name: Vec::new(),
            name_len: None,
            n_dims: None,
            dims,
            type_id,
            offset: None,
            data,
        }
    })
}

/// A wish for sharing, made to fit a file by [`fit`].
#[derive(Debug, Clone)]
pub struct Wish {
    alias: (usize, u64),
    donor: (usize, u64),
    rows: u64,
}

pub fn wishes() -> impl Strategy<Value = Vec<Wish>> {
    let place = || (0usize..6, 0u64..40);
    prop::collection::vec(
        (place(), place(), 1u64..20).prop_map(|(alias, donor, rows)| Wish { alias, donor, rows }),
        0..12,
    )
}

/// Those of `wishes` that can be had together: same type and rows, inside the
/// tensors, no alias twice, and no cycles, because donors lie before their
/// aliases (after them if `backwards`).
pub fn fit(source: &Gguf, wishes: &[Wish], backwards: bool) -> Vec<SharedRows> {
    let mut fitting: Vec<SharedRows> = Vec::new();
    for wish in wishes {
        let (mut alias, mut donor) = (wish.alias, wish.donor);
        if (donor > alias) != backwards {
            std::mem::swap(&mut alias, &mut donor);
        }
        let (Some(a), Some(d)) = (source.tensors().get(alias.0), source.tensors().get(donor.0))
        else {
            continue;
        };
        if a.ggml_type != d.ggml_type || a.row_elems() != d.row_elems() {
            continue;
        }
        let mut rows = wish.rows;
        rows = rows.min(a.rows().saturating_sub(alias.1));
        rows = rows.min(d.rows().saturating_sub(donor.1));
        if alias.0 == donor.0 {
            rows = rows.min(alias.1.abs_diff(donor.1));
        }
        let row = a.row_bytes();
        let shared = SharedRows {
            alias: alias.0,
            alias_offset: alias.1 * row,
            donor: donor.0,
            donor_offset: donor.1 * row,
            len: rows * row,
        };
        let overlaps = |other: &SharedRows| {
            other.alias == shared.alias
                && other.alias_offset < shared.alias_offset + shared.len
                && shared.alias_offset < other.alias_offset + other.len
        };
        if rows > 0 && !fitting.iter().any(overlaps) {
            fitting.push(shared);
        }
    }
    fitting
}

/// Every row that is equal to an earlier one, as an alias of the first.
pub fn equal_rows(source: &Gguf, file: &[u8]) -> Vec<SharedRows> {
    let mut seen: Vec<(usize, u64)> = Vec::new();
    let mut shared = Vec::new();
    let bytes = |(tensor, offset): (usize, u64)| {
        let t = &source.tensors()[tensor];
        let start = (source.data_range(t).start + offset) as usize;
        (t.ggml_type, &file[start..start + t.row_bytes() as usize])
    };
    for (index, t) in source.tensors().iter().enumerate() {
        for row in 0..t.rows() {
            let place = (index, row * t.row_bytes());
            match seen.iter().find(|&&p| bytes(p) == bytes(place)) {
                Some(&(donor, donor_offset)) => shared.push(SharedRows {
                    alias: index,
                    alias_offset: place.1,
                    donor,
                    donor_offset,
                    len: t.row_bytes(),
                }),
                None => seen.push(place),
            }
        }
    }
    shared
}

/// The source file with `shared` carried out by copying: each row of an alias
/// replaced by the row that following donors leads to.
pub fn expanded(source: &Gguf, file: &[u8], shared: &[SharedRows]) -> Vec<u8> {
    let mut out = file.to_vec();
    for (index, tensor) in source.tensors().iter().enumerate() {
        let row = tensor.row_bytes();
        for offset in (0..tensor.byte_len()).step_by(row as usize) {
            let mut place = (index, offset);
            while let Some(rows) = shared.iter().find(|s| {
                s.alias == place.0 && (s.alias_offset..s.alias_offset + s.len).contains(&place.1)
            }) {
                place = (rows.donor, rows.donor_offset + place.1 - rows.alias_offset);
            }
            let from = source.data_range(&source.tensors()[place.0]).start + place.1;
            let to = (source.data_range(tensor).start + offset) as usize;
            let from = from as usize..(from + row) as usize;
            out[to..to + row as usize].copy_from_slice(&file[from]);
        }
    }
    out
}
