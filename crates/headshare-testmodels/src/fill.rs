//! Random tensor data that every type's kernels accept: finite, and about as
//! large as trained weights are.
//!
//! A buffer is filled with random bits at memory speed; then the few bytes of
//! each block that are scales are replaced by random numbers of a fitting
//! size, and floats get their exponents bounded.

use headshare_format::{GgmlType, TensorInfo};

/// What a tensor is for, which decides the size of its numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    /// A matrix: standard deviation about `1 / sqrt(row length)`.
    Weight,
    /// A norm: close to 1.
    Norm,
    /// A bias: close to 0.
    Bias,
    /// How fast states fade: negative, or they would grow without end.
    Decay,
}

/// A small, fast generator (a Weyl sequence with a mixing step), enough for
/// test data.
pub(crate) struct Random(u64);

impl Random {
    /// The numbers that belong to `seed` and `name`.
    pub fn named(seed: u64, name: &str) -> Self {
        let mut random = Self(seed);
        for byte in name.bytes() {
            random.0 ^= u64::from(byte);
            random.0 = random.next();
        }
        random
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Between -1 and 1.
    pub fn signed(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    }

    pub fn fill(&mut self, out: &mut [u8]) {
        let mut words = out.chunks_exact_mut(8);
        for word in &mut words {
            word.copy_from_slice(&self.next().to_le_bytes());
        }
        let rest = words.into_remainder();
        let last = self.next().to_le_bytes();
        rest.copy_from_slice(&last[..rest.len()]);
    }
}

/// A scale in a block: where, how it is stored, and its size relative to the
/// weights' standard deviation.
struct Scale {
    at: usize,
    kind: ScaleKind,
    factor: f32,
}

#[derive(Clone, Copy)]
enum ScaleKind {
    F16,
    F32,
    /// A power of two, biased by 127.
    Exponent,
    /// Four unsigned 8-bit floats with 4 bits of exponent.
    Quarter,
    /// The top nibbles of four 16-bit words form one half float.
    Nibbles,
}

/// Fills data of one tensor, piece by piece.
pub(crate) struct Filler {
    random: Random,
    ggml_type: GgmlType,
    content: Content,
    sigma: f32,
    scales: Vec<Scale>,
}

impl Filler {
    pub fn new(random: Random, info: &TensorInfo, content: Content) -> Self {
        let sigma = 1.0 / (info.row_elems() as f32).sqrt();
        Self {
            random,
            ggml_type: info.ggml_type,
            content,
            sigma,
            scales: scales(info.ggml_type),
        }
    }

    /// Fills `out`, whole blocks, with the tensor's next bytes.
    pub fn fill(&mut self, out: &mut [u8]) {
        match (self.content, self.ggml_type.name()) {
            (Content::Norm, _) => self.floats(out, 1.0, 0.1),
            (Content::Bias, _) => self.floats(out, 0.0, 0.02),
            (Content::Decay, _) => self.floats(out, -0.5, 0.4),
            (Content::Weight, "f32") => {
                let spread = self.sigma * 1.7;
                self.floats(out, 0.0, spread);
            }
            (Content::Weight, "f64") => {
                for word in out.chunks_exact_mut(8) {
                    let value = f64::from(self.random.signed() * self.sigma);
                    word.copy_from_slice(&value.to_le_bytes());
                }
            }
            (Content::Weight, "f16") => self.halves(out, half_exponent(self.sigma), 10),
            (Content::Weight, "bf16") => {
                self.halves(out, (self.sigma.to_bits() >> 23) as u16 & 0xff, 7)
            }
            (Content::Weight, _) => self.blocks(out),
        }
    }

    fn floats(&mut self, out: &mut [u8], centre: f32, spread: f32) {
        for word in out.chunks_exact_mut(4) {
            let value = centre + self.random.signed() * spread;
            word.copy_from_slice(&value.to_le_bytes());
        }
    }

    /// 16-bit floats with random sign and mantissa and an exponent of
    /// `exponent` or a little less.
    fn halves(&mut self, out: &mut [u8], exponent: u16, mantissa_bits: u32) {
        self.random.fill(out);
        let keep = 0x8000u16 | ((1 << mantissa_bits) - 1);
        for half in out.chunks_exact_mut(2) {
            let bits = u16::from_le_bytes([half[0], half[1]]);
            let less = (bits >> mantissa_bits) & 3;
            let exponent = exponent.saturating_sub(less).max(1);
            let value = (bits & keep) | (exponent << mantissa_bits);
            half.copy_from_slice(&value.to_le_bytes());
        }
    }

