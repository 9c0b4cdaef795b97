//! ggml's conversions through our wrappers, against oracles written from the
//! block formats, and every type number against ggml's own sizes.

use ggml_sys as sys;
use half::f16;
use headshare_runtime::quants::{
    QuantError, TYPE_COUNT, dequantize_row, quantize_rows, type_by_name, type_info,
};

/// Numbers without a type: ggml has removed these.
const REMOVED: [u32; 8] = [4, 5, 31, 32, 33, 36, 37, 38];

/// A reproducible stream of bytes (xorshift).
fn noise(len: usize, mut state: u64) -> Vec<u8> {
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}

fn wave(len: usize) -> Vec<f32> {
    (0..len)
        .map(|i| ((i * 37 % 101) as f32 - 50.0) / 25.0 * (1.0 + (i / 32) as f32 / 8.0))
        .collect()
}

#[test]
fn sizes_are_ggmls_for_every_number() {
    for id in 0..1000u32 {
        let Some(info) = type_info(id) else {
            assert!(id >= TYPE_COUNT || REMOVED.contains(&id), "type {id}");
            continue;
        };
        assert!(!REMOVED.contains(&id), "type {id}");
        // SAFETY: `id` is in ggml's table.
        let (elems, bytes, row) = unsafe {
            let elems = sys::ggml_blck_size(id);
            (
                elems,
                sys::ggml_type_size(id),
                sys::ggml_row_size(id, elems * 3),
            )
        };
        assert_eq!(info.block_elems as i64, elems, "{}", info.name);
        assert_eq!(info.block_bytes, bytes, "{}", info.name);
        assert_eq!(info.bytes(info.block_elems * 3), Some(row), "{}", info.name);
        assert_eq!(type_by_name(&info.name.to_uppercase()), Some(info));
    }
    assert_eq!(type_info(u32::MAX), None);
    let q4_k = type_info(12).unwrap();
    assert_eq!(
        (q4_k.name, q4_k.block_elems, q4_k.block_bytes),
        ("q4_K", 256, 144)
    );
    assert_eq!(q4_k.bytes(255), None);
    assert_eq!(type_info(0).unwrap().bytes(usize::MAX), None);
}

/// Every type that can be read is read, from aligned and unaligned bytes, with
/// the same result; every other type is an error.
#[test]
fn every_type_dequantizes_or_says_that_it_cannot() {
    for info in (0..TYPE_COUNT).filter_map(type_info) {
        let elems = info.block_elems * 40_000usize.div_ceil(info.block_elems);
        let size = info.bytes(elems).unwrap();
        let bytes = noise(size + 1, 0x9e37_79b9_7f4a_7c15 + u64::from(info.id));
        let mut out = vec![0.0; elems];
        let result = dequantize_row(info.id, &bytes[..size], &mut out);
        if !info.has_to_float {
            assert_eq!(result, Err(QuantError::NotDequantizable(info.name)));
            continue;
        }
        result.unwrap();
        let mut shifted = vec![0u8; size + 1];
        shifted[1..].copy_from_slice(&bytes[..size]);
        let mut again = vec![0.0; elems];
        dequantize_row(info.id, &shifted[1..], &mut again).unwrap();
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert!(
            bits(&out) == bits(&again),
            "{} differs when unaligned",
            info.name
        );
    }
}

#[test]
fn every_type_quantizes_and_comes_back_or_says_that_it_cannot() {
    let n_per_row = 512;
    let source = wave(n_per_row * 2);
    let peak = source.iter().fold(0.0f32, |a, v| a.max(v.abs()));
    let importance = vec![1.0; n_per_row];
    for info in (0..TYPE_COUNT).filter_map(type_info) {
        // ggml takes half a minute to build the search tables of these.
        if ["iq1", "iq2"]
            .iter()
            .any(|slow| info.name.starts_with(slow))
        {
            continue;
        }
        let quantized = match quantize_rows(info.id, &source, n_per_row, Some(&importance)) {
            Ok(bytes) => bytes,
            Err(QuantError::NotQuantizable(_)) => {
                assert!(!info.has_to_float, "{}", info.name);
                continue;
            }
            Err(other) => panic!("{}: {other}", info.name),
        };
        assert_eq!(quantized.len(), info.bytes(source.len()).unwrap());
        let mut back = vec![0.0; source.len()];
        dequantize_row(info.id, &quantized, &mut back).unwrap();
        let error = source
            .iter()
            .zip(&back)
            .map(|(a, b)| f64::from(a - b).powi(2))
            .sum::<f64>();
        let norm = source.iter().map(|a| f64::from(*a).powi(2)).sum::<f64>();
        // Coarse types lose much; none may lose everything.
        assert!(
            error < norm * 0.8,
            "{}: relative error {}",
            info.name,
            error / norm
        );
        assert!(
            back.iter().all(|v| v.abs() <= peak * 2.0),
            "{} overshoots",
            info.name
        );
    }
}

