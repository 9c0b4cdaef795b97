//! R1 to R4, R12 and R13: versions, logical tensors, the source's layout and
//! size, digests.

use headshare_format::alias::{
    FILLER, POOL, format_digest, keys, metadata_is_intact, stored_digests,
};
use headshare_format::gguf::ValueType;
use headshare_format::{Advice, Gguf, PageSize};

use super::support::converted::{Converted, convert};
use super::support::{assert_error, kv_array, kv_str, kv_u32, record, string};
use super::{bool_record, broken, key, shared, source, u64_record};

// R1: versions and page size.

#[test]
fn r01_format_version_is_missing() {
    let error = broken(|f| f.remove(keys::VERSION));
    assert_error(&error, &key(keys::VERSION), "is missing");
}

#[test]
fn r01_format_version_has_another_type() {
    let error = broken(|f| f.set(keys::VERSION, u64_record(keys::VERSION, 1)));
    assert_error(&error, &key(keys::VERSION), "expected a u32, found u64 1");
}

#[test]
fn r01_format_version_is_unknown() {
    for version in [0, 2, u32::MAX] {
        let error = broken(|f| f.set(keys::VERSION, kv_u32(keys::VERSION, version)));
        assert_error(&error, &key(keys::VERSION), "is unknown");
        assert_eq!(error.advice, Some(Advice::UseNewer));
    }
}

#[test]
fn r01_gguf_version_2() {
    let error = broken(|f| f.version = 2);
    assert_error(&error, "version", "GGUF version 3, this one is version 2");
}

#[test]
fn r01_alignment_is_no_page_size() {
    for page in [32, 2048, 8192, 1 << 20] {
        let error = broken(|f| {
            f.page = page as usize;
            f.set("general.alignment", kv_u32("general.alignment", page));
        });
        assert_error(&error, &key("general.alignment"), "no page size");
    }
}

#[test]
fn r01_alignment_is_missing() {
    let error = broken(|f| {
        f.page = 32;
        f.remove("general.alignment");
    });
    assert_error(&error, &key("general.alignment"), "32 is no page size");
}

// R2: the arrays of the logical tensors.

#[test]
fn r02_tensor_arrays_are_missing() {
    for name in [
        keys::TENSOR_NAMES,
        keys::TENSOR_TYPES,
        keys::TENSOR_N_DIMS,
        keys::TENSOR_DIMS,
    ] {
        let error = broken(|f| f.remove(name));
        assert_error(&error, &key(name), "is missing");
    }
}

#[test]
fn r02_tensor_arrays_have_other_types() {
    for name in [
        keys::TENSOR_NAMES,
        keys::TENSOR_TYPES,
        keys::TENSOR_N_DIMS,
        keys::TENSOR_DIMS,
    ] {
        let error = broken(|f| f.set(name, kv_u32(name, 4)));
        assert_error(&error, &key(name), "expected an array");
        let error = broken(|f| f.set(name, kv_array(name, ValueType::F32 as u32, 4, &[0; 16])));
        assert_error(&error, &key(name), "expected an array of");
    }
}

#[test]
fn r02_tensor_names_are_not_utf8() {
    let error = broken(|f| f.edit_strs(keys::TENSOR_NAMES, |v| v[1] = b"\xff".to_vec()));
    assert_error(&error, &key(keys::TENSOR_NAMES), "UTF-8");
}

#[test]
fn r02_fewer_types_than_names() {
    let error = broken(|f| f.edit_u32s(keys::TENSOR_TYPES, |v| v.truncate(3)));
    assert_error(&error, &key(keys::TENSOR_TYPES), "has 3 elements where");
}

#[test]
fn r02_more_dimension_counts_than_names() {
    let error = broken(|f| f.edit_u32s(keys::TENSOR_N_DIMS, |v| v.push(0)));
    assert_error(&error, &key(keys::TENSOR_N_DIMS), "has 5 elements where");
}

#[test]
fn r02_dimension_counts_do_not_add_up() {
    let error = broken(|f| f.edit_u32s(keys::TENSOR_N_DIMS, |v| v[0] = 3));
    assert_error(&error, &key(keys::TENSOR_DIMS), "7 dimensions, but");
    let error = broken(|f| f.edit_u32s(keys::TENSOR_N_DIMS, |v| v[0] = u32::MAX));
    assert_error(&error, &key(keys::TENSOR_DIMS), "7 dimensions, but");
    let error = broken(|f| f.edit_u64s(keys::TENSOR_DIMS, |v| v.push(1)));
    assert_error(&error, &key(keys::TENSOR_DIMS), "8 dimensions, but");
}

// R3: the source's layout.

#[test]
fn r03_source_keys_are_missing() {
    for name in [
        keys::SOURCE_VERSION,
        keys::SOURCE_ALIGNMENT,
        keys::SOURCE_HAS_ALIGNMENT_KEY,
        keys::SOURCE_SIZE,
    ] {
        let error = broken(|f| f.remove(name));
        assert_error(&error, &key(name), "is missing");
    }
}

