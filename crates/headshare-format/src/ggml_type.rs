//! The tensor types of the bundled ggml: names and block sizes.
//!
//! A table of our own, so that this crate needs no ggml; a test of the runtime
//! crate holds every row of it against ggml itself.

use std::fmt;

/// A ggml tensor type that GGUF files may contain (`enum ggml_type`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GgmlType(u32);

/// `(id, name, elements per block, bytes per block)`, as in ggml's
/// `type_traits`. Ids 4, 5, 31-33 and 36-38 were removed from ggml.
const TYPES: &[(u32, &str, u64, u64)] = &[
    (0, "f32", 1, 4),
    (1, "f16", 1, 2),
    (2, "q4_0", 32, 18),
    (3, "q4_1", 32, 20),
    (6, "q5_0", 32, 22),
    (7, "q5_1", 32, 24),
    (8, "q8_0", 32, 34),
    (9, "q8_1", 32, 36),
    (10, "q2_K", 256, 84),
    (11, "q3_K", 256, 110),
    (12, "q4_K", 256, 144),
    (13, "q5_K", 256, 176),
    (14, "q6_K", 256, 210),
    (15, "q8_K", 256, 292),
    (16, "iq2_xxs", 256, 66),
    (17, "iq2_xs", 256, 74),
    (18, "iq3_xxs", 256, 98),
    (19, "iq1_s", 256, 50),
    (20, "iq4_nl", 32, 18),
    (21, "iq3_s", 256, 110),
    (22, "iq2_s", 256, 82),
    (23, "iq4_xs", 256, 136),
    (24, "i8", 1, 1),
    (25, "i16", 1, 2),
    (26, "i32", 1, 4),
    (27, "i64", 1, 8),
    (28, "f64", 1, 8),
    (29, "iq1_m", 256, 56),
    (30, "bf16", 1, 2),
    (34, "tq1_0", 256, 54),
    (35, "tq2_0", 256, 66),
    (39, "mxfp4", 32, 17),
    (40, "nvfp4", 64, 36),
    (41, "q1_0", 128, 18),
    (42, "q2_0", 64, 18),
];

impl GgmlType {
    /// 32-bit floats.
    pub const F32: Self = Self(0);
    /// 16-bit floats.
    pub const F16: Self = Self(1);
    /// Bytes; the type of the tensors this format adds.
    pub const I8: Self = Self(24);

    /// The type with ggml's number `id`, if ggml (still) has it.
    pub fn from_id(id: u32) -> Option<Self> {
        row(id).map(|_| Self(id))
    }

    /// The type that ggml calls `name`, in any case.
    pub fn named(name: &str) -> Option<Self> {
        Self::all().find(|t| t.name().eq_ignore_ascii_case(name))
    }

    /// Every type, by ascending id.
    pub fn all() -> impl Iterator<Item = Self> {
        TYPES.iter().map(|t| Self(t.0))
    }

    /// ggml's number of this type.
    pub fn id(self) -> u32 {
        self.0
    }

    /// ggml's name of this type, such as `q4_K`.
    pub fn name(self) -> &'static str {
        self.entry().1
    }

    /// Elements per block: a row's length is a multiple of it.
    pub fn block_elems(self) -> u64 {
        self.entry().2
    }

    /// Bytes per block.
    pub fn block_bytes(self) -> u64 {
        self.entry().3
    }

    /// Bytes of a row of `elems` elements; `None` if that is no whole number
    /// of blocks or overflows.
    pub fn row_bytes(self, elems: u64) -> Option<u64> {
        if !elems.is_multiple_of(self.block_elems()) {
            return None;
        }
        (elems / self.block_elems()).checked_mul(self.block_bytes())
    }

    fn entry(self) -> &'static (u32, &'static str, u64, u64) {
        row(self.0).expect("a GgmlType is made from a row of the table")
    }
}

fn row(id: u32) -> Option<&'static (u32, &'static str, u64, u64)> {
    TYPES
        .binary_search_by_key(&id, |t| t.0)
        .ok()
        .map(|i| &TYPES[i])
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Debug for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