    fn blocks(&mut self, out: &mut [u8]) {
        self.random.fill(out);
        if self.scales.is_empty() {
            return;
        }
        for block in out.chunks_exact_mut(self.ggml_type.block_bytes() as usize) {
            for scale in &self.scales {
                scale.put(block, self.sigma);
            }
        }
    }
}

impl Scale {
    /// Replaces the random bits at the scale's place by a number of its size,
    /// keeping random mantissas, so that no two blocks are alike.
    fn put(&self, block: &mut [u8], sigma: f32) {
        let value = sigma * self.factor;
        let at = self.at;
        let half = |bits: u16| {
            let sign = if value < 0.0 { 0x8000 } else { 0 };
            sign | (half_exponent(value.abs()) << 10) | (bits & 0x3ff)
        };
        match self.kind {
            ScaleKind::F16 => {
                let bits = half(u16::from_le_bytes([block[at], block[at + 1]]));
                block[at..at + 2].copy_from_slice(&bits.to_le_bytes());
            }
            ScaleKind::F32 => block[at..at + 4].copy_from_slice(&value.to_le_bytes()),
            ScaleKind::Exponent => {
                block[at] = ((value.to_bits() >> 23) as u8).max(1) - (block[at] & 1);
            }
            ScaleKind::Quarter => {
                for byte in &mut block[at..at + 4] {
                    *byte = 0x08 | (*byte & 0x07);
                }
            }
            ScaleKind::Nibbles => {
                let bits = half(u16::from_le_bytes([block[at], block[at + 2]]));
                for word in 0..4 {
                    let top = &mut block[at + 2 * word + 1];
                    *top = (*top & 0x0f) | (((bits >> (4 * word)) & 0xf) as u8) << 4;
                }
            }
        }
    }
}

/// The exponent field of the half float nearest below `value`, kept normal.
fn half_exponent(value: f32) -> u16 {
    let exponent = (value.to_bits() >> 23 & 0xff) as i32 - 127 + 15;
    exponent.clamp(1, 29) as u16
}

/// Where a type's blocks keep their scales, and how large those are for
/// weights of standard deviation 1 when all other bits are random.
fn scales(ggml_type: GgmlType) -> Vec<Scale> {
    use ScaleKind::*;
    let list: &[(usize, ScaleKind, f32)] = match ggml_type.name() {
        "q4_0" => &[(0, F16, 1.0 / 4.6)],
        "q4_1" => &[(0, F16, 1.0 / 4.6), (2, F16, -7.5 / 4.6)],
        "q5_0" => &[(0, F16, 1.0 / 9.2)],
        "q5_1" => &[(0, F16, 1.0 / 9.2), (2, F16, -15.5 / 9.2)],
        "q8_0" => &[(0, F16, 1.0 / 74.0)],
        "q8_1" => &[(0, F16, 1.0 / 74.0), (2, F16, 1.0)],
        "q2_K" => &[(80, F16, 1.0 / 9.0), (82, F16, 1.0 / 6.0)],
        "q3_K" => &[(108, F16, 1.0 / 42.0)],
        "q4_K" => &[(0, F16, 1.0 / 150.0), (2, F16, 1.0 / 20.0)],
        "q5_K" => &[(0, F16, 1.0 / 300.0), (2, F16, 1.0 / 20.0)],
        "q6_K" => &[(208, F16, 1.0 / 1330.0)],
        "q8_K" => &[(0, F32, 1.0 / 74.0)],
        "iq2_xxs" | "iq2_xs" | "iq2_s" => &[(0, F16, 1.0 / 50.0)],
        "iq3_xxs" => &[(0, F16, 1.0 / 100.0)],
        "iq3_s" => &[(0, F16, 1.0 / 150.0)],
        "iq1_s" => &[(0, F16, 1.0 / 8.0)],
        "iq1_m" => &[(48, Nibbles, 1.0 / 8.0)],
        "iq4_nl" => &[(0, F16, 1.0 / 70.0)],
        "iq4_xs" => &[(0, F16, 1.0 / 1300.0)],
        "tq1_0" => &[(52, F16, 1.2)],
        "tq2_0" => &[(64, F16, 1.0)],
        "mxfp4" => &[(0, Exponent, 1.0 / 2.5)],
        "nvfp4" => &[(0, Quarter, 1.0)],
        "q1_0" | "q2_0" => &[(0, F16, 1.0)],
        _ => &[],
    };
    list.iter()
        .map(|&(at, kind, factor)| Scale { at, kind, factor })
        .collect()
}
