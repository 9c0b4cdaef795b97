//! Files that are no GGUF that llama.cpp would load, one for each reason.

use headshare_format::Gguf;

use super::raw::{self, Raw, RawTensor, array, record, string, string_bytes, tensor};
use crate::support::small;

/// A malformed file.
pub struct BadFile {
    /// What is wrong with it.
    pub name: &'static str,
    pub bytes: Vec<u8>,
    /// What the message must say.
    pub says: &'static str,
}

fn good() -> Raw {
    Raw::parse(&small("tiny-llama").to_bytes().unwrap())
}

/// The good file, changed.
fn changed(change: impl FnOnce(&mut Raw)) -> Vec<u8> {
    let mut raw = good();
    change(&mut raw);
    raw.bytes()
}

fn with_key(record: Vec<u8>) -> Vec<u8> {
    changed(|raw| raw.kvs.push(record))
}

fn with_tensor(tensor: RawTensor) -> Vec<u8> {
    changed(|raw| raw.tensors.push(tensor))
}

/// All of them.
pub fn all() -> Vec<BadFile> {
    let mut files = Vec::new();
    let mut add = |name, bytes, says| files.push(BadFile { name, bytes, says });
    start(&mut add);
    foreign(&mut add);
    truncated(&mut add);
    keys(&mut add);
    tensors(&mut add);
    files
}

type Add<'a> = dyn FnMut(&'static str, Vec<u8>, &'static str) + 'a;

fn start(add: &mut Add) {
    add("empty", vec![], "magic");
    add(
        "text",
        b"Once upon a time, there was a llama.\n".repeat(9),
        "no GGUF file",
    );
    add(
        "bad magic",
        changed(|raw| raw.magic = *b"GGML"),
        "no GGUF file",
    );
    add("version 0", changed(|raw| raw.version = 0), "version 0");
    add(
        "version 1",
        changed(|raw| raw.version = 1),
        "version 1 is not supported",
    );
    add(
        "version 4",
        changed(|raw| raw.version = 4),
        "version 4 is not supported",
    );
    add(
        "huge version",
        changed(|raw| raw.version = u32::MAX),
        "version",
    );
    add(
        "big-endian",
        changed(|raw| raw.version = 3u32.swap_bytes()),
        "big-endian",
    );
    add(
        "big-endian magic",
        changed(|raw| raw.magic = *b"FUGG"),
        "big-endian",
    );
    for (name, n) in [
        ("huge key count", 1 << 60),
        ("key count of all ones", u64::MAX),
        ("key count of a megabyte", 1 << 20),
    ] {
        add(name, changed(|raw| raw.n_kvs = Some(n)), "");
    }
    for (name, n) in [
        ("huge tensor count", 1 << 60),
        ("tensor count of all ones", u64::MAX),
        ("one tensor too many", good().tensors.len() as u64 + 1),
    ] {
        add(name, changed(|raw| raw.n_tensors = Some(n)), "");
    }
}

