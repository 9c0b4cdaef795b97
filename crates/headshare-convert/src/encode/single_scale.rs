//! Encoders of ggml's types whose blocks have one scale, and levels that are not all
//! the whole numbers of some bits: IQ4_NL, MXFP4, NVFP4, Q2_0 and Q1_0.

use half::f16;
use rayon::prelude::*;

use super::affine::to_f16;
use super::block::{Block, Coded};
use super::feedback::{Levels, List, MOST, Span};
use super::ideal::{Base, Search};
use super::level_type::LevelType;
use super::super_layout::{IQ4, IQ4_LIST, iq4};

/// One of the types.
#[derive(Debug, Clone, Copy)]
pub struct SingleScale {
    kind: Kind,
    /// Weights of a block.
    width: usize,
    /// Weights that have one scale.
    part: usize,
    levels: Levels,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Iq4Nl,
    Mxfp4,
    Nvfp4,
    Q2,
    Q1,
}

/// Twice the numbers of the four-bit floats (E2M1): what MXFP4 and NVFP4 multiply
/// half their scale by.
const E2M1: [i8; 15] = [-12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12];
static E2M1_LIST: List = List::new(&E2M1);
static SIGNS: List = List::new(&[-1, 1]);

/// Parts of a block that have a scale, at most.
const PARTS: usize = 4;

/// A block: the bytes of its scales, what they stand for, and levels.
#[derive(Clone)]
pub(super) struct Coding {
    stored: [u16; PARTS],
    scales: [f32; PARTS],
    levels: [i8; MOST],
}

impl SingleScale {
    /// The type with ggml's name `name`, if it is one of them.
    pub fn of(name: &str) -> Option<Self> {
        let (kind, width, part, levels) = match name {
            "iq4_nl" => (Kind::Iq4Nl, 32, 32, Levels::Listed(&IQ4_LIST)),
            "mxfp4" => (Kind::Mxfp4, 32, 32, Levels::Listed(&E2M1_LIST)),
            "nvfp4" => (Kind::Nvfp4, 64, 16, Levels::Listed(&E2M1_LIST)),
            "q2_0" => (Kind::Q2, 64, 64, Levels::Whole(-1, 2)),
            "q1_0" => (Kind::Q1, 128, 128, Levels::Listed(&SIGNS)),
            _ => return None,
        };
        Some(Self {
            kind,
            width,
            part,
            levels,
        })
    }

    /// Encodes the columns of a block of several rows.
    pub fn encode(&self, wanted: &[f64], block: &Block) -> Coded {
        let blocks: Vec<Coding> = wanted
            .par_chunks(self.width)
            .map(|row| self.best(row, block))
            .collect();
        let mut bytes = Vec::new();
        let mut values = Vec::with_capacity(wanted.len());
        for block in &blocks {
            self.pack(block, &mut bytes);
            values.extend((0..self.width).map(|i| self.value(block, i)));
        }
        Coded { bytes, values }
    }

    fn best(&self, row: &[f64], block: &Block) -> Coding {
        let mut rest = row.to_vec();
        let mut found = Coding {
            stored: [0; PARTS],
            scales: [0.0; PARTS],
            levels: [0; MOST],
        };
        for part in 0..self.width / self.part {
            let columns = part * self.part..(part + 1) * self.part;
            let span = Span::new(block, columns.start, self.part);
            let wanted = &rest[columns.clone()];
            let search = Search {
                levels: self.levels,
                base: Base::None,
                signs: matches!(self.kind, Kind::Iq4Nl | Kind::Q2),
                stored: &|scale| f64::from(self.store(scale).1),
            };
            let Some(best) = search.best(span, wanted, &[]) else {
                // Only weights that are no numbers cost nothing less than infinity.
                found.scales[part] = f32::NAN;
                continue;
            };
            let (stored, scale) = self.store(best.scale);
            found.stored[part] = stored;
            found.scales[part] = scale;
            found.levels[columns.clone()].copy_from_slice(&best.levels);
            let scale = f64::from(found.scales[part]);
            let got: Vec<f64> = (found.levels[columns].iter())
                .map(|&level| f64::from(level) * scale)
                .collect();
            span.move_rest(&mut rest, &got);
        }
        found
    }

    /// The scale that is stored like this.
    fn stands_for(&self, stored: u16) -> f32 {
        match self.kind {
            Kind::Iq4Nl | Kind::Q2 | Kind::Q1 => f16::from_bits(stored).to_f32(),
            Kind::Mxfp4 => half_of_e8m0(stored.into()),
            Kind::Nvfp4 => half_of_ue4m3(stored),
        }
    }

    /// The scale closest to `scale` that can be stored: how, and what that stands for.
    fn store(&self, scale: f64) -> (u16, f32) {
        match self.kind {
            Kind::Iq4Nl | Kind::Q2 | Kind::Q1 => {
                let d = to_f16(scale);
                (d.to_bits(), d.to_f32())
            }
            Kind::Mxfp4 => {
                // Half of 2^(e - 127).
                let e = (2.0 * scale.abs()).log2().round().clamp(-126.0, 126.0) as i32 + 127;
                let e = e as u16;
                (e, half_of_e8m0(e.into()))
            }
            Kind::Nvfp4 => {
                let scale = scale.abs() as f32;
                let codes = 0..=0x7eu16;
                let off = |code: &u16| (half_of_ue4m3(*code) - scale).abs();
                let code = codes.min_by(|a, b| off(a).total_cmp(&off(b))).unwrap_or(0);
                (code, half_of_ue4m3(code))
            }
        }
    }
}