#[test]
fn r03_source_keys_have_other_types() {
    for name in [
        keys::SOURCE_VERSION,
        keys::SOURCE_ALIGNMENT,
        keys::SOURCE_HAS_ALIGNMENT_KEY,
        keys::SOURCE_SIZE,
        keys::ARCHITECTURE,
    ] {
        let f64_record = record(name.as_bytes(), ValueType::F64 as u32, &[0; 8]);
        let error = broken(|f| f.set(name, f64_record));
        assert_error(&error, &key(name), "found f64 0");
    }
}

#[test]
fn r03_source_version_is_impossible() {
    for version in [0, 1, 4] {
        let error = broken(|f| f.set(keys::SOURCE_VERSION, kv_u32(keys::SOURCE_VERSION, version)));
        assert_error(&error, &key(keys::SOURCE_VERSION), "2 and 3 are possible");
    }
}

#[test]
fn r03_source_alignment_is_impossible() {
    for alignment in [0, 48, 1 << 21, 1 << 31] {
        let error = broken(|f| {
            f.set(
                keys::SOURCE_ALIGNMENT,
                kv_u32(keys::SOURCE_ALIGNMENT, alignment),
            )
        });
        assert_error(
            &error,
            &key(keys::SOURCE_ALIGNMENT),
            "no power of two of at most",
        );
    }
}

#[test]
fn r03_source_alignment_has_no_key_to_state_it() {
    let error = broken(|f| {
        f.set(
            keys::SOURCE_HAS_ALIGNMENT_KEY,
            bool_record(keys::SOURCE_HAS_ALIGNMENT_KEY, 0),
        );
    });
    assert_error(&error, &key(keys::SOURCE_ALIGNMENT), "64 needs a key");
}

#[test]
fn r03_source_is_a_headshare_file() {
    let error = broken(|f| f.set(keys::ARCHITECTURE, kv_str(keys::ARCHITECTURE, "headshare")));
    assert_error(&error, &key(keys::ARCHITECTURE), "is no headshare file");
}

#[test]
fn r03_architecture_is_not_utf8() {
    let bytes = record(
        keys::ARCHITECTURE.as_bytes(),
        ValueType::String as u32,
        &string(b"\xff"),
    );
    let error = broken(|f| f.set(keys::ARCHITECTURE, bytes));
    assert_error(&error, &key(keys::ARCHITECTURE), "not UTF-8");
}

#[test]
fn r03_expanded_size_overflows() {
    let error = broken(|f| {
        f.edit_u64s(keys::TENSOR_DIMS, |v| {
            for dims in [0, 2, 4] {
                v[dims] = 1 << 60;
                v[dims + 1] = 1;
            }
        });
    });
    assert_error(&error, "tensor \"b\"", "the expanded size overflows");
}

// R4: each logical tensor.

#[test]
fn r04_tensor_name_is_reserved() {
    let error = broken(|f| f.edit_strs(keys::TENSOR_NAMES, |v| v[3] = POOL.into()));
    assert_error(&error, &key(keys::TENSOR_NAMES), "is no tensor name");
}

#[test]
fn r04_tensor_name_is_too_long() {
    let error = broken(|f| f.edit_strs(keys::TENSOR_NAMES, |v| v[3] = vec![b'x'; 64]));
    assert_error(&error, &key(keys::TENSOR_NAMES), "at most 63 bytes");
}

#[test]
fn r04_tensor_name_stands_twice() {
    let error = broken(|f| f.edit_strs(keys::TENSOR_NAMES, |v| v[1] = b"a".to_vec()));
    assert_error(&error, &key(keys::TENSOR_NAMES), "\"a\" stands twice");
}

#[test]
fn r04_tensor_type_is_unknown() {
    for type_id in [4, 38, 43, u32::MAX] {
        let error = broken(|f| f.edit_u32s(keys::TENSOR_TYPES, |v| v[2] = type_id));
        assert_error(&error, &key(keys::TENSOR_TYPES), "unknown ggml type");
    }
}

#[test]
fn r04_five_dimensions() {
    let error = broken(|f| {
        f.edit_u32s(keys::TENSOR_N_DIMS, |v| v[0] = 5);
        f.edit_u64s(keys::TENSOR_DIMS, |v| v.extend([1, 1, 1]));
    });
    assert_error(&error, "logical tensor \"a\"", "5 dimensions");
}

#[test]
fn r04_zero_dimension() {
    let error = broken(|f| f.edit_u64s(keys::TENSOR_DIMS, |v| v[1] = 0));
    assert_error(&error, "logical tensor \"a\"", "dimension 1 is zero");
}

#[test]
fn r04_dimensions_overflow() {
    let error = broken(|f| f.edit_u64s(keys::TENSOR_DIMS, |v| v[1] = 1 << 60));
    assert_error(&error, "logical tensor \"a\"", "overflows");
}

