//! The heads of a file, Algorithm 1, and what a converted file expands to,
//! once more and as plainly as can be: nothing here is the program's.

use std::collections::BTreeMap;
use std::ops::Range;

use headshare_format::Gguf;
use headshare_format::gguf::KEY_ARCHITECTURE;
use headshare_runtime::quants;
use serde_json::Value;

pub const PARTS: [&str; 3] = ["q", "k", "v"];

/// A model file and the shape of its attention.
pub struct Model {
    pub bytes: Vec<u8>,
    pub gguf: Gguf,
    layers: u64,
    heads: u64,
    kv_heads: u64,
    key: u64,
    value: u64,
}

impl Model {
    pub fn new(bytes: Vec<u8>) -> Self {
        let gguf = Gguf::parse(&bytes).expect("a valid file");
        let arch = gguf.str_value(KEY_ARCHITECTURE).unwrap().unwrap();
        let number = |key: &str| gguf.u64_value(&format!("{arch}.{key}")).unwrap();
        let heads = number("attention.head_count").unwrap();
        let size = number("embedding_length").unwrap() / heads;
        Self {
            layers: number("block_count").unwrap(),
            heads,
            kv_heads: number("attention.head_count_kv").unwrap_or(heads),
            key: number("attention.key_length").unwrap_or(size),
            value: number("attention.value_length").unwrap_or(size),
            bytes,
            gguf,
        }
    }

    /// (layer, unit) of every unit, in order.
    pub fn units(&self) -> Vec<(u64, u64)> {
        (0..self.layers)
            .flat_map(|layer| (0..self.kv_heads).map(move |unit| (layer, unit)))
            .collect()
    }

    /// The tensor of a part, and the rows of a unit in it.
    fn rows(&self, (layer, unit): (u64, u64), part: &str) -> (usize, Range<u64>) {
        let group = self.heads / self.kv_heads;
        let (first, len) = match part {
            "q" => (unit * group * self.key, group * self.key),
            "k" => (unit * self.key, self.key),
            _ => (unit * self.value, self.value),
        };
        let fused = format!("blk.{layer}.attn_qkv.weight");
        let (name, before) = match self.gguf.tensor_index(&fused) {
            None => (format!("blk.{layer}.attn_{part}.weight"), 0),
            Some(_) => {
                let q = self.heads * self.key;
                let before = [0, q, q + self.kv_heads * self.key];
                (
                    fused,
                    before[PARTS.iter().position(|p| *p == part).unwrap()],
                )
            }
        };
        let tensor = self.gguf.tensor_index(&name).expect("attention tensors");
        (tensor, before + first..before + first + len)
    }

    /// Where a block lies in the file.
    pub fn block(&self, unit: (u64, u64), part: &str) -> Range<usize> {
        let (tensor, rows) = self.rows(unit, part);
        let info = &self.gguf.tensors()[tensor];
        let start = self.gguf.data_range(info).start;
        let at = |row: u64| (start + row * info.row_bytes()) as usize;
        at(rows.start)..at(rows.end)
    }

    fn type_id(&self, unit: (u64, u64), part: &str) -> u32 {
        let (tensor, _) = self.rows(unit, part);
        self.gguf.tensors()[tensor].ggml_type.id()
    }

    fn weights(&self, unit: (u64, u64), part: &str) -> Vec<f32> {
        let bytes = &self.bytes[self.block(unit, part)];
        match self.type_id(unit, part) {
            0 => bytes
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
                .collect(),
            3 => q4_1(bytes),
            other => {
                let info = quants::type_info(other).unwrap();
                let mut out = vec![0.0; bytes.len() / info.block_bytes * info.block_elems];
                quants::dequantize_row(other, bytes, &mut out).unwrap();
                out
            }
        }
    }

    /// The source with the plan's units written out, as `expand` should give it.
    pub fn expanded(&self, plan: &Value) -> Vec<u8> {
        let mut out = self.bytes.clone();
        for edit in plan["edits"].as_array().unwrap() {
            let alias = &edit["share"];
            let unit = |layer: &str, unit: &str| {
                (
                    alias[layer].as_u64().unwrap(),
                    alias[unit].as_u64().unwrap(),
                )
            };
            for part in alias["parts"].as_array().unwrap() {
                let part = part.as_str().unwrap();
                let to = self.block(unit("layer", "unit"), part);
                let from = self.block(unit("donor_layer", "donor_unit"), part);
                out[to].copy_from_slice(&self.bytes[from]);
            }
        }
        out
    }
}

