//! How super-blocks are stored, after `ggml-common.h` and `ggml-quants.c` of
//! llama.cpp.

use half::f16;

/// Weights of a super-block.
pub(super) const WIDTH: usize = 256;
/// Parts of one, at most.
pub(super) const PARTS: usize = 16;

/// The types, by how they are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Iq4Xs,
}

/// A super-block.
#[derive(Debug, Clone)]
pub(super) struct Super {
    pub d: f16,
    pub dmin: f16,
    pub scales: [i32; PARTS],
    pub minimums: [i32; PARTS],
    pub levels: [i8; WIDTH],
}

/// What IQ4_NL and IQ4_XS multiply their scale by (`kvalues_iq4nl` of llama.cpp).
pub(super) const IQ4: [i8; 16] = [
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
];

/// Appends a super-block as it is stored.
pub(super) fn pack(kind: Kind, block: &Super, out: &mut Vec<u8>) {
    match kind {
        Kind::Q2K => q2(block, out),
        Kind::Q3K => q3(block, out),
        Kind::Q4K | Kind::Q5K => q4_q5(kind, block, out),
        Kind::Q6K => q6(block, out),
        Kind::Iq4Xs => iq4_xs(block, out),
    }
}

/// Four bits of scale and of minimum a part, two bits of level; of each half, a byte
/// holds the levels of weights that are 32 apart.
fn q2(block: &Super, out: &mut Vec<u8>) {
    out.extend((0..16).map(|part| (block.scales[part] | block.minimums[part] << 4) as u8));
    out.extend(two_bits(|i| block.levels[i].cast_unsigned()));
    out.extend(block.d.to_le_bytes());
    out.extend(block.dmin.to_le_bytes());
}

/// 64 bytes of two bits a weight.
fn two_bits(of: impl Fn(usize) -> u8) -> [u8; 64] {
    std::array::from_fn(|byte| {
        let first = byte / 32 * 128 + byte % 32;
        (0..4).fold(0, |bits, j| bits | (of(first + 32 * j) & 3) << (2 * j))
    })
}

/// The third bit of each level apart, and six bits of scale a part.
fn q3(block: &Super, out: &mut Vec<u8>) {
    let code = |i: usize| (block.levels[i] + 4).cast_unsigned();
    out.extend(
        (0..32).map(|byte| (0..8).fold(0u8, |bits, j| bits | (code(byte + 32 * j) >> 2) << j)),
    );
    out.extend(two_bits(code));
    let scale = |part: usize| (block.scales[part] + 32) as u8;
    out.extend((0..8).map(|part| (scale(part) & 15) | (scale(part + 8) & 15) << 4));
    out.extend(
        (0..4).map(|byte| (0..4).fold(0u8, |bits, j| bits | (scale(byte + 4 * j) >> 4) << (2 * j))),
    );
    out.extend(block.d.to_le_bytes());
}

/// Six bits of scale and of minimum a part; four bits of level, of 64 weights the
/// second half in the high ones; for Q5_K a fifth apart.
fn q4_q5(kind: Kind, block: &Super, out: &mut Vec<u8>) {
    out.extend(block.d.to_le_bytes());
    out.extend(block.dmin.to_le_bytes());
    let (scale, minimum) = (
        |p: usize| block.scales[p] as u8,
        |p: usize| block.minimums[p] as u8,
    );
    out.extend((0..4).map(|p| scale(p) | (scale(p + 4) >> 4) << 6));
    out.extend((0..4).map(|p| minimum(p) | (minimum(p + 4) >> 4) << 6));
    out.extend((4..8).map(|p| (scale(p) & 15) | (minimum(p) & 15) << 4));
    let code = |i: usize| block.levels[i].cast_unsigned();
    if kind == Kind::Q5K {
        out.extend(
            (0..32)
                .map(|byte| (0..8).fold(0u8, |bits, j| bits | (code(byte + 32 * j) >> 4 & 1) << j)),
        );
    }
    out.extend((0..128).map(|byte| {
        let first = byte / 32 * 64 + byte % 32;
        (code(first) & 15) | (code(first + 32) & 15) << 4
    }));
}

/// Four bits of level, of 128 weights the second half in the high ones, two bits
/// apart, and a byte of scale a part.
fn q6(block: &Super, out: &mut Vec<u8>) {
    let code = |i: usize| (block.levels[i] + 32).cast_unsigned();
    out.extend((0..128).map(|byte| {
        let first = byte / 64 * 128 + byte % 64;
        (code(first) & 15) | (code(first + 64) & 15) << 4
    }));
    out.extend(two_bits(|i| code(i) >> 4));
    out.extend((0..16).map(|part| (block.scales[part] as i8).cast_unsigned()));
    out.extend(block.d.to_le_bytes());
}

/// Six bits of scale a part; four bits of level, the second half of a part in the
/// high ones.
fn iq4_xs(block: &Super, out: &mut Vec<u8>) {
    out.extend(block.d.to_le_bytes());
    let scale = |part: usize| (block.scales[part] + 32) as u8;
    let high = (0..8).fold(0u16, |bits, part| {
        bits | u16::from(scale(part) >> 4) << (2 * part)
    });
    out.extend(high.to_le_bytes());
    out.extend((0..4).map(|byte| (scale(2 * byte) & 15) | (scale(2 * byte + 1) & 15) << 4));
    out.extend((0..128).map(|byte| {
        let first = byte / 16 * 32 + byte % 16;
        iq4(block.levels[first]) | iq4(block.levels[first + 16]) << 4
    }));
}

/// The code of one of IQ4's levels.
pub(super) fn iq4(level: i8) -> u8 {
    IQ4.partition_point(|&other| other < level) as u8
}
