//! R8 to R11: where segments point to.

use headshare_format::GgmlType;
use headshare_format::alias::{FILLER, POOL, keys};

use super::support::assert_error;
use super::{B_IN_POOL, B_NAMED, C, NORM, ROW, broken, key};

// R8: segments lie in stored tensors.

#[test]
fn r08_segment_in_no_stored_tensor() {
    for stored in [5, u32::MAX] {
        let error = broken(|f| f.edit_u32s(keys::SEGMENT_STORED, |v| v[C] = stored));
        assert_error(&error, &key(keys::SEGMENT_STORED), "but there are 5");
    }
}

#[test]
fn r08_segment_past_the_stored_tensor() {
    for offset in [ROW, 1 << 40, u64::MAX] {
        let error = broken(|f| f.edit_u64s(keys::SEGMENT_STORED_OFFSETS, |v| v[C] = offset));
        assert_error(
            &error,
            &key(keys::SEGMENT_STORED_OFFSETS),
            "lie outside \"c\"",
        );
    }
}

// R9: the stored tensors there are.

#[test]
fn r09_stored_tensor_of_no_logical_name() {
    let error = broken(|f| {
        let (mut info, data) = f.tensors[0].clone();
        info.name = "extra".to_owned();
        f.tensors.push((info, data));
    });
    assert_error(&error, "tensor \"extra\"", "no logical tensor has its name");
}

#[test]
fn r09_stored_tensor_of_another_reserved_name() {
    let error = broken(|f| f.tensor(FILLER).0.name = "headshare.other".to_owned());
    assert_error(&error, "tensor \"headshare.other\"", "no logical tensor");
}

#[test]
fn r09_pool_is_not_i8() {
    let error = broken(|f| {
        let (info, data) = f.tensor(POOL);
        info.ggml_type = GgmlType::F32;
        info.dims = vec![data.len() as u64 / 4];
    });
    assert_error(&error, "tensor \"headshare.pool\"", "one dimension of i8");
}

#[test]
fn r09_pool_has_two_dimensions() {
    let error = broken(|f| {
        let (info, data) = f.tensor(POOL);
        info.dims = vec![data.len() as u64 / 2, 2];
    });
    assert_error(&error, "tensor \"headshare.pool\"", "one dimension of i8");
}

#[test]
fn r09_filler_has_two_dimensions() {
    let error = broken(|f| f.tensor(FILLER).0.dims.push(1));
    assert_error(&error, "tensor \"headshare.filler\"", "one dimension of i8");
}

#[test]
fn r09_filler_is_used_by_a_segment() {
    let error = broken(|f| {
        // A filler that is large enough for the norm; R12 would refuse it too.
        let (info, data) = f.tensor(FILLER);
        data.resize(240, 0);
        info.dims = vec![240];
        let filler = f.stored_index(FILLER);
        f.edit_u32s(keys::SEGMENT_STORED, |v| v[NORM] = filler);
        f.edit_u64s(keys::SEGMENT_STORED_OFFSETS, |v| v[NORM] = 0);
    });
    assert_error(
        &error,
        "tensor \"headshare.filler\"",
        "is used by a segment",
    );
}

// R10: stored tensors with a logical name.

#[test]
fn r10_used_as_another_type() {
    let error = broken(|f| {
        let b = f.stored_index("b");
        f.edit_u32s(keys::SEGMENT_STORED, |v| v[C] = b);
    });
    assert_error(&error, "tensor \"b\"", "used at byte 0 by \"c\" as f16");
}

#[test]
fn r10_used_with_another_row_length() {
    let error = broken(|f| {
        f.tensor("b").0.dims = vec![128, 16];
    });
    assert_error(&error, "tensor \"b\"", "as f32 with rows of 64");
}

#[test]
fn r10_used_within_a_row() {
    let error = broken(|f| {
        f.edit_u32s(keys::SEGMENT_STORED, |v| v[B_IN_POOL] = v[0]);
        f.edit_u64s(keys::SEGMENT_STORED_OFFSETS, |v| v[B_IN_POOL] = 4);
    });
    assert_error(&error, "tensor \"a\"", "used at byte 4 by \"b\"");
}

#[test]
fn r10_stored_rows_that_nobody_uses() {
    let error = broken(|f| {
        let (info, data) = f.tensor("c");
        info.dims[1] += 1;
        data.resize(data.len() + 128, 0);
    });
    assert_error(&error, "tensor \"c\"", "its bytes from 8192 on");
}

#[test]
fn r10_stored_rows_that_only_others_use() {
    // `b`'s own rows come from `a`, and so nobody needs the stored `b`.
    let error = broken(|f| {
        f.edit_u32s(keys::SEGMENT_STORED, |v| v[B_NAMED] = v[0]);
        f.edit_u64s(keys::SEGMENT_STORED_OFFSETS, |v| v[B_NAMED] = 0);
    });
    assert_error(&error, "tensor \"b\"", "its bytes from 0 on");
}

// R11: the pool.

#[test]
fn r11_pool_rows_of_two_types() {
    let error = broken(|f| {
        let pool = f.stored_index(POOL);
        f.tensors.retain(|(t, _)| t.name != "c");
        f.edit_u32s(keys::SEGMENT_STORED, |v| {
            for stored in v.iter_mut() {
                *stored -= u32::from(*stored >= pool);
            }
            v[C] = pool - 1;
        });
        let (info, data) = f.tensor(POOL);
        data.resize(8192, 0);
        info.dims = vec![8192];
        f.edit_u64s(keys::SEGMENT_STORED_OFFSETS, |v| v[C] = 0);
    });
    assert_error(&error, "tensor \"headshare.pool\"", "that do not agree");
}

#[test]
fn r11_pool_rows_of_two_types_behind_a_nested_segment() {
    // In the pool: a long segment of `a`, a short one within it, and behind
    // the short one, still within the long one, the norm's row.
    let error = broken(|f| {
        f.edit_u64s(keys::SEGMENT_STORED_OFFSETS, |v| v[NORM] = 2 * ROW);
        f.edit_u64s(keys::SEGMENT_OFFSETS, |v| v.insert(B_IN_POOL + 1, ROW));
        f.edit_u64s(keys::SEGMENT_LENGTHS, |v| {
            v[B_IN_POOL] = ROW;
            v.insert(B_IN_POOL + 1, 15 * ROW);
        });
        f.edit_u32s(keys::SEGMENT_TENSORS, |v| v.insert(B_IN_POOL + 1, 1));
        // The rest of the block comes from elsewhere.
        f.edit_u32s(keys::SEGMENT_STORED, |v| v.insert(B_IN_POOL + 1, 0));
        f.edit_u64s(keys::SEGMENT_STORED_OFFSETS, |v| v.insert(B_IN_POOL + 1, 0));
        // And so does the block that would lie behind the short segment too.
        f.edit_u32s(keys::SEGMENT_STORED, |v| v[B_NAMED + 2] = 0);
    });
    assert_error(&error, "tensor \"headshare.pool\"", "that do not agree");
}

#[test]
fn r11_pool_rows_shifted_against_each_other() {
    let error = broken(|f| {
        let (info, data) = f.tensor(POOL);
        data.resize(data.len() + 4, 0);
        info.dims = vec![data.len() as u64];
        f.edit_u64s(keys::SEGMENT_STORED_OFFSETS, |v| v[B_IN_POOL] += 4);
    });
    assert_error(&error, "tensor \"headshare.pool\"", "that do not agree");
}
