//! How super-blocks are stored, after `ggml-common.h` and `ggml-quants.c` of
//! llama.cpp.

use half::f16;

use super::feedback::List;

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
pub(super) static IQ4_LIST: List = List::new(&IQ4);

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

/// Bytes of a super-block.
pub(super) fn bytes(kind: Kind) -> usize {
    match kind {
        Kind::Q2K => 84,
        Kind::Q3K => 110,
        Kind::Q4K => 144,
        Kind::Q5K => 176,
        Kind::Q6K => 210,
        Kind::Iq4Xs => 136,
    }
}

/// A stored super-block, of as many bytes as it has.
pub(super) fn unpack(kind: Kind, bytes: &[u8]) -> Super {
    match kind {
        Kind::Q2K => read_q2(bytes),
        Kind::Q3K => read_q3(bytes),
        Kind::Q4K | Kind::Q5K => read_q4_q5(kind, bytes),
        Kind::Q6K => read_q6(bytes),
        Kind::Iq4Xs => read_iq4_xs(bytes),
    }
}

fn read_f16(bytes: &[u8], at: usize) -> f16 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// Four bits of scale and of minimum a part, two bits of level; of each half, a byte
/// holds the levels of weights that are 32 apart.
fn q2(block: &Super, out: &mut Vec<u8>) {
    out.extend((0..16).map(|part| (block.scales[part] | block.minimums[part] << 4) as u8));
    out.extend(two_bits(|i| block.levels[i].cast_unsigned()));
    out.extend(block.d.to_le_bytes());
    out.extend(block.dmin.to_le_bytes());
}

fn read_q2(bytes: &[u8]) -> Super {
    let part = |p: usize| bytes[p];
    Super {
        d: read_f16(bytes, 80),
        dmin: read_f16(bytes, 82),
        scales: std::array::from_fn(|p| i32::from(part(p) & 15)),
        minimums: std::array::from_fn(|p| i32::from(part(p) >> 4)),
        levels: std::array::from_fn(|i| two_bits_of(&bytes[16..80], i).cast_signed()),
    }
}

/// 64 bytes of two bits a weight.
fn two_bits(of: impl Fn(usize) -> u8) -> [u8; 64] {
    std::array::from_fn(|byte| {
        let first = byte / 32 * 128 + byte % 32;
        (0..4).fold(0, |bits, j| bits | (of(first + 32 * j) & 3) << (2 * j))
    })
}

/// The two bits of weight `i`.
fn two_bits_of(bytes: &[u8], i: usize) -> u8 {
    bytes[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3
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

fn read_q3(bytes: &[u8]) -> Super {
    let (third, rest) = bytes.split_at(32);
    let (two, scales) = rest.split_at(64);
    let scale = |p: usize| {
        let low = scales[p % 8] >> (p / 8 * 4) & 15;
        let high = scales[8 + p % 4] >> (p / 4 * 2) & 3;
        i32::from(low | high << 4) - 32
    };
    Super {
        d: read_f16(bytes, 108),
        dmin: f16::ZERO,
        scales: std::array::from_fn(scale),
        minimums: [0; PARTS],
        levels: std::array::from_fn(|i| {
            let code = two_bits_of(two, i) | (third[i % 32] >> (i / 32) & 1) << 2;
            code.cast_signed() - 4
        }),
    }
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

fn read_q4_q5(kind: Kind, bytes: &[u8]) -> Super {
    let packed = &bytes[4..16];
    let (fifth, four) = bytes[16..].split_at(if kind == Kind::Q5K { 32 } else { 0 });
    // Of the parts 4 to 7, four bits are behind and two above those of 0 to 3.
    let six = |p: usize, of: usize, shift: usize| match p {
        0..4 => packed[of + p] & 63,
        _ => packed[4 + p] >> shift & 15 | packed[of + p - 4] >> 6 << 4,
    };
    let of_part = |p: usize, of: usize, shift: usize| match p {
        0..8 => i32::from(six(p, of, shift)),
        _ => 0,
    };
    Super {
        d: read_f16(bytes, 0),
        dmin: read_f16(bytes, 2),
        scales: std::array::from_fn(|p| of_part(p, 0, 0)),
        minimums: std::array::from_fn(|p| of_part(p, 4, 4)),
        levels: std::array::from_fn(|i| {
            let low = four[i / 64 * 32 + i % 32] >> (i % 64 / 32 * 4) & 15;
            let high = fifth.get(i % 32).map_or(0, |byte| byte >> (i / 32) & 1);
            (low | high << 4).cast_signed()
        }),
    }
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

fn read_q6(bytes: &[u8]) -> Super {
    let (low, rest) = bytes.split_at(128);
    let (high, scales) = rest.split_at(64);
    Super {
        d: read_f16(bytes, 208),
        dmin: f16::ZERO,
        scales: std::array::from_fn(|p| i32::from(scales[p].cast_signed())),
        minimums: [0; PARTS],
        levels: std::array::from_fn(|i| {
            let four = low[i / 128 * 64 + i % 64] >> (i % 128 / 64 * 4) & 15;
            (four | two_bits_of(high, i) << 4).cast_signed() - 32
        }),
    }
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

fn read_iq4_xs(bytes: &[u8]) -> Super {
    let high = u16::from_le_bytes([bytes[2], bytes[3]]);
    let scale = |p: usize| match p {
        0..8 => {
            let low = bytes[4 + p / 2] >> (p % 2 * 4) & 15;
            i32::from(low) + i32::from(high >> (2 * p) & 3) * 16 - 32
        }
        _ => 0,
    };
    Super {
        d: read_f16(bytes, 0),
        dmin: f16::ZERO,
        scales: std::array::from_fn(scale),
        minimums: [0; PARTS],
        levels: std::array::from_fn(|i| {
            let code = bytes[8 + i / 32 * 16 + i % 16] >> (i % 32 / 16 * 4) & 15;
            IQ4[usize::from(code)]
        }),
    }
}

/// The code of one of IQ4's levels.
pub(super) fn iq4(level: i8) -> u8 {
    IQ4.partition_point(|&other| other < level) as u8
}
