//! R5 to R7: segments cover each logical byte once.

use headshare_format::alias::keys;
use headshare_format::gguf::ValueType;

use super::support::{assert_error, kv_array, kv_u32};
use super::{A_IN_POOL, C, NORM, ROW, broken, key};

// R5: the arrays of the segments.

const SEGMENT_KEYS: [&str; 5] = [
    keys::SEGMENT_TENSORS,
    keys::SEGMENT_OFFSETS,
    keys::SEGMENT_LENGTHS,
    keys::SEGMENT_STORED,
    keys::SEGMENT_STORED_OFFSETS,
];

#[test]
fn r05_segment_arrays_are_missing() {
    for name in SEGMENT_KEYS {
        let error = broken(|f| f.remove(name));
        assert_error(&error, &key(name), "is missing");
    }
}

#[test]
fn r05_segment_arrays_have_other_types() {
    for name in SEGMENT_KEYS {
        let error = broken(|f| f.set(name, kv_array(name, ValueType::I32 as u32, 9, &[0; 36])));
        assert_error(&error, &key(name), "expected an array of u");
        let error = broken(|f| f.set(name, kv_u32(name, 9)));
        assert_error(&error, &key(name), "expected an array");
    }
}

#[test]
fn r05_segment_arrays_differ_in_length() {
    for name in [
        keys::SEGMENT_OFFSETS,
        keys::SEGMENT_LENGTHS,
        keys::SEGMENT_STORED_OFFSETS,
    ] {
        let error = broken(|f| f.edit_u64s(name, |v| v.push(0)));
        assert_error(&error, &key(name), "has 10 elements where");
    }
    let error = broken(|f| f.edit_u32s(keys::SEGMENT_STORED, |v| v.truncate(8)));
    assert_error(&error, &key(keys::SEGMENT_STORED), "has 8 elements where");
}

#[test]
fn r05_segment_of_no_tensor() {
    for tensor in [4, u32::MAX] {
        let error = broken(|f| f.edit_u32s(keys::SEGMENT_TENSORS, |v| v[NORM] = tensor));
        assert_error(&error, &key(keys::SEGMENT_TENSORS), "but there are 4");
    }
}

// R6: whole rows.

#[test]
fn r06_segment_is_empty() {
    let error = broken(|f| f.edit_u64s(keys::SEGMENT_LENGTHS, |v| v[A_IN_POOL] = 0));
    assert_error(&error, &key(keys::SEGMENT_OFFSETS), "not whole rows");
}

#[test]
fn r06_segment_ends_within_a_row() {
    let error = broken(|f| f.edit_u64s(keys::SEGMENT_LENGTHS, |v| v[A_IN_POOL] -= 4));
    assert_error(&error, &key(keys::SEGMENT_OFFSETS), "not whole rows");
}

#[test]
fn r06_segment_begins_within_a_row() {
    let error = broken(|f| f.edit_u64s(keys::SEGMENT_OFFSETS, |v| v[A_IN_POOL] += 4));
    assert_error(&error, &key(keys::SEGMENT_OFFSETS), "not whole rows");
}

// R7: in order, every byte once.

#[test]
fn r07_gap_between_segments() {
    let error = broken(|f| f.edit_u64s(keys::SEGMENT_OFFSETS, |v| v[A_IN_POOL] += ROW));
    assert_error(&error, &key(keys::SEGMENT_OFFSETS), "cover 4096 bytes");
}

#[test]
fn r07_overlapping_segments() {
    let error = broken(|f| f.edit_u64s(keys::SEGMENT_OFFSETS, |v| v[A_IN_POOL] -= ROW));
    assert_error(&error, &key(keys::SEGMENT_OFFSETS), "cover 4096 bytes");
}

#[test]
fn r07_segments_end_past_the_tensor() {
    for len in [9 * 4096, u64::MAX - (ROW - 1)] {
        let error = broken(|f| f.edit_u64s(keys::SEGMENT_LENGTHS, |v| v[2] = len));
        assert_error(&error, &key(keys::SEGMENT_OFFSETS), "ends past the tensor");
    }
}

#[test]
fn r07_segments_end_before_the_tensor() {
    let error = broken(|f| f.edit_u64s(keys::SEGMENT_LENGTHS, |v| v[2] -= ROW));
    assert_error(&error, &key(keys::SEGMENT_OFFSETS), "of its 16384 bytes");
}

#[test]
fn r07_tensor_without_segments() {
    let error = broken(|f| f.edit_u32s(keys::SEGMENT_TENSORS, |v| v[C] = 1));
    assert_error(&error, &key(keys::SEGMENT_OFFSETS), "segment 7 of \"b\"");
    let error = broken(|f| {
        f.edit_u32s(keys::SEGMENT_TENSORS, |v| v.truncate(C));
        for name in [
            keys::SEGMENT_OFFSETS,
            keys::SEGMENT_LENGTHS,
            keys::SEGMENT_STORED_OFFSETS,
        ] {
            f.edit_u64s(name, |v| v.truncate(C));
        }
        f.edit_u32s(keys::SEGMENT_STORED, |v| v.truncate(C));
    });
    assert_error(&error, &key(keys::SEGMENT_OFFSETS), "cover 0 of its 8192");
}

#[test]
fn r07_segments_of_a_tensor_are_not_together() {
    let error = broken(|f| {
        f.edit_u32s(keys::SEGMENT_TENSORS, |v| v.push(0));
        f.edit_u64s(keys::SEGMENT_OFFSETS, |v| v.push(0));
        f.edit_u64s(keys::SEGMENT_LENGTHS, |v| v.push(ROW));
        f.edit_u32s(keys::SEGMENT_STORED, |v| v.push(0));
        f.edit_u64s(keys::SEGMENT_STORED_OFFSETS, |v| v.push(0));
    });
    assert_error(
        &error,
        &key(keys::SEGMENT_TENSORS),
        "segment 9 is not in the order",
    );
}