#[test]
fn r04_rows_of_broken_blocks() {
    let error = broken(|f| {
        f.edit_u32s(keys::TENSOR_TYPES, |v| v[0] = 12);
    });
    assert_error(&error, "logical tensor \"a\"", "no whole number of q4_K");
}

// R12: the source's size.

#[test]
fn r12_size_is_too_small_for_the_tensors() {
    let error = broken(|f| f.set(keys::SOURCE_SIZE, u64_record(keys::SOURCE_SIZE, 1000)));
    assert_error(&error, &key(keys::SOURCE_SIZE), "header and tensors need");
}

#[test]
fn r12_filler_has_another_length() {
    let error = broken(|f| {
        let (info, data) = f.tensor(FILLER);
        data.push(0);
        info.dims[0] += 1;
    });
    assert_error(&error, &key(keys::SOURCE_SIZE), "\"headshare.filler\" has");
    let error = broken(|f| f.set(keys::SOURCE_SIZE, u64_record(keys::SOURCE_SIZE, u64::MAX)));
    assert_error(&error, &key(keys::SOURCE_SIZE), "\"headshare.filler\" has");
}

#[test]
fn r12_bytes_after_the_end_without_a_filler() {
    let error = broken(|f| {
        f.tensors.retain(|(t, _)| t.name != FILLER);
        f.edit_strs(keys::DIGEST_STORED, |v| v.truncate(4));
        let size = source().bytes().len() as u64 + 1;
        f.set(keys::SOURCE_SIZE, u64_record(keys::SOURCE_SIZE, size));
    });
    assert_error(
        &error,
        &key(keys::SOURCE_SIZE),
        "no \"headshare.filler\" holds",
    );
}

// R13: provenance and digests.

#[test]
fn r13_keys_are_missing() {
    for name in [
        keys::TOOL,
        keys::LOSSLESS,
        keys::SOURCE_DIGEST,
        keys::DIGEST_STORED,
        keys::DIGEST_METADATA,
    ] {
        let error = broken(|f| f.remove(name));
        assert_error(&error, &key(name), "is missing");
    }
}

#[test]
fn r13_keys_have_other_types() {
    for name in [
        keys::TOOL,
        keys::LOSSLESS,
        keys::SOURCE_DIGEST,
        keys::DIGEST_STORED,
        keys::DIGEST_METADATA,
        keys::PLAN,
    ] {
        let error = broken(|f| f.set(name, kv_u32(name, 1)));
        assert_error(&error, &key(name), "found u32 1");
    }
}

#[test]
fn r13_stored_digests_are_no_strings() {
    let record = kv_array(keys::DIGEST_STORED, ValueType::U64 as u32, 5, &[0; 40]);
    let error = broken(|f| f.set(keys::DIGEST_STORED, record));
    assert_error(
        &error,
        &key(keys::DIGEST_STORED),
        "expected an array of strings",
    );
}

#[test]
fn r13_fewer_digests_than_stored_tensors() {
    let error = broken(|f| f.edit_strs(keys::DIGEST_STORED, |v| v.truncate(4)));
    assert_error(&error, &key(keys::DIGEST_STORED), "4 digests for 5 stored");
}

#[test]
fn r13_digests_have_another_form() {
    let good = format!("blake3:{}", "0".repeat(64));
    for bad in [
        String::new(),
        "0".repeat(64),
        format!("sha256:{}", "0".repeat(64)),
        good[..70].to_owned(),
        format!("{good}0"),
        good.replace('0', "g"),
        good.replace('0', "A"),
    ] {
        let error = broken(|f| f.edit_strs(keys::DIGEST_STORED, |v| v[0] = bad.clone().into()));
        assert_error(&error, &key(keys::DIGEST_STORED), "is no digest");
        for name in [keys::SOURCE_DIGEST, keys::DIGEST_METADATA] {
            let error = broken(|f| f.set(name, kv_str(name, &bad)));
            assert_error(&error, &key(name), "is no digest");
        }
    }
}

#[test]
fn digests_hold_and_a_changed_header_is_noticed() {
    let file = convert(&source().bytes(), &shared(), PageSize::KIB_4).unwrap();
    let gguf = Gguf::parse(&file).unwrap();
    assert!(metadata_is_intact(&gguf).unwrap());
    for (tensor, stated) in gguf.tensors().iter().zip(stored_digests(&gguf).unwrap()) {
        let range = gguf.data_range(tensor);
        let hash = blake3::hash(&file[range.start as usize..range.end as usize]);
        assert_eq!(format_digest(&hash), stated);
    }
    let mut changed = Converted::of(&file);
    changed.set("llama.block_count", kv_u32("llama.block_count", 2));
    let gguf = Gguf::parse(&changed.bytes()).unwrap();
    assert!(!metadata_is_intact(&gguf).unwrap());
}
