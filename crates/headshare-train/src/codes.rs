//! The stored form of a quantized tensor: codes that stay, and the scales in front of
//! them, which can be trained.
//!
//! While the codes stay, a weight is linear in the f16 fields of its block: d x code + m
//! (Q4_1), d x scale x code - dmin x minimum (Q4_K), and so on. So the gradient of a field
//! is a sum over the block's weights, and a file with trained fields computes what was
//! trained, without being quantized again. Training step sizes alone is the second stage
//! of EfficientQAT (Chen et al. 2024, arXiv 2407.11062).

use half::f16;
use headshare_format::GgmlType;
use headshare_runtime::quants::{QuantError, dequantize_row};
use rayon::prelude::*;

/// Blocks that a thread takes at a time.
const CHUNK: usize = 2048;

/// An f16 field of a block.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Field {
    /// Its first byte.
    at: usize,
    /// What a change of it is measured in: so many times the block's first field where
    /// it is an offset, its own size where it is a scale.
    steps: Option<f32>,
}

const fn scale(at: usize) -> Field {
    Field { at, steps: None }
}

const fn offset(at: usize, steps: f32) -> Field {
    Field {
        at,
        steps: Some(steps),
    }
}

/// The fields of a type's blocks, as `ggml-common.h` of llama.cpp lays them out; none for
/// types whose scales are powers of two or have no field of their own.
fn fields_of(ggml_type: GgmlType) -> &'static [Field] {
    match ggml_type.name() {
        "q4_0" | "q5_0" | "q8_0" | "iq4_nl" | "iq4_xs" | "iq3_xxs" | "iq3_s" | "iq2_xxs"
        | "iq2_xs" | "iq2_s" | "iq1_s" | "q2_0" | "q1_0" => const { &[scale(0)] },
        // An offset moves all weights of a block as far as half of all codes do.
        "q4_1" => const { &[scale(0), offset(2, 8.0)] },
        "q5_1" => const { &[scale(0), offset(2, 16.0)] },
        "q4_K" | "q5_K" => const { &[scale(0), scale(2)] },
        "q2_K" => const { &[scale(80), scale(82)] },
        "q3_K" => const { &[scale(108)] },
        "q6_K" => const { &[scale(208)] },
        "tq1_0" => const { &[scale(52)] },
        "tq2_0" => const { &[scale(64)] },
        _ => &[],
    }
}

/// Whether blocks of a type have scales that can be trained.
pub fn has_scales(ggml_type: GgmlType) -> bool {
    !fields_of(ggml_type).is_empty()
}

/// A quantized tensor as it is stored.
#[derive(Debug, Clone, PartialEq)]
pub struct Codes {
    ggml_type: GgmlType,
    bytes: Vec<u8>,
}

impl Codes {
    /// A tensor of a type with fields, whole blocks of it; `None` for others.
    pub fn new(ggml_type: GgmlType, bytes: Vec<u8>) -> Option<Self> {
        let whole = bytes.len().is_multiple_of(ggml_type.block_bytes() as usize);
        (whole && has_scales(ggml_type)).then_some(Self { ggml_type, bytes })
    }

    /// As it is stored.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// As it is stored.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Its type.
    pub fn ggml_type(&self) -> GgmlType {
        self.ggml_type
    }

    /// Copies bytes `from` over those from `to` on.
    pub(crate) fn copy(&mut self, to: usize, from: &[u8]) {
        self.bytes[to..to + from.len()].copy_from_slice(from);
    }

    fn block_bytes(&self) -> usize {
        self.ggml_type.block_bytes() as usize
    }

    /// All fields, block after block.
    pub fn fields(&self) -> Vec<f32> {
        let fields = fields_of(self.ggml_type);
        let of = |block: &[u8]| {
            let read = |f: &Field| f16::from_le_bytes([block[f.at], block[f.at + 1]]).to_f32();
            fields.iter().map(read).collect::<Vec<f32>>()
        };
        self.bytes
            .chunks_exact(self.block_bytes())
            .flat_map(of)
            .collect()
    }

    /// What a change of 1 of each of these `fields` is in training, so that it changes
    /// weights about as much whatever their size and the field; 0 where a block is 0.
    pub fn units(&self, fields: &[f32]) -> Vec<f32> {
        let kinds = fields_of(self.ggml_type);
        let of = |block: &[f32]| {
            let unit = |(kind, own): (&Field, &f32)| match kind.steps {
                Some(steps) => steps * block[0].abs(),
                None => own.abs(),
            };
            kinds.iter().zip(block).map(unit).collect::<Vec<f32>>()
        };
        fields.chunks_exact(kinds.len()).flat_map(of).collect()
    }

    /// Sets all fields, rounded to f16.
    pub fn set(&mut self, fields: &[f32]) {
        let kinds = fields_of(self.ggml_type);
        let bytes = self.block_bytes();
        let blocks = self.bytes.par_chunks_mut(CHUNK * bytes);
        blocks
            .zip(fields.par_chunks(CHUNK * kinds.len()))
            .for_each(|(blocks, fields)| {
                let each = fields.chunks_exact(kinds.len());
                for (block, fields) in blocks.chunks_exact_mut(bytes).zip(each) {
                    for (kind, &value) in kinds.iter().zip(fields) {
                        let value = value.clamp(f16::MIN.to_f32(), f16::MAX.to_f32());
                        let value = f16::from_f32(value).to_le_bytes();
                        block[kind.at..kind.at + 2].copy_from_slice(&value);
                    }
                }
            });
    }