/// Files that are taken for models; each is told what it is.
fn foreign(add: &mut Add) {
    const POINTER: &str = "version https://git-lfs.github.com/spec/v1
oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393
size 12345678
";
    add(
        "Git LFS pointer",
        POINTER.into(),
        "is a Git LFS pointer: the file of 12345678 bytes that it stands for was not fetched",
    );
    let mut safetensors = 64u64.to_le_bytes().to_vec();
    safetensors.extend(format!("{:64}", "{\"__metadata__\":{\"format\":\"pt\"}}").bytes());
    safetensors.extend([0; 99]);
    add("safetensors", safetensors, "is a safetensors file");
    for (name, magic, says) in [
        ("old ggml", 0x6767_6d6c_u32, "an old ggml model file (ggml)"),
        ("old ggmf", 0x6767_6d66, "an old ggml model file (ggmf)"),
        ("old ggjt", 0x6767_6a74, "an old ggml model file (ggjt)"),
        ("old ggla", 0x6767_6c61, "an old ggml LoRA adapter (ggla)"),
        (
            "old session",
            0x6767_736e,
            "a saved state of llama.cpp (ggsn)",
        ),
    ] {
        let file = |magic: [u8; 4]| [&magic[..], &3u32.to_le_bytes(), &[7; 99]].concat();
        add(name, file(magic.to_le_bytes()), says);
        add("the same, big-endian", file(magic.to_be_bytes()), says);
    }
    add(
        "PyTorch zip",
        b"PK\x03\x04\x00\x00archive/data.pkl".to_vec(),
        "is a zip archive",
    );
    add("pickle", b"\x80\x02}q\x00(X".to_vec(), "is a Python pickle");
    for (magic, name) in [
        (&b"\x1f\x8b\x08\0"[..], "(gzip)"),
        (b"\xfd7zXZ\0", "(xz)"),
        (b"\x28\xb5\x2f\xfd", "(zstd)"),
        (b"BZh9", "(bzip2)"),
        (b"7z\xbc\xaf\x27\x1c", "(7z)"),
    ] {
        add("compressed", [magic, &[0; 99]].concat(), name);
    }
    add(
        "web page",
        b"\n<!DOCTYPE html>\n<html><head>".to_vec(),
        "is a web page",
    );
    // Nothing of the kind.
    let mut no_header = u64::MAX.to_le_bytes().to_vec();
    no_header.extend(b"{\"a\"");
    add("length of all ones before JSON", no_header, "no GGUF file");
    add(
        "longer text about Git LFS",
        POINTER.repeat(9).into(),
        "no GGUF file",
    );
}

fn truncated(add: &mut Add) {
    let file = good().bytes();
    let gguf = Gguf::parse(&file).unwrap();
    let kvs_end = gguf.value_range(gguf.kvs().last().unwrap()).end;
    let first_value = gguf.value_range(&gguf.kvs()[0]);
    for (name, len) in [
        ("cut in the magic", 3),
        ("cut after the magic", 4),
        ("cut in the version", 7),
        ("cut in the tensor count", 12),
        ("cut in the key count", 23),
        ("cut before the first key", 24),
        ("cut in a key's length", 28),
        ("cut in a key", 36),
        ("cut in a value", first_value.end - 1),
        ("cut after a value", first_value.end),
        ("cut in the keys", kvs_end / 2),
        ("cut before the tensors", kvs_end),
        ("cut in a tensor's name", kvs_end + 10),
        (
            "cut in the last tensor info",
            gguf.header_end() as usize - 1,
        ),
        ("cut after the header", gguf.header_end() as usize),
        ("cut before the data", gguf.data_offset() as usize),
        ("cut in the data", file.len() / 2),
        ("without its last byte", gguf.data_end() as usize - 1),
    ] {
        add(name, file[..len].to_vec(), "");
    }
}

fn keys(add: &mut Add) {
    add(
        "duplicate key",
        with_key(string("general.name", "x")),
        "stands twice",
    );
    add("empty key", with_key(string("", "x")), "empty");
    add(
        "key that is not UTF-8",
        with_key(record(b"x.\xff\xfe", raw::U8, &[1])),
        "not UTF-8",
    );
    let mut huge = u64::MAX.to_le_bytes().to_vec();
    huge.extend(b"x");
    add("huge key length", with_key(huge), "truncated");
    add(
        "huge string",
        with_key(record("x", raw::STRING, &(1u64 << 62).to_le_bytes())),
        "truncated",
    );
    add(
        "unknown value type",
        with_key(record("x", 13, &[0; 8])),
        "value type 13",
    );
    add(
        "unknown type of elements",
        with_key(array("x", 99, 0, &[])),
        "type 99",
    );
    add(
        "nested arrays",
        with_key(array("x", raw::ARRAY, 0, &[])),
        "arrays of arrays",
    );
    let inner = array("", raw::U8, 1, &[1]);
    add(
        "nested arrays with elements",
        with_key(array("x", raw::ARRAY, 1, &inner[12..])),
        "arrays of arrays",
    );
    for (name, elem, len) in [
        ("huge array", raw::U8, 1 << 50),
        ("array whose size overflows", raw::U64, 1 << 61),
        ("array of all ones", raw::STRING, u64::MAX),
    ] {
        add(name, with_key(array("x", elem, len, &[0; 32])), "truncated");
    }
    let mut long = string_bytes(b"a");
    long.extend((1u64 << 40).to_le_bytes());
    add(
        "huge string in an array",
        with_key(array("x", raw::STRING, 2, &long)),
        "truncated",
    );

    let split = |count| {
        let name = "tiny-00001-of-00003";
        changed(|raw| {
            raw.kvs.push(string("general.basename", name));
            raw.kvs.push(count);
        })
    };
    add(
        "split file",
        split(record("split.count", raw::U16, &3u16.to_le_bytes())),
        "split over 3 files",
    );
    add(
        "split file, count of another type",
        split(record("split.count", raw::I32, &2i32.to_le_bytes())),
        "split over 2 files",
    );
    let alignment = |n| raw::u32("general.alignment", n);
    for (name, n) in [
        ("alignment 0", 0),
        ("alignment 3", 3),
        ("alignment 48", 48),
        ("alignment of half the address space", 1 << 31),
    ] {
        add(name, with_key(alignment(n)), "power of two");
    }
    add(
        "alignment that is a u64",
        with_key(raw::u64("general.alignment", 64)),
        "found u64 64",
    );
    add(
        "alignment that is a string",
        with_key(string("general.alignment", "32")),
        "found a string",
    );
}