/// ggml's Q4_1: blocks of 32 weights, a scale, a minimum, and 16 bytes of which
/// the low nibbles are the first 16 weights.
fn q4_1(bytes: &[u8]) -> Vec<f32> {
    let mut out = Vec::with_capacity(bytes.len() / 20 * 32);
    for block in bytes.chunks_exact(20) {
        let scale = half(u16::from_le_bytes([block[0], block[1]]));
        let min = half(u16::from_le_bytes([block[2], block[3]]));
        out.extend(block[4..].iter().map(|b| f32::from(b & 15) * scale + min));
        out.extend(block[4..].iter().map(|b| f32::from(b >> 4) * scale + min));
    }
    out
}

fn half(bits: u16) -> f32 {
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let mantissa = f32::from(bits & 0x3ff) / 1024.0;
    sign * match i32::from(bits >> 10 & 31) {
        0 => mantissa * 2f32.powi(-14),
        31 => panic!("weights are finite"),
        exponent => (1.0 + mantissa) * 2f32.powi(exponent - 15),
    }
}

/// The dot products of all pairs of blocks, by part and unit.
pub struct Dots {
    units: Vec<(u64, u64)>,
    types: Vec<[u32; 3]>,
    dots: [Vec<Vec<f64>>; 3],
}

/// An entry of a plan's `aliases`.
#[derive(Debug, PartialEq)]
pub struct Alias {
    pub unit: (u64, u64),
    pub donor: (u64, u64),
    pub matched: (u64, u64),
    pub parts: Vec<&'static str>,
    pub score: f64,
}

impl Dots {
    pub fn new(model: &Model) -> Self {
        let units = model.units();
        let dots = PARTS.map(|part| {
            let weights: Vec<Vec<f32>> = units.iter().map(|&u| model.weights(u, part)).collect();
            let dot = |a: &[f32], b: &[f32]| -> f64 {
                let products = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b));
                products.sum()
            };
            (0..units.len())
                .map(|i| {
                    let row = (0..=i).map(|j| match weights[i].len() == weights[j].len() {
                        true => dot(&weights[i], &weights[j]),
                        false => f64::NAN,
                    });
                    row.collect()
                })
                .collect()
        });
        let types = units
            .iter()
            .map(|&u| PARTS.map(|part| model.type_id(u, part)))
            .collect();
        Self { units, types, dots }
    }

    /// The plan's aliases for a match function and a ratio.
    pub fn plan(&self, function: &str, ratio: f64) -> Vec<Alias> {
        let n = (ratio * self.units.len() as f64).round() as usize;
        let mut aliases = match function {
            "qk" => self.algorithm_1(&[0, 1], &[0, 1, 2], n),
            "q" => self.algorithm_1(&[0], &[0, 1, 2], n),
            "k" => self.algorithm_1(&[1], &[0, 1, 2], n),
            "v" => self.algorithm_1(&[2], &[0, 1, 2], n),
            "qkv" => self.algorithm_1(&[0, 1, 2], &[0, 1, 2], n),
            "separate" => (0..3)
                .flat_map(|p| self.algorithm_1(&[p], &[p], n))
                .collect(),
            other => panic!("no match function {other}"),
        };
        let place = |alias: &Alias| PARTS.iter().position(|p| *p == alias.parts[0]);
        aliases.sort_by_key(|alias| (alias.unit, place(alias)));
        aliases
    }

    fn algorithm_1(&self, scored: &[usize], shared: &[usize], n: usize) -> Vec<Alias> {
        let sum = |i: usize, j: usize| -> f64 { scored.iter().map(|&p| self.dots[p][i][j]).sum() };
        let mut candidates: Vec<(usize, usize, f64)> = Vec::new();
        for i in 0..self.units.len() {
            let mut best = (None, -1.0);
            for j in 0..i {
                let alike = shared.iter().all(|&p| self.types[i][p] == self.types[j][p]);
                if alike && self.units[j].0 < self.units[i].0 {
                    let score = sum(i, j) / (sum(i, i) * sum(j, j)).sqrt();
                    if score > best.1 {
                        best = (Some(j), score);
                    }
                }
            }
            candidates.extend(best.0.map(|j| (i, j, best.1)));
        }
        candidates.sort_by(|a, b| b.2.partial_cmp(&a.2).unwrap().then(a.0.cmp(&b.0)));
        candidates.truncate(n);
        let matched: BTreeMap<usize, usize> = candidates.iter().map(|c| (c.0, c.1)).collect();
        candidates
            .iter()
            .map(|&(i, j, score)| {
                let mut donor = j;
                while let Some(&next) = matched.get(&donor) {
                    donor = next;
                }
                Alias {
                    unit: self.units[i],
                    donor: self.units[donor],
                    matched: self.units[j],
                    parts: shared.iter().map(|&p| PARTS[p]).collect(),
                    score,
                }
            })
            .collect()
    }
}
