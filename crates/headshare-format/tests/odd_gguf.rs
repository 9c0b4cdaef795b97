//! Files that look odd and are right: one test each.

mod support;

use headshare_format::GgmlType;
use headshare_format::gguf::{Value, ValueType};
use support::{
    RawGguf, assert_error, empty, f32_tensor, kv_array, kv_u32, record, string, tensor,
    two_tensors, with_kv,
};

const STRING: u32 = ValueType::String as u32;
const ALIGNMENT: &str = "general.alignment";

#[test]
fn no_keys_and_no_tensors() {
    let gguf = empty().parse().unwrap();
    assert_eq!((gguf.kvs().len(), gguf.tensors().len()), (0, 0));
    assert_eq!((gguf.header_end(), gguf.data_offset()), (24, 32));
    assert_eq!(gguf.data_end(), 24);
    let filler = gguf.filler_ranges();
    assert_eq!((filler.len(), &filler[0]), (1, &(24..32)));
}

#[test]
fn no_keys_no_tensors_no_padding() {
    let file = RawGguf {
        end_padding: false,
        ..empty()
    };
    assert!(file.parse().unwrap().filler_ranges().is_empty());
}

#[test]
fn version_2() {
    let file = RawGguf {
        version: 2,
        ..two_tensors()
    };
    let gguf = file.parse().unwrap();
    assert_eq!((gguf.version(), gguf.tensors().len()), (2, 2));
}

#[test]
fn custom_alignments() {
    for alignment in [1, 2, 8, 64, 4096, 1 << 20] {
        let mut file = two_tensors();
        file.kvs.push(kv_u32(ALIGNMENT, alignment));
        file.alignment = alignment as usize;
        let gguf = file.parse().unwrap();
        assert_eq!(gguf.alignment(), u64::from(alignment));
        let two = gguf.tensor("two").unwrap();
        assert_eq!(two.offset, 60u64.next_multiple_of(alignment.into()));
    }
}

#[test]
fn missing_end_padding() {
    let mut file = two_tensors();
    file.tensors[1] = f32_tensor("two", &[5]);
    file.end_padding = false;
    let gguf = file.parse().unwrap();
    assert_eq!(gguf.data_end(), gguf.file_len());
}

#[test]
fn trailing_bytes() {
    let file = RawGguf {
        trailing: vec![7; 100],
        ..two_tensors()
    };
    let gguf = file.parse().unwrap();
    assert_eq!(gguf.file_len() - gguf.data_end(), 100);
}

#[test]
fn scalar_tensor_without_dimensions() {
    let mut file = two_tensors();
    file.tensors[1] = f32_tensor("two", &[]);
    let gguf = file.parse().unwrap();
    let two = gguf.tensor("two").unwrap();
    assert_eq!((two.rows(), two.row_elems(), two.byte_len()), (1, 1, 4));
}

#[test]
fn quantized_scalar_is_no_whole_block() {
    let mut file = two_tensors();
    file.tensors[1].type_id = 8;
    file.tensors[1].dims = vec![];
    assert_error(&file.refused(), "tensor \"two\"", "no whole number of q8_0");
}

#[test]
fn every_tensor_type() {
    let tensors = GgmlType::all()
        .map(|t| tensor(t.name(), t, &[t.block_elems() * 2, 3], 1))
        .collect();
    let file = RawGguf { tensors, ..empty() };
    let gguf = file.parse().unwrap();
    for t in GgmlType::all() {
        assert_eq!(gguf.tensor(t.name()).unwrap().ggml_type, t);
    }
}

#[test]
fn not_a_split_file() {
    for count in [0, 1] {
        assert!(with_kv(kv_u32("split.count", count)).parse().is_ok());
    }
}

#[test]
fn string_values_need_not_be_utf8() {
    let file = with_kv(record(b"a", STRING, &string(b"\xff\0x")));
    let gguf = file.parse().unwrap();
    assert_eq!(gguf.value("a"), Some(Value::String(b"\xff\0x")));
    let error = gguf.str_value("a").unwrap_err();
    assert_error(&error, "key \"a\"", "not UTF-8");
}

#[test]
fn every_value_type() {
    use Value::*;
    let values = [
        (0, vec![200], U8(200)),
        (1, vec![0xff], I8(-1)),
        (2, vec![1, 2], U16(0x201)),
        (3, vec![0xfe, 0xff], I16(-2)),
        (4, vec![1, 0, 0, 0x80], U32(0x8000_0001)),
        (5, vec![0xfd, 0xff, 0xff, 0xff], I32(-3)),
        (6, 1.5f32.to_le_bytes().to_vec(), F32(1.5)),
        (7, vec![1], Bool(true)),
        (8, string(b"text"), String(b"text")),
        (10, u64::MAX.to_le_bytes().to_vec(), U64(u64::MAX)),
        (11, i64::MIN.to_le_bytes().to_vec(), I64(i64::MIN)),
        (12, (-0.25f64).to_le_bytes().to_vec(), F64(-0.25)),
    ];
    let mut kvs = Vec::new();
    for (type_id, bytes, _) in &values {
        kvs.push(record(format!("one.{type_id}").as_bytes(), *type_id, bytes));
        let two = [bytes.clone(), bytes.clone()].concat();
        kvs.push(kv_array(&format!("two.{type_id}"), *type_id, 2, &two));
        kvs.push(kv_array(&format!("none.{type_id}"), *type_id, 0, &[]));
    }
    let file = RawGguf { kvs, ..empty() };
    let gguf = file.parse().unwrap();
    for (type_id, bytes, value) in values {
        assert_eq!(gguf.value(&format!("one.{type_id}")), Some(value));
        let array = |key: &str| gguf.array_value(&format!("{key}.{type_id}")).unwrap();
        let two = array("two").unwrap();
        assert_eq!(two.elem as u32, type_id);
        assert_eq!(two.values().collect::<Vec<_>>(), [value, value]);
        assert_eq!(two.bytes(), [bytes.clone(), bytes].concat());
        assert_eq!(array("none").unwrap().values().count(), 0);
    }
    // Records are kept as they are.
    let records: Vec<u8> = gguf
        .kvs()
        .iter()
        .flat_map(|kv| gguf.record(kv))
        .copied()
        .collect();
    assert_eq!(records, file.kvs.concat());
    assert_eq!(
        gguf.header_bytes(),
        &file.bytes()[..gguf.header_end() as usize]
    );
}
