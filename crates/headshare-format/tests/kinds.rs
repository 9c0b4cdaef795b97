//! Programs match on the kind of an error: one file for each kind and rule of
//! GGUF. Those of the headshare format are held to their numbers by the tests of
//! malformed tables.

mod support;

use headshare_format::ErrorKind::{self, Malformed, Truncated, Unsupported};
use headshare_format::{GgmlType, Rule};
use support::{RawGguf, RawTensor, f32_tensor, kv_array, kv_str, kv_u32, record};

fn with_kvs(kvs: Vec<Vec<u8>>) -> RawGguf {
    RawGguf {
        kvs,
        ..RawGguf::default()
    }
}

/// One good tensor, then this one.
fn with_tensor(edit: impl FnOnce(&mut RawTensor)) -> RawGguf {
    let mut tensor = f32_tensor("two", &[4, 2]);
    edit(&mut tensor);
    RawGguf {
        tensors: vec![f32_tensor("one", &[4, 2]), tensor],
        ..RawGguf::default()
    }
}

#[test]
fn each_kind_of_error_is_told_apart() {
    let odd_elements = kv_array("a", 99, 0, &[]);
    let magic = RawGguf {
        magic: *b"what",
        ..RawGguf::default()
    };
    let version = RawGguf {
        version: 4,
        ..RawGguf::default()
    };
    let cut = RawGguf {
        n_kvs: Some(7),
        ..RawGguf::default()
    };
    let cases: [(RawGguf, ErrorKind); 16] = [
        (magic, Malformed(Rule::Magic)),
        (version, Unsupported),
        (cut, Truncated),
        (
            with_kvs(vec![kv_u32("a", 1), kv_u32("a", 1)]),
            Malformed(Rule::Key),
        ),
        (with_kvs(vec![kv_u32("", 1)]), Malformed(Rule::Key)),
        (
            with_kvs(vec![record(b"\xff", 0, &[0])]),
            Malformed(Rule::Key),
        ),
        (
            with_kvs(vec![record(b"a", 99, &[0; 8])]),
            Malformed(Rule::Value),
        ),
        (with_kvs(vec![odd_elements]), Malformed(Rule::Value)),
        (
            with_kvs(vec![kv_str("general.alignment", "x")]),
            Malformed(Rule::Alignment),
        ),
        (with_kvs(vec![kv_u32("split.count", 2)]), Unsupported),
        (
            with_tensor(|t| t.name = b"one".to_vec()),
            Malformed(Rule::TensorName),
        ),
        (
            with_tensor(|t| t.name = vec![b'x'; 64]),
            Malformed(Rule::TensorName),
        ),
        (with_tensor(|t| t.dims = vec![4, 0]), Malformed(Rule::Shape)),
        (with_tensor(|t| t.type_id = 4), Unsupported),
        (with_tensor(|t| t.offset = Some(64)), Malformed(Rule::Data)),
        (with_tensor(|t| t.dims = vec![4, 200]), Truncated),
    ];
    for (file, kind) in cases {
        let error = file.refused();
        assert_eq!(error.kind, kind, "{error}");
    }
    assert!(GgmlType::from_id(4).is_none());
}

#[test]
fn a_wrong_value_breaks_the_rule_of_values() {
    let gguf = with_kvs(vec![kv_str("a", "x")]).parse().unwrap();
    let error = gguf.u64_value("a").unwrap_err();
    assert_eq!(error.kind, Malformed(Rule::Value));
}
