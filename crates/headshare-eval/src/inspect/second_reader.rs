//! A second opinion on a header: gguf-rs, which nobody here wrote, reads it too,
//! and both readers must see the same keys, values and tensors.
//!
//! It is asked by `inspect`, which is where a doubtful file is looked at: what two
//! readers see differently, other programs may see differently as well. It does
//! not stand before any other use of a file, for four reasons: the reader of
//! [`headshare_format`] alone has to refuse every malformed file, and the tests
//! hold it to that; a second reader in front of it could refuse files that are
//! right; it costs time and memory at every start; and it brings a command line
//! and a logger into a crate of byte slices.
//!
//! Left out, because gguf-rs cannot be asked: headers with tensor types above 39
//! (it errors or panics), and headers that would cost it far more memory than
//! they have bytes (it keeps array elements as JSON values, but those of
//! `tokenizer.` keys only if asked to). Its tensor sizes are wrong for several
//! types, so sizes are not compared.

use std::io::{Cursor, Read};

use gguf_rs::{ByteOrder, GGUFContainer};
use headshare_format::Gguf;
use headshare_format::gguf::Value;
use serde_json::Value as Json;

/// The last tensor type that gguf-rs 0.1.8 knows (MXFP4).
const LAST_KNOWN_TYPE: u32 = 39;
/// Array elements that we let gguf-rs turn into JSON values, of up to 100
/// bytes each.
const MAX_ARRAY_ELEMENTS: u64 = 1 << 17;
/// It tells alignments only where they are multiples of this.
const LEAST_KNOWN_ALIGNMENT: u64 = 8;
const MAX_HEADER_BYTES: usize = 64 << 20;
/// Arrays under it are not kept by gguf-rs.
const TOKENIZER_PREFIX: &str = "tokenizer.";

/// What gguf-rs reads differently in the header of `gguf`; `None` where both
/// agree, and where it cannot be asked.
pub fn difference(gguf: &Gguf) -> Option<String> {
    if !can_be_asked(gguf) {
        return None;
    }
    compare(gguf, gguf.header_bytes())
}

fn can_be_asked(gguf: &Gguf) -> bool {
    let elements = gguf
        .kvs()
        .iter()
        .filter(|kv| !kv.key.starts_with(TOKENIZER_PREFIX))
        .map(|kv| match gguf.value_of(kv) {
            Value::Array(a) => a.len,
            _ => 0,
        })
        .fold(0u64, u64::saturating_add);
    gguf.header_bytes().len() <= MAX_HEADER_BYTES
        && elements <= MAX_ARRAY_ELEMENTS
        && gguf
            .tensors()
            .iter()
            .all(|t| t.ggml_type.id() <= LAST_KNOWN_TYPE)
}

/// The first difference between `ours` and what gguf-rs makes of `header`.
fn compare(ours: &Gguf, header: &[u8]) -> Option<String> {
    // The container wants the bytes after the magic, and counts from there.
    let mut reader = Cursor::new(header.to_vec());
    reader.set_position(4);
    let boxed: Box<dyn Read> = Box::new(reader);
    let theirs = match GGUFContainer::new(ByteOrder::LE, boxed, 0).decode() {
        Ok(model) => model,
        Err(error) => return Some(error.to_string()),
    };

    let (kvs, tensors) = (ours.kvs().len() as u64, ours.tensors().len() as u64);
    if (theirs.num_kv(), theirs.num_tensor()) != (kvs, tensors) {
        return Some(format!(
            "{kvs} keys and {tensors} tensors against {} and {}",
            theirs.num_kv(),
            theirs.num_tensor()
        ));
    }
    if ours.alignment() >= LEAST_KNOWN_ALIGNMENT && theirs.data_offset() != ours.data_offset() {
        return Some(format!(
            "data begins at {} or {}",
            ours.data_offset(),
            theirs.data_offset()
        ));
    }
    for kv in ours.kvs() {
        let kept = !kv.key.starts_with(TOKENIZER_PREFIX);
        let same = match (ours.value_of(kv), theirs.metadata().get(&kv.key)) {
            (_, None) => false,
            (Value::Array(_), Some(theirs)) if !kept => theirs.is_array(),
            (ours, Some(theirs)) => same_value(ours, theirs),
        };
        if !same {
            return Some(format!("key {:?}", kv.key));
        }
    }
    let differs = ours.tensors().iter().zip(theirs.tensors()).find(|(a, b)| {
        a.name != b.name || a.ggml_type.id() != b.kind || a.dims != b.shape || a.offset != b.offset
    });
    differs.map(|(ours, _)| format!("tensor {:?}", ours.name))
}