fn tensors(add: &mut Add) {
    let zeros = |name: &str, ggml_type, dims: &[u64]| tensor(name, ggml_type, dims, vec![0; 256]);
    add(
        "duplicate tensor",
        with_tensor(zeros("token_embd.weight", 0, &[64])),
        "stands twice",
    );
    add(
        "five dimensions",
        with_tensor(zeros("x", 24, &[256, 1, 1, 1, 1])),
        "at most 4",
    );
    add(
        "dimensions by the billion",
        with_tensor(RawTensor {
            n_dims: Some(u32::MAX),
            ..zeros("x", 24, &[256])
        }),
        "at most 4",
    );
    add(
        "a dimension of 0",
        with_tensor(zeros("x", 0, &[64, 0])),
        "zero",
    );
    for (name, ggml_type, dims) in [
        (
            "product of dimensions overflows",
            24,
            &[1 << 32, 1 << 32][..],
        ),
        ("dimension of all ones", 24, &[u64::MAX]),
        ("elements do not fit 63 bits", 24, &[1 << 62, 2]),
        ("bytes do not fit 63 bits", 28, &[1 << 61]),
        (
            "dimensions come back to a small number",
            24,
            &[1 << 63, 2, 1, 1],
        ),
    ] {
        add(name, with_tensor(zeros("x", ggml_type, dims)), "overflow");
    }
    add(
        "rows of a part of a block",
        with_tensor(zeros("x", 2, &[48, 2])),
        "whole number",
    );
    for (name, ggml_type) in [
        ("removed type 4", 4),
        ("removed type 31", 31),
        ("type 200", 200),
    ] {
        add(name, with_tensor(zeros("x", ggml_type, &[256])), "type");
    }
    let long = "n".repeat(64);
    add(
        "name of 64 bytes",
        with_tensor(zeros(&long, 24, &[256])),
        "64",
    );
    add(
        "name that is not UTF-8",
        with_tensor(RawTensor {
            name: b"\xc3(".to_vec(),
            ..zeros("", 24, &[256])
        }),
        "not UTF-8",
    );
    let first_len = good().tensors[0].data.len() as u64;
    let offset = |n: u64, offset: u64| changed(|raw| raw.tensors[n as usize].offset = Some(offset));
    add("overlapping tensors", offset(1, 0), "overlaps");
    add(
        "tensors that overlap by a little",
        offset(1, first_len - 32),
        "overlaps",
    );
    add("misaligned tensor", offset(1, first_len + 4), "alignment");
    add("gap between tensors", offset(1, first_len + 4096), "gap");
    add("first tensor not at 0", offset(0, 32), "gap");
    add("offset past the end", offset(1, 1 << 40), "");
    add("offset of all ones", offset(1, u64::MAX - 31), "");
    add(
        "tensor larger than the file",
        with_tensor(tensor("x", 24, &[1 << 40], vec![])),
        "truncated",
    );
    let mut swapped = good();
    swapped.tensors[0].offset = Some(first_len);
    swapped.tensors[1].offset = Some(0);
    add("tensors in another order", swapped.bytes(), "");
}