    /// The weights.
    ///
    /// # Errors
    /// When ggml cannot read the type, which [`new`](Self::new) has seen to.
    pub fn weights(&self) -> Result<Vec<f32>, QuantError> {
        let elems = self.ggml_type.block_elems() as usize;
        let mut out = vec![0.0; self.bytes.len() / self.block_bytes() * elems];
        let chunks = self.bytes.par_chunks(CHUNK * self.block_bytes());
        chunks
            .zip(out.par_chunks_mut(CHUNK * elems))
            .try_for_each(|(bytes, out)| dequantize_row(self.ggml_type.id(), bytes, out))?;
        Ok(out)
    }

    /// The gradients of all fields, where `of_weights` are those of the weights.
    ///
    /// # Errors
    /// As [`weights`](Self::weights).
    pub fn gradients(&self, of_weights: &[f32]) -> Result<Vec<f32>, QuantError> {
        let kinds = fields_of(self.ggml_type);
        let (bytes, elems) = (self.block_bytes(), self.ggml_type.block_elems() as usize);
        let mut out = vec![0.0; self.bytes.len() / bytes * kinds.len()];
        let chunks = self.bytes.par_chunks(CHUNK * bytes);
        let chunks = chunks.zip(of_weights.par_chunks(CHUNK * elems));
        chunks
            .zip(out.par_chunks_mut(CHUNK * kinds.len()))
            .try_for_each(|((bytes_of, of_weights), out)| {
                let mut unit = bytes_of.to_vec();
                let mut weights = vec![0.0; of_weights.len()];
                for which in 0..kinds.len() {
                    // What the weights are where this field is 1 and the others are 0.
                    for block in unit.chunks_exact_mut(bytes) {
                        for (i, kind) in kinds.iter().enumerate() {
                            let value = f16::from_f32(f32::from(u8::from(i == which)));
                            block[kind.at..kind.at + 2].copy_from_slice(&value.to_le_bytes());
                        }
                    }
                    dequantize_row(self.ggml_type.id(), &unit, &mut weights)?;
                    let blocks = weights
                        .chunks_exact(elems)
                        .zip(of_weights.chunks_exact(elems));
                    for (block, (weights, of)) in blocks.enumerate() {
                        let product = weights.iter().zip(of).map(|(w, g)| w * g);
                        out[block * kinds.len() + which] = product.sum();
                    }
                }
                Ok(())
            })?;
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use headshare_runtime::quants::{self, quantize_rows, type_info};

    const WIDTH: usize = 512;

    /// Numbers that are no pattern.
    fn numbers(n: usize) -> Vec<f32> {
        let mut state = 7u64;
        let mut next = || {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1 << 24) as f32 - 0.5
        };
        (0..n).map(|_| next() * next()).collect()
    }

    /// Every type that ggml can write and that has fields, as codes of random numbers.
    fn all() -> Vec<Codes> {
        let types = (0..quants::TYPE_COUNT).filter_map(type_info);
        let types = types.filter_map(|info| GgmlType::from_id(info.id));
        let types = types.filter(|t| !fields_of(*t).is_empty());
        let importances = vec![1.0; WIDTH];
        let codes = |t: GgmlType| {
            let bytes = quantize_rows(t.id(), &numbers(4 * WIDTH), WIDTH, Some(&importances));
            Codes::new(t, bytes.unwrap()).unwrap()
        };
        types.map(codes).collect()
    }

    #[test]
    fn fields_are_where_ggml_reads_them_and_weights_are_linear_in_them() {
        let all = all();
        assert!(all.len() >= 17, "{}", all.len());
        for codes in all {
            let name = codes.ggml_type().name();
            let (fields, weights) = (codes.fields(), codes.weights().unwrap());
            assert!(fields.iter().all(|f| f.is_finite()), "{name}");
            // All fields doubled double all weights, to the bit.
            let mut twice = codes.clone();
            twice.set(&fields.iter().map(|f| 2.0 * f).collect::<Vec<f32>>());
            let doubled: Vec<f32> = weights.iter().map(|w| 2.0 * w).collect();
            assert_eq!(twice.weights().unwrap(), doubled, "{name}");
            // And set to what they are they change nothing.
            let mut same = codes.clone();
            same.set(&fields);
            assert_eq!(same, codes, "{name}");
        }
    }

    #[test]
    fn gradients_of_fields_are_finite_differences_of_weights() {
        for codes in all() {
            let name = codes.ggml_type().name();
            let fields = codes.fields();
            let of_weights = numbers(4 * WIDTH);
            let gradients = codes.gradients(&of_weights).unwrap();
            assert_eq!(gradients.len(), fields.len(), "{name}");
            let loss = |fields: &[f32]| {
                let mut codes = codes.clone();
                codes.set(fields);
                let weights = codes.weights().unwrap();
                let terms = weights.iter().zip(&of_weights);
                terms
                    .map(|(w, g)| f64::from(*w) * f64::from(*g))
                    .sum::<f64>()
            };
            // Of some blocks, so that every field of a block is among them.
            for i in 0..fields.len().min(8) {
                // A step that f16 has no rounding for.
                let step = fields[i].abs().max(1e-3);
                let at = |by: f32| {
                    let mut fields = fields.clone();
                    fields[i] = by;
                    loss(&fields)
                };
                let found = (at(2.0 * step) - at(step)) / f64::from(f16::from_f32(step).to_f32());
                let expected = f64::from(gradients[i]);
                assert!(
                    (found - expected).abs() <= 2e-3 * expected.abs().max(1e-2),
                    "{name} {i}: {found} {expected}"
                );
            }
        }
    }
}