impl LevelType for SingleScale {
    type Block = Coding;

    fn width(&self) -> usize {
        self.width
    }

    fn part(&self) -> usize {
        self.part
    }

    fn block_bytes(&self) -> usize {
        match self.kind {
            Kind::Iq4Nl | Kind::Q2 | Kind::Q1 => 18,
            Kind::Mxfp4 => 17,
            Kind::Nvfp4 => 36,
        }
    }

    fn levels(&self) -> Levels {
        self.levels
    }

    fn has_base(&self) -> bool {
        false
    }

    fn unpack(&self, bytes: &[u8]) -> Coding {
        let two = || u16::from_le_bytes([bytes[0], bytes[1]]);
        let (stored, levels) = match self.kind {
            Kind::Iq4Nl | Kind::Q2 | Kind::Q1 => ([two(), 0, 0, 0], &bytes[2..]),
            Kind::Mxfp4 => ([bytes[0].into(), 0, 0, 0], &bytes[1..]),
            Kind::Nvfp4 => (std::array::from_fn(|p| bytes[p].into()), &bytes[4..]),
        };
        let four = |byte: usize, half: usize| usize::from(levels[byte] >> (4 * half) & 15);
        let level = |i: usize| match self.kind {
            Kind::Iq4Nl => IQ4[four(i % 16, i / 16)],
            Kind::Mxfp4 => of_e2m1(four(i % 16, i / 16)),
            Kind::Nvfp4 => of_e2m1(four(i / 16 * 8 + i % 8, i % 16 / 8)),
            Kind::Q2 => (levels[i / 4] >> (i % 4 * 2) & 3).cast_signed() - 1,
            Kind::Q1 => (levels[i / 8] >> (i % 8) & 1).cast_signed() * 2 - 1,
        };
        Coding {
            stored,
            scales: stored.map(|stored| self.stands_for(stored)),
            levels: std::array::from_fn(|i| if i < self.width { level(i) } else { 0 }),
        }
    }

    fn pack(&self, block: &Coding, out: &mut Vec<u8>) {
        match self.kind {
            Kind::Mxfp4 => out.push(block.stored[0] as u8),
            Kind::Nvfp4 => out.extend(block.stored.map(|code| code as u8)),
            _ => out.extend(block.stored[0].to_le_bytes()),
        }
        let level = |i: usize| block.levels[i];
        match self.kind {
            Kind::Iq4Nl => out.extend((0..16).map(|i| iq4(level(i)) | iq4(level(i + 16)) << 4)),
            Kind::Mxfp4 => out.extend((0..16).map(|i| e2m1(level(i)) | e2m1(level(i + 16)) << 4)),
            Kind::Nvfp4 => out.extend((0..32).map(|byte| {
                let first = byte / 8 * 16 + byte % 8;
                e2m1(level(first)) | e2m1(level(first + 8)) << 4
            })),
            Kind::Q2 => out.extend((0..16).map(|byte| {
                (0..4).fold(0u8, |bits, j| {
                    bits | (level(byte * 4 + j) + 1).cast_unsigned() << (2 * j)
                })
            })),
            Kind::Q1 => out.extend((0..16).map(|byte| {
                (0..8).fold(0u8, |bits, j| bits | u8::from(level(byte * 8 + j) > 0) << j)
            })),
        }
    }

    fn value(&self, block: &Coding, i: usize) -> f32 {
        f32::from(block.levels[i]) * block.scales[i / self.part]
    }

    fn level_mut<'b>(&self, block: &'b mut Coding, part: usize, i: usize) -> &'b mut i8 {
        &mut block.levels[part * self.part + i]
    }

    fn scale(&self, block: &Coding, part: usize) -> f64 {
        f64::from(block.scales[part])
    }

    fn with_scale(&self, block: &Coding, part: usize, scale: f64) -> Option<Coding> {
        let (stored, to) = self.store(scale);
        let mut moved = block.clone();
        moved.stored[part] = stored;
        moved.scales[part] = to;
        (to.is_finite() && to != block.scales[part]).then_some(moved)
    }

    fn base(&self, _: &Coding, _: usize) -> f64 {
        0.0
    }

    fn with_base(&self, _: &Coding, _: usize, _: f64) -> Option<Coding> {
        None
    }
}

/// What the code of a four-bit float stands for, twice.
fn of_e2m1(code: usize) -> i8 {
    let size = E2M1[7 + (code & 7)];
    if code & 8 == 0 { size } else { -size }
}

/// The code of twice a four-bit float: a sign and one of eight sizes.
fn e2m1(level: i8) -> u8 {
    let size = E2M1[7..].partition_point(|&other| other < level.abs()) as u8;
    size | u8::from(level < 0) << 3
}

/// Half of the power of two that an E8M0 byte stands for (`ggml_e8m0_to_fp32_half`).
fn half_of_e8m0(e: u32) -> f32 {
    f32::from_bits(match e {
        0 | 1 => 0x0020_0000 << e,
        _ => (e - 1) << 23,
    })
}

/// Half of what an unsigned E4M3 byte stands for (`ggml_ue4m3_to_fp32`).
fn half_of_ue4m3(code: u16) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let value = match exponent {
        0 => mantissa * 2f32.powi(-9),
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    };
    value * 0.5
}