/// Whether `theirs` is `ours` as gguf-rs writes it: numbers that are no number
/// become null, bytes that are no UTF-8 a replacement character.
fn same_value(ours: Value<'_>, theirs: &Json) -> bool {
    match ours {
        Value::Bool(v) => theirs.as_bool() == Some(v),
        Value::String(v) => theirs.as_str() == Some(&*String::from_utf8_lossy(v)),
        Value::Array(v) => theirs.as_array().is_some_and(|theirs| {
            theirs.len() as u64 == v.len && v.values().zip(theirs).all(|(a, b)| same_value(a, b))
        }),
        Value::F32(v) if !v.is_finite() => theirs.is_null(),
        Value::F64(v) if !v.is_finite() => theirs.is_null(),
        Value::F32(v) => theirs.is_number() && theirs.to_string().parse() == Ok(v),
        Value::F64(v) => theirs.is_number() && theirs.to_string().parse() == Ok(v),
        Value::U8(v) => theirs.as_u64() == Some(v.into()),
        Value::U16(v) => theirs.as_u64() == Some(v.into()),
        Value::U32(v) => theirs.as_u64() == Some(v.into()),
        Value::U64(v) => theirs.as_u64() == Some(v),
        Value::I8(v) => theirs.as_i64() == Some(v.into()),
        Value::I16(v) => theirs.as_i64() == Some(v.into()),
        Value::I32(v) => theirs.as_i64() == Some(v.into()),
        Value::I64(v) => theirs.as_i64() == Some(v),
    }
}

#[cfg(test)]
mod tests {
    use headshare_format::gguf::{HeaderBuilder, KEY_ALIGNMENT};
    use headshare_format::{GgmlType, TensorInfo};
    use proptest::prelude::*;

    use super::*;

    /// A header under construction.
    struct Header {
        builder: HeaderBuilder,
        alignment: u64,
        tensors: Vec<TensorInfo>,
    }

    impl Header {
        fn new() -> Self {
            Self {
                builder: HeaderBuilder::new(3),
                alignment: 32,
                tensors: Vec::new(),
            }
        }

        fn with(mut self, add: impl FnOnce(&mut HeaderBuilder)) -> Self {
            add(&mut self.builder);
            self
        }

        fn tensor(mut self, name: &str, ggml_type: GgmlType, dims: &[u64]) -> Self {
            let end = self.tensors.last().map_or(0, |t| t.offset + t.byte_len());
            self.tensors.push(TensorInfo {
                name: name.to_owned(),
                ggml_type,
                dims: dims.to_vec(),
                offset: end.next_multiple_of(self.alignment),
            });
            self
        }

        fn bytes(mut self) -> Vec<u8> {
            for tensor in &self.tensors {
                self.builder.tensor(tensor);
            }
            self.builder.finish()
        }

        fn parse(self) -> Gguf {
            Gguf::parse_header(&self.bytes(), 1 << 40).unwrap()
        }
    }

    fn header() -> Header {
        Header::new()
            .with(|h| {
                h.str("a.name", "x");
                h.f32("a.eps", 0.1);
                h.u32s("a.list", [1, 2, 3].into_iter());
                h.strs("tokenizer.ggml.tokens", ["a", "b"].into_iter());
            })
            .tensor("one", GgmlType::F32, &[4, 2])
    }

