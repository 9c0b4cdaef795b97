//! One test for each way a GGUF header can be wrong. Every case of llama.cpp's
//! own test of its reader is here or, where it is to be accepted, in
//! `odd_gguf.rs`.

mod support;

use headshare_format::gguf::{MAX_ALIGNMENT, ValueType};
use headshare_format::{FormatError, GgmlType, Gguf};
use support::{
    RawGguf, assert_error, empty, f32_tensor, kv_array, kv_str, kv_u32, record, string,
    two_tensors, with_kv, words,
};

const ARRAY: u32 = ValueType::Array as u32;
const STRING: u32 = ValueType::String as u32;
const U32: u32 = ValueType::U32 as u32;
const ALIGNMENT: &str = "general.alignment";

fn type_named(name: &str) -> GgmlType {
    GgmlType::all().find(|t| t.name() == name).unwrap()
}

fn parse_error(bytes: &[u8]) -> FormatError {
    Gguf::parse(bytes).expect_err("the file was accepted")
}

// The header's fixed part.

#[test]
fn bad_magic() {
    let file = RawGguf {
        magic: *b"GGML",
        ..empty()
    };
    assert_error(&file.refused(), "magic", "no GGUF file");
}

#[test]
fn big_endian_magic() {
    let file = RawGguf {
        magic: *b"FUGG",
        ..empty()
    };
    assert_error(&file.refused(), "version", "big-endian");
}

#[test]
fn empty_file() {
    assert_error(&parse_error(b""), "magic", "truncated");
}

#[test]
fn only_the_magic() {
    assert_error(&parse_error(b"GGUF"), "version", "truncated");
}

#[test]
fn version_0() {
    let file = RawGguf {
        version: 0,
        ..empty()
    };
    assert_error(&file.refused(), "version", "version 0 is not supported");
}

#[test]
fn version_1() {
    let file = RawGguf {
        version: 1,
        ..empty()
    };
    let error = file.refused();
    assert_error(&error, "version", "version 1 is not supported");
    assert!(words(&error).contains("convert the model again"));
}

#[test]
fn version_4() {
    let file = RawGguf {
        version: 4,
        ..empty()
    };
    assert_error(&file.refused(), "version", "version 4 is not supported");
}

#[test]
fn version_huge() {
    let file = RawGguf {
        version: u32::MAX,
        ..empty()
    };
    assert_error(&file.refused(), "version", "4294967295 is not supported");
}

#[test]
fn version_of_a_big_endian_file() {
    let file = RawGguf {
        version: 3u32.swap_bytes(),
        ..empty()
    };
    let error = file.refused();
    assert_error(&error, "version", "big-endian");
    assert!(words(&error).contains("gguf_convert_endian"));
}

#[test]
fn tensor_count_beyond_the_file() {
    for n_tensors in [1, 1 << 20, u64::MAX] {
        let file = RawGguf {
            n_tensors: Some(n_tensors),
            ..empty()
        };
        assert_error(&file.refused(), "tensor count", "bytes that remain");
    }
}

#[test]
fn key_count_beyond_the_file() {
    for n_kvs in [1, 1 << 20, u64::MAX] {
        let file = RawGguf {
            n_kvs: Some(n_kvs),
            ..empty()
        };
        assert_error(&file.refused(), "key count", "bytes that remain");
    }
}

#[test]
fn key_count_one_too_many() {
    let file = RawGguf {
        n_kvs: Some(2),
        ..two_tensors()
    };
    // The first tensor's info is read as a key: whatever comes, no panic.
    file.refused();
}

// Keys and values.