#[test]
fn plain_types_are_exact() {
    let source = wave(64);
    for (id, tolerance) in [(0u32, 0.0), (1, 1e-3), (30, 1e-2)] {
        let bytes = quantize_rows(id, &source, 64, None).unwrap();
        let mut back = vec![0.0; 64];
        dequantize_row(id, &bytes, &mut back).unwrap();
        for (a, b) in source.iter().zip(&back) {
            assert!((a - b).abs() <= a.abs() * tolerance, "type {id}: {a} {b}");
        }
    }
}

/// A block of 32: scale, optional minimum, then the numbers.
fn oracle(id: u32, block: &[u8], out: &mut [f32]) {
    let half = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
    match id {
        // Q4_0: nibbles minus 8; low nibbles are the first 16 elements.
        2 => {
            for i in 0..16 {
                out[i] = half(0) * (f32::from(block[2 + i] & 15) - 8.0);
                out[16 + i] = half(0) * (f32::from(block[2 + i] >> 4) - 8.0);
            }
        }
        // Q4_1: nibbles times the scale plus the minimum.
        3 => {
            for i in 0..16 {
                out[i] = half(0) * f32::from(block[4 + i] & 15) + half(2);
                out[16 + i] = half(0) * f32::from(block[4 + i] >> 4) + half(2);
            }
        }
        // Q8_0: signed bytes.
        8 => {
            for i in 0..32 {
                out[i] = half(0) * f32::from(block[2 + i] as i8);
            }
        }
        _ => unreachable!(),
    }
}

#[test]
fn q4_0_q4_1_and_q8_0_match_the_format() {
    for id in [2u32, 3, 8] {
        let info = type_info(id).unwrap();
        let blocks = 300;
        let mut bytes = noise(blocks * info.block_bytes, 42 + u64::from(id));
        for block in bytes.chunks_mut(info.block_bytes) {
            // Keep the halves finite: clear the top bit of their exponents.
            block[1] &= 0xbf;
            block[3] &= if id == 3 { 0xbf } else { 0xff };
        }
        let mut got = vec![0.0; blocks * 32];
        dequantize_row(id, &bytes, &mut got).unwrap();
        let mut want = vec![0.0; blocks * 32];
        for (block, out) in bytes.chunks(info.block_bytes).zip(want.chunks_mut(32)) {
            oracle(id, block, out);
        }
        for (i, (got, want)) in got.iter().zip(&want).enumerate() {
            let close = (got - want).abs() <= want.abs() * 1e-6 + 1e-7;
            assert!(close, "{} element {i}: {got} {want}", info.name);
        }
    }
}

#[test]
fn wrong_lengths_and_numbers_are_errors() {
    let mut out = [0.0; 32];
    assert_eq!(
        dequantize_row(2, &[0; 17], &mut out),
        Err(QuantError::Length {
            what: "bytes to dequantize",
            expected: 18,
            found: 17
        })
    );
    assert!(matches!(
        dequantize_row(2, &[0; 18], &mut out[..31]),
        Err(QuantError::PartialBlock {
            elems: 31,
            block_elems: 32,
            ..
        })
    ));
    for id in [4, 31, 43, 999, u32::MAX] {
        assert_eq!(
            dequantize_row(id, &[], &mut []),
            Err(QuantError::UnknownType(id))
        );
        assert_eq!(
            quantize_rows(id, &[], 32, None),
            Err(QuantError::UnknownType(id))
        );
    }
    assert!(quantize_rows(2, &[0.0; 32], 0, None).is_err());
    assert!(quantize_rows(2, &[0.0; 33], 32, None).is_err());
    assert!(quantize_rows(2, &[0.0; 64], 48, None).is_err());
    assert!(quantize_rows(2, &[0.0; 64], 32, Some(&[1.0; 31])).is_err());
    let mut odd = [0.0; 64];
    odd[40] = f32::NAN;
    assert_eq!(
        quantize_rows(18, &odd, 32, None),
        Err(QuantError::PartialBlock {
            name: "iq3_xxs",
            elems: 32,
            block_elems: 256
        })
    );
    assert_eq!(
        quantize_rows(2, &odd, 32, None),
        Err(QuantError::NotFinite(40))
    );
    for id in [16, 17, 19] {
        let name = type_info(id).unwrap().name;
        let result = quantize_rows(id, &[0.0; 256], 256, None);
        assert_eq!(result, Err(QuantError::NeedsImatrix(name)));
    }
    assert_eq!(dequantize_row(2, &[], &mut []), Ok(()));
    assert_eq!(quantize_rows(2, &[], 32, None), Ok(Vec::new()));
}