    #[test]
    fn what_differs_is_named() {
        let ours = header().parse();
        assert_eq!(compare(&ours, &header().bytes()), None);
        let bytes = header().bytes();
        let with = |from: &[u8], to: &[u8]| {
            let at = bytes.windows(from.len()).position(|w| w == from).unwrap();
            let mut changed = bytes.clone();
            changed[at..at + to.len()].copy_from_slice(to);
            compare(&ours, &changed).unwrap()
        };
        assert_eq!(with(b"a.name", b"a.game"), "key \"a.name\"");
        assert_eq!(with(b"x", b"y"), "key \"a.name\"");
        let tenth = 0.1f32.to_le_bytes();
        assert_eq!(with(&tenth, &0.2f32.to_le_bytes()), "key \"a.eps\"");
        assert_eq!(with(&[2, 0, 0, 0, 3], &[4]), "key \"a.list\"");
        assert_eq!(with(b"one", b"two"), "tensor \"one\"");
        // Rows of five, where ours are of four.
        let dims = [4, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(with(&dims, &[5]), "tensor \"one\"");
        let cut = compare(&ours, &bytes[..bytes.len() - 1]).unwrap();
        assert!(cut.contains("fill whole buffer"), "{cut}");

        let more = header().tensor("two", GgmlType::F32, &[4]).bytes();
        let counts = compare(&ours, &more).unwrap();
        assert_eq!(counts, "4 keys and 1 tensors against 4 and 2");
        let paged = |alignment| header().with(|h| h.u32(KEY_ALIGNMENT, alignment));
        let ours = paged(4096).parse();
        let begins = compare(&ours, &paged(8192).bytes()).unwrap();
        assert_eq!(begins, "data begins at 4096 or 8192");
    }

    #[test]
    fn what_gguf_rs_does_not_know_is_not_asked_of_it() {
        let newer = GgmlType::all().find(|t| t.id() > LAST_KNOWN_TYPE).unwrap();
        let ours = header().tensor("newer", newer, &[newer.block_elems()]);
        assert_eq!(difference(&ours.parse()), None);
        let many = vec![0; MAX_ARRAY_ELEMENTS as usize];
        let ours = header()
            .with(|h| h.u32s("a.many", many.into_iter()))
            .parse();
        assert!(!can_be_asked(&ours));
    }

    /// Adds one key of some type, with a value made of `seed`.
    fn add_key(h: &mut HeaderBuilder, key: &str, kind: u8, seed: u64) {
        let bits = seed as u32;
        match kind {
            0 => h.u32(key, bits),
            1 => h.u64(key, seed),
            2 => h.f32(key, f32::from_bits(bits)),
            3 => h.f64(key, f64::from_bits(seed)),
            4 => h.bool(key, seed % 2 == 1),
            5 => h.str(key, &"\u{e9}\0".repeat(seed as usize % 9)),
            6 => h.i32s(
                key,
                (0..seed % 5)
                    .map(|n| bits as i32 - n as i32)
                    .collect::<Vec<_>>()
                    .into_iter(),
            ),
            7 => h.f32s(key, [0.1, f32::from_bits(bits)].into_iter()),
            8 => h.u64s(key, [seed, u64::MAX].into_iter()),
            _ => h.strs(key, ["", "a", "\u{fffd}"].into_iter()),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            failure_persistence: None,
            ..ProptestConfig::with_cases(500)
        })]

        #[test]
        fn both_read_every_header_the_same(
            version in 2u32..=3,
            alignment in prop::option::of(0u32..=16),
            keys in prop::collection::vec((0u8..10, any::<u64>(), any::<bool>()), 0..12),
            tensors in prop::collection::vec((any::<prop::sample::Index>(), 1u64..5, 1usize..=4), 0..8),
        ) {
            let mut header = Header::new();
            header.builder = HeaderBuilder::new(version);
            for (i, &(kind, seed, tokenizer)) in keys.iter().enumerate() {
                let prefix = if tokenizer { TOKENIZER_PREFIX } else { "a." };
                add_key(&mut header.builder, &format!("{prefix}{i}"), kind, seed);
            }
            let alignment = alignment.map(|bits| 1 << bits);
            if let Some(alignment) = alignment {
                header.builder.u32(KEY_ALIGNMENT, alignment);
                header.alignment = alignment.into();
            }
            let types: Vec<GgmlType> =
                GgmlType::all().filter(|t| t.id() <= LAST_KNOWN_TYPE).collect();
            for (i, (which, size, n_dims)) in tensors.iter().enumerate() {
                let ggml_type = types[which.index(types.len())];
                let mut dims = vec![*size; *n_dims];
                dims[0] *= ggml_type.block_elems();
                header = header.tensor(&format!("t{i}"), ggml_type, &dims);
            }
            let gguf = header.parse();
            prop_assert!(can_be_asked(&gguf));
            prop_assert_eq!(difference(&gguf), None);
        }
    }
}