#[test]
fn key_size_beyond_the_file() {
    let mut kv = kv_u32("some.key", 1);
    kv[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    assert_error(&with_kv(kv).refused(), "key number 0", "truncated");
}

#[test]
fn empty_key() {
    assert_error(
        &with_kv(kv_u32("", 1)).refused(),
        "key number 0",
        "is empty",
    );
}

#[test]
fn key_not_utf8() {
    let kv = record(b"bad\xff", U32, &[0; 4]);
    assert_error(&with_kv(kv).refused(), "key number 0", "not UTF-8");
}

#[test]
fn duplicate_key() {
    let file = RawGguf {
        kvs: vec![kv_u32("a", 1), kv_u32("b", 1), kv_str("a", "x")],
        ..empty()
    };
    assert_error(&file.refused(), "key \"a\"", "stands twice");
}

#[test]
fn unknown_value_type() {
    for type_id in [13, 255, u32::MAX] {
        let kv = record(b"a", type_id, &[0; 8]);
        let error = with_kv(kv).refused();
        assert_error(
            &error,
            "key \"a\"",
            &format!("unknown value type {type_id}"),
        );
    }
}

#[test]
fn value_beyond_the_file() {
    let mut file = with_kv(record(b"a", ValueType::U64 as u32, &[0; 7]));
    file.end_padding = false;
    assert_error(&file.refused(), "key \"a\"", "truncated");
}

#[test]
fn string_value_beyond_the_file() {
    let kv = record(b"a", STRING, &u64::MAX.to_le_bytes());
    assert_error(&with_kv(kv).refused(), "key \"a\"", "truncated");
}

#[test]
fn unknown_type_of_array_elements() {
    let kv = kv_array("a", 13, 0, &[]);
    assert_error(&with_kv(kv).refused(), "key \"a\"", "unknown type 13");
}

#[test]
fn nested_array() {
    let kv = kv_array("a", ARRAY, 1, &kv_array("", U32, 0, &[])[8..]);
    assert_error(&with_kv(kv).refused(), "key \"a\"", "arrays of arrays");
}

#[test]
fn array_longer_than_the_file() {
    for len in [100, 1 << 40, u64::MAX / 4, u64::MAX] {
        let kv = kv_array("a", U32, len, &[0; 16]);
        assert_error(&with_kv(kv).refused(), "key \"a\"", "bytes that remain");
    }
}

#[test]
fn string_array_longer_than_the_file() {
    for len in [100, u64::MAX] {
        let kv = kv_array("a", STRING, len, &string(b"x"));
        assert_error(&with_kv(kv).refused(), "key \"a\"", "bytes that remain");
    }
}

#[test]
fn string_in_an_array_beyond_the_file() {
    let mut bytes = string(b"x");
    bytes.extend((1u64 << 40).to_le_bytes());
    let kv = kv_array("a", STRING, 2, &bytes);
    assert_error(&with_kv(kv).refused(), "key \"a\"", "truncated");
}

#[test]
fn alignment_0() {
    let error = with_kv(kv_u32(ALIGNMENT, 0)).refused();
    assert_error(&error, "key \"general.alignment\"", "found u32 0");
}

#[test]
fn alignment_13() {
    let error = with_kv(kv_u32(ALIGNMENT, 13)).refused();
    assert_error(&error, "key \"general.alignment\"", "found u32 13");
}

#[test]
fn alignment_huge() {
    let error = with_kv(kv_u32(ALIGNMENT, 1 << 31)).refused();
    assert_error(
        &error,
        "key \"general.alignment\"",
        &format!("at most {MAX_ALIGNMENT}"),
    );
}

#[test]
fn alignment_not_u32() {
    let i32_kv = record(
        ALIGNMENT.as_bytes(),
        ValueType::I32 as u32,
        &32u32.to_le_bytes(),
    );
    let error = with_kv(i32_kv).refused();
    assert_error(&error, "key \"general.alignment\"", "found i32 32");
    let error = with_kv(kv_str(ALIGNMENT, "32")).refused();
    assert_error(&error, "key \"general.alignment\"", "found a string");
}

#[test]
fn split_file() {
    let u16_kv = record(b"split.count", ValueType::U16 as u32, &3u16.to_le_bytes());
    let error = with_kv(u16_kv).refused();
    assert_error(&error, "key \"split.count\"", "split over 3 files");
    assert!(words(&error).contains("llama-gguf-split --merge"));
}

#[test]
fn split_file_with_an_odd_count() {
    let error = with_kv(kv_str("split.count", "many")).refused();
    assert_error(&error, "key \"split.count\"", "split over several files");
}

// Tensor infos.

#[test]
fn tensor_name_beyond_the_file() {
    let mut file = two_tensors();
    file.tensors[1].name_len = Some(u64::MAX);
    assert_error(&file.refused(), "tensor number 1", "truncated");
}

#[test]
fn tensor_name_too_long() {
    let mut file = two_tensors();
    file.tensors[1].name = vec![b'x'; 64];
    assert_error(&file.refused(), "tensor number 1", "its name has 64 bytes");
}

#[test]
fn tensor_name_not_utf8() {
    let mut file = two_tensors();
    file.tensors[1].name = b"\xc3\x28".to_vec();
    assert_error(&file.refused(), "tensor number 1", "not UTF-8");
}

#[test]
fn duplicate_tensor_name() {
    let mut file = two_tensors();
    file.tensors[1].name = b"one".to_vec();
    assert_error(&file.refused(), "tensor \"one\"", "stands twice");
}

#[test]
fn five_dimensions() {
    let mut file = two_tensors();
    file.tensors[1].dims = vec![4, 1, 2, 2, 1];
    assert_error(&file.refused(), "tensor \"two\"", "5 dimensions");
}

#[test]
fn dimension_count_huge() {
    let mut file = two_tensors();
    file.tensors[1].n_dims = Some(u32::MAX);
    assert_error(&file.refused(), "tensor \"two\"", "4294967295 dimensions");
}

#[test]
fn zero_dimension() {
    let mut file = two_tensors();
    file.tensors[1].dims = vec![4, 0, 2];
    assert_error(&file.refused(), "tensor \"two\"", "dimension 1 is zero");
}

#[test]
fn negative_dimension() {
    let mut file = two_tensors();
    file.tensors[1].dims = vec![4, -1i64 as u64, 2];
    assert_error(&file.refused(), "tensor \"two\"", "overflows");
}

#[test]
fn elements_overflow() {
    let mut file = two_tensors();
    file.tensors[1].dims = vec![1 << 32, 1 << 31, 1, 1];
    assert_error(&file.refused(), "tensor \"two\"", "product of dimensions");
    file.tensors[1].dims = vec![1 << 32, 1 << 32, 1 << 32, 1 << 32];
    assert_error(&file.refused(), "tensor \"two\"", "product of dimensions");
}

#[test]
fn bytes_overflow() {
    let mut file = two_tensors();
    file.tensors[1].type_id = type_named("i64").id();
    file.tensors[1].dims = vec![1 << 31, 1 << 31];
    assert_error(&file.refused(), "tensor \"two\"", "byte size");
    // A single row whose bytes do not fit.
    file.tensors[1].dims = vec![(1 << 62) - 1];
    assert_error(&file.refused(), "tensor \"two\"", "overflow");
    file.tensors[1].dims = vec![(1 << 63) - 32];
    assert_error(&file.refused(), "tensor \"two\"", "overflow");
}

#[test]
fn removed_tensor_types() {
    for type_id in [4, 5, 31, 32, 33, 36, 37, 38] {
        let mut file = two_tensors();
        file.tensors[1].type_id = type_id;
        let error = file.refused();
        assert_error(
            &error,
            "tensor \"two\"",
            &format!("type {type_id} is unknown"),
        );
    }
}

#[test]
fn unknown_tensor_types() {
    for type_id in [43, 1000, u32::MAX] {
        let mut file = two_tensors();
        file.tensors[1].type_id = type_id;
        let error = file.refused();
        assert_error(
            &error,
            "tensor \"two\"",
            &format!("type {type_id} is unknown"),
        );
    }
}

#[test]
fn rows_of_broken_blocks() {
    let mut file = two_tensors();
    file.tensors[1].type_id = type_named("q4_0").id();
    file.tensors[1].dims = vec![33, 4];
    assert_error(&file.refused(), "tensor \"two\"", "no whole number of q4_0");
    // The elements fill blocks, the rows do not.
    file.tensors[1].dims = vec![16, 4];
    assert_error(&file.refused(), "tensor \"two\"", "no whole number of q4_0");
}

#[test]
fn offset_misaligned() {
    let mut file = two_tensors();
    file.tensors[1].offset = Some(60);
    assert_error(&file.refused(), "tensor \"two\"", "no multiple");
}

#[test]
fn offset_of_another_alignment() {
    // Laid out for 4 bytes while the file's alignment is 32.
    let mut file = two_tensors();
    file.alignment = 4;
    assert_error(&file.refused(), "tensor \"two\"", "no multiple");
}

#[test]
fn offset_overlapping() {
    let mut file = two_tensors();
    file.tensors[1].offset = Some(32);
    assert_error(&file.refused(), "tensor \"two\"", "overlaps");
    file.tensors[1].offset = Some(0);
    assert_error(&file.refused(), "tensor \"two\"", "overlaps");
}

#[test]
fn offset_overlapping_by_one_byte() {
    let mut file = two_tensors();
    file.kvs.push(kv_u32(ALIGNMENT, 1));
    file.alignment = 1;
    file.tensors[1].offset = Some(59);
    assert_error(&file.refused(), "tensor \"two\"", "overlaps");
}

#[test]
fn offset_with_a_gap() {
    let mut file = two_tensors();
    file.tensors[1].offset = Some(96);
    assert_error(&file.refused(), "tensor \"two\"", "leaves a gap");
}

#[test]
fn first_offset_not_zero() {
    let mut file = two_tensors();
    file.tensors[0].offset = Some(32);
    assert_error(&file.refused(), "tensor \"one\"", "leaves a gap");
}

#[test]
fn offset_past_the_end() {
    let mut file = two_tensors();
    file.tensors[1].offset = Some(1 << 40);
    assert_error(&file.refused(), "tensor \"two\"", "leaves a gap");
}

#[test]
fn offset_overflowing() {
    let mut file = two_tensors();
    file.tensors[1].offset = Some(u64::MAX - 31);
    assert_error(&file.refused(), "tensor \"two\"", "leaves a gap");
}

#[test]
fn tensors_out_of_order() {
    let mut file = two_tensors();
    file.tensors[0].offset = Some(64);
    file.tensors[1].offset = Some(0);
    assert_error(&file.refused(), "tensor \"one\"", "leaves a gap");
}

// Tensor data.

#[test]
fn data_truncated() {
    let bytes = two_tensors().bytes();
    let error = parse_error(&bytes[..bytes.len() - 1]);
    assert_error(&error, "tensor \"two\"", "not fully downloaded");
}

#[test]
fn data_section_missing() {
    let file = two_tensors();
    let header_end = file.parse().unwrap().header_end() as usize;
    let error = parse_error(&file.bytes()[..header_end]);
    assert_error(&error, "tensor \"one\"", "not fully downloaded");
}

#[test]
fn tensor_larger_than_the_file() {
    let mut file = two_tensors();
    file.tensors[1].dims = vec![1 << 40];
    assert_error(&file.refused(), "tensor \"two\"", "not fully downloaded");
}

#[test]
fn sizes_that_add_up_to_more_than_a_file_can_have() {
    let mut file = two_tensors();
    for tensor in &mut file.tensors {
        tensor.type_id = GgmlType::I8.id();
        tensor.dims = vec![0x7fff_ffff_ffff_ffc0];
    }
    assert_error(&file.refused(), "tensor \"one\"", "not fully downloaded");
}

#[test]
fn truncated_anywhere() {
    let file = RawGguf {
        kvs: vec![
            kv_str("general.architecture", "llama"),
            kv_u32(ALIGNMENT, 32),
            kv_array("tokens", STRING, 2, &[string(b"a"), string(b"bc")].concat()),
            kv_array("numbers", U32, 3, &[1; 12]),
        ],
        ..two_tensors()
    };
    let bytes = file.bytes();
    assert_eq!(file.parse().unwrap().data_end(), bytes.len() as u64);
    for len in 0..bytes.len() {
        assert!(Gguf::parse(&bytes[..len]).is_err(), "cut after {len} bytes");
    }
}

#[test]
fn cut_in_the_end_padding_it_stays_whole() {
    let mut file = two_tensors();
    file.tensors[1] = f32_tensor("two", &[5]);
    let bytes = file.bytes();
    let whole = file.parse().unwrap();
    let data_end = whole.data_end() as usize;
    assert_eq!(data_end + 12, bytes.len());
    for len in 0..=bytes.len() {
        match Gguf::parse(&bytes[..len]) {
            Ok(cut) => {
                assert!(len >= data_end, "cut after {len} bytes");
                assert_eq!(cut.tensors(), whole.tensors());
                assert_eq!(cut.file_len(), len as u64);
            }
            Err(_) => assert!(len < data_end, "cut after {len} bytes"),
        }
    }
}
