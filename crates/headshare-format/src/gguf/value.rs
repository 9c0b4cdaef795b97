//! Typed access to the raw values of key-value records.

use byteorder::{ByteOrder, LittleEndian};

/// The type of a value (`enum gguf_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum ValueType {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Bool = 7,
    String = 8,
    Array = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12,
}

impl ValueType {
    /// The type with GGUF's number `id`.
    pub fn from_id(id: u32) -> Option<Self> {
        use ValueType::*;
        [
            U8, I8, U16, I16, U32, I32, F32, Bool, String, Array, U64, I64, F64,
        ]
        .into_iter()
        .find(|t| *t as u32 == id)
    }

    /// Bytes of one value; `None` for strings and arrays.
    pub fn size(self) -> Option<usize> {
        use ValueType::*;
        match self {
            U8 | I8 | Bool => Some(1),
            U16 | I16 => Some(2),
            U32 | I32 | F32 => Some(4),
            U64 | I64 | F64 => Some(8),
            String | Array => None,
        }
    }

    /// GGUF's name of the type.
    pub fn name(self) -> &'static str {
        use ValueType::*;
        match self {
            U8 => "u8",
            I8 => "i8",
            U16 => "u16",
            I16 => "i16",
            U32 => "u32",
            I32 => "i32",
            F32 => "f32",
            Bool => "bool",
            String => "str",
            Array => "arr",
            U64 => "u64",
            I64 => "i64",
            F64 => "f64",
        }
    }
}

/// A typed view of a value.
#[derive(Debug, Clone, Copy, PartialEq)]
#[allow(missing_docs)]
pub enum Value<'a> {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    /// Bytes: GGUF asks for UTF-8, tokenizer data does not always comply.
    String(&'a [u8]),
    Array(ArrayView<'a>),
    U64(u64),
    I64(i64),
    F64(f64),
}

impl<'a> Value<'a> {
    /// Decodes `bytes`, which the walker has found to be exactly one value.
    pub(super) fn decode(value_type: ValueType, bytes: &'a [u8]) -> Self {
        match value_type {
            ValueType::U8 => Self::U8(bytes[0]),
            ValueType::I8 => Self::I8(bytes[0] as i8),
            ValueType::U16 => Self::U16(LittleEndian::read_u16(bytes)),
            ValueType::I16 => Self::I16(LittleEndian::read_i16(bytes)),
            ValueType::U32 => Self::U32(LittleEndian::read_u32(bytes)),
            ValueType::I32 => Self::I32(LittleEndian::read_i32(bytes)),
            ValueType::F32 => Self::F32(LittleEndian::read_f32(bytes)),
            ValueType::Bool => Self::Bool(bytes[0] != 0),
            ValueType::String => Self::String(&bytes[8..]),
            ValueType::Array => {
                let elem = ValueType::from_id(LittleEndian::read_u32(bytes))
                    .expect("the walker checked the element type");
                Self::Array(ArrayView {
                    elem,
                    len: LittleEndian::read_u64(&bytes[4..]),
                    bytes: &bytes[12..],
                })
            }
            ValueType::U64 => Self::U64(LittleEndian::read_u64(bytes)),
            ValueType::I64 => Self::I64(LittleEndian::read_i64(bytes)),
            ValueType::F64 => Self::F64(LittleEndian::read_f64(bytes)),
        }
    }

    /// The value as a non-negative integer, whatever its integer type.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::U8(v) => Some(v.into()),
            Self::U16(v) => Some(v.into()),
            Self::U32(v) => Some(v.into()),
            Self::U64(v) => Some(v),
            Self::I8(v) => v.try_into().ok(),
            Self::I16(v) => v.try_into().ok(),
            Self::I32(v) => v.try_into().ok(),
            Self::I64(v) => v.try_into().ok(),
            _ => None,
        }
    }

    /// The value in words, for messages: type, and the number where it is one.
    pub fn describe(&self) -> String {
        match self {
            Self::U8(v) => format!("u8 {v}"),
            Self::I8(v) => format!("i8 {v}"),
            Self::U16(v) => format!("u16 {v}"),
            Self::I16(v) => format!("i16 {v}"),
            Self::U32(v) => format!("u32 {v}"),
            Self::I32(v) => format!("i32 {v}"),
            Self::F32(v) => format!("f32 {v}"),
            Self::Bool(v) => format!("bool {v}"),
            Self::String(_) => "a string".to_owned(),
            Self::Array(a) => format!("an array of {} {}", a.len, a.elem.name()),
            Self::U64(v) => format!("u64 {v}"),
            Self::I64(v) => format!("i64 {v}"),
            Self::F64(v) => format!("f64 {v}"),
        }
    }
}

/// A typed view of an array; arrays do not nest.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ArrayView<'a> {
    /// The elements' type.
    pub elem: ValueType,
    /// Number of elements.
    pub len: u64,
    bytes: &'a [u8],
}

impl<'a> ArrayView<'a> {
    /// The elements' raw bytes.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The elements as typed values.
    pub fn values(&self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let elem = self.elem;
        let mut rest = self.bytes;
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let len = match elem.size() {
                Some(size) => size,
                None => 8 + LittleEndian::read_u64(rest) as usize,
            };
            let (value, tail) = rest.split_at(len);
            rest = tail;
            Some(Value::decode(elem, value))
        })
    }

    /// The elements as `u32`; `None` when they have another type.
    pub fn u32s(&self) -> Option<Vec<u32>> {
        (self.elem == ValueType::U32).then(|| {
            self.bytes
                .chunks_exact(4)
                .map(LittleEndian::read_u32)
                .collect()
        })
    }

    /// The elements as `u64`; `None` when they have another type.
    pub fn u64s(&self) -> Option<Vec<u64>> {
        (self.elem == ValueType::U64).then(|| {
            self.bytes
                .chunks_exact(8)
                .map(LittleEndian::read_u64)
                .collect()
        })
    }

    /// The elements as UTF-8 text; `None` when they have another type or one
    /// of them is not UTF-8.
    pub fn strs(&self) -> Option<Vec<&'a str>> {
        if self.elem != ValueType::String {
            return None;
        }
        self.values()
            .map(|v| match v {
                Value::String(s) => std::str::from_utf8(s).ok(),
                _ => None,
            })
            .collect()
    }
}
