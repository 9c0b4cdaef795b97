//! The scores of the paper's match functions: Gram matrices of unit blocks,
//! streamed in column slabs so that memory stays bounded, and the search for
//! the best earlier unit (the inner loop of Algorithm 1).
//!
//! Two passes over the weights:
//! 1. **Gram**: a slab of every unit is dequantized, and the tiles on and below
//!    the diagonal are multiplied in `f32` and summed over the slabs in `f64`.
//!    Each row of a slab is first scaled by a power of two, so that no product
//!    overflows or vanishes. Squared norms are summed in `f64` directly.
//! 2. **Decision**: a sum of L products in `f32`, in any order, is off by at
//!    most g |x| |y| with g = L u / (1 - L u), u = 2^-24; over slabs this adds
//!    up to at most g in the cosine (Cauchy-Schwarz). So only units within 2 g
//!    of the best can be the best; their dot products are summed again in
//!    `f64`, in one fixed order. An `f32` product is exact in `f64`.
//!
//! The outcome therefore does not depend on the kernels, nor on the threads.

use rayon::prelude::*;

use super::blocks::{MatchError, UnitBlocks};
use super::plan::{PAIRS, plan_slabs};
use super::products::Products;
use crate::model::{Part, UnitId};

/// Units that can stand in for each other: one class in every shared part.
#[derive(Clone, Debug)]
pub(super) struct Group {
    /// Indices into the source's units, ascending.
    pub units: Vec<usize>,
    /// Those units' ids.
    pub ids: Vec<UnitId>,
    parts: Vec<PartShape>,
}

#[derive(Clone, Copy, Debug)]
struct PartShape {
    part: Part,
    elements: usize,
    slab: usize,
}

impl Group {
    /// A group of `units`, scored by `parts`; checks that the source states one
    /// shape for all of them.
    pub fn new(
        blocks: &dyn UnitBlocks,
        units: Vec<usize>,
        parts: &[Part],
    ) -> Result<Self, MatchError> {
        let all = blocks.units();
        let ids: Vec<UnitId> = units.iter().map(|&unit| all[unit]).collect();
        let shape = |&part: &Part| {
            let elements = blocks.elements(part, units[0]);
            let granularity = blocks.granularity(part, units[0]);
            for (&unit, &id) in units.iter().zip(&ids) {
                let reason = if blocks.elements(part, unit) != elements {
                    "its length differs from that of its class"
                } else if blocks.granularity(part, unit) != granularity {
                    "its granularity differs from that of its class"
                } else if granularity == 0 || !elements.is_multiple_of(granularity) {
                    "its length is not a multiple of its granularity"
                } else {
                    continue;
                };
                return Err(MatchError::Inconsistent {
                    part,
                    unit: id,
                    reason,
                });
            }
            let slab = plan_slabs(units.len(), granularity, 1)
                .slab_elements
                .min(elements);
            Ok(PartShape {
                part,
                elements,
                slab,
            })
        };
        let parts = parts.iter().map(shape).collect::<Result<_, _>>()?;
        Ok(Group { units, ids, parts })
    }

    /// Whether any unit has an earlier layer's unit beside it.
    pub fn can_match(&self) -> bool {
        self.ids.first().map(|id| id.layer) != self.ids.last().map(|id| id.layer)
    }

    /// Multiplications of a pass, roughly, for progress.
    pub fn work(&self) -> f64 {
        let elements: f64 = self.parts.iter().map(|shape| shape.elements as f64).sum();
        elements * (self.units.len() as f64).powi(2)
    }

    /// The pieces in which the weights are read.
    fn slabs(&self) -> impl Iterator<Item = Slab> {
        self.parts.iter().flat_map(|shape| {
            (0..shape.elements)
                .step_by(shape.slab.max(1))
                .map(|start| Slab {
                    part: shape.part,
                    start,
                    len: shape.slab.min(shape.elements - start),
                })
        })
    }

    /// A buffer that holds any slab.
    fn buffer(&self) -> Vec<f32> {
        let widest = self.parts.iter().map(|shape| shape.slab).max().unwrap_or(0);
        vec![0.0; widest * self.units.len()]
    }

    /// The bound g on the error of a cosine from pass 1, with a margin for the
    /// rounding of everything else.
    fn error_bound(&self) -> f64 {
        let longest = self.parts.iter().map(|shape| shape.slab).max().unwrap_or(0);
        let lu = longest as f64 * f64::from(f32::EPSILON) / 2.0;
        if lu >= 0.5 {
            return f64::INFINITY;
        }
        1.01 * lu / (1.0 - lu) + 1e-9
    }

    /// Fills `buffer` with a slab, one row a unit, and hands each row to
    /// `per_row`. Of several errors the first unit's is returned.
    fn read_slab<R: Send>(
        &self,
        blocks: &dyn UnitBlocks,
        slab: Slab,
        buffer: &mut [f32],
        per_row: impl Fn(UnitId, &mut [f32]) -> Result<R, MatchError> + Sync,
    ) -> Result<Vec<R>, MatchError> {
        let rows: Vec<Result<R, MatchError>> = buffer[..slab.len * self.units.len()]
            .par_chunks_exact_mut(slab.len)
            .zip(self.units.par_iter().zip(&self.ids))
            .map(|(row, (&unit, &id))| {
                blocks.read(slab.part, unit, slab.start, row)?;
                per_row(id, row)
            })
            .collect();
        rows.into_iter().collect()
    }
}

#[derive(Clone, Copy, Debug)]
struct Slab {
    part: Part,
    start: usize,
    len: usize,
}

/// Dot products of the units of a group: `f32` products summed in `f64`.
pub(super) struct Gram {
    products: Products,
    /// Squared norms, to `f64`'s precision.
    norms: Vec<f64>,
}

impl Gram {
    /// Pass 1. `progress` is told the share of the pass that is done.
    pub fn compute(
        blocks: &dyn UnitBlocks,
        group: &Group,
        progress: &dyn Fn(f64),
    ) -> Result<Self, MatchError> {
        let units = group.units.len();
        let mut gram = Gram {
            products: Products::new(units),
            norms: vec![0.0; units],
        };
        let mut buffer = group.buffer();
        let slabs: Vec<Slab> = group.slabs().collect();
        for (done, &slab) in slabs.iter().enumerate() {
            let rows = group.read_slab(blocks, slab, &mut buffer, |unit, row| {
                let scale = row_scale(row);
                if scale.is_nan() {
                    return Err(MatchError::NonFinite {
                        part: slab.part,
                        unit,
                    });
                }
                let norm = dot(row, row);
                let factor = (1.0 / scale) as f32;
                row.iter_mut().for_each(|weight| *weight *= factor);
                Ok((norm, scale))
            })?;
            for (sum, (norm, _)) in gram.norms.iter_mut().zip(&rows) {
                *sum += norm;
            }
            let scales: Vec<f64> = rows.into_iter().map(|(_, scale)| scale).collect();
            gram.products.add(&buffer, slab.len, &scales);
            progress((done + 1) as f64 / slabs.len() as f64);
        }
        Ok(gram)
    }

    /// The cosine of two units, to within the group's error bound.
    pub fn cosine(&self, a: usize, b: usize) -> f64 {
        cosine(self.products.get(a, b), self.norms[a], self.norms[b])
    }

    /// Whether all looked-at weights of a unit are zero.
    pub fn is_zero(&self, unit: usize) -> bool {
        self.norms[unit] == 0.0
    }
}

/// The best earlier unit of a unit, both as indices into the group.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Best {
    pub unit: usize,
    pub matched: usize,
    pub score: f64,
}

/// Pass 2: for each unit the best unit of an earlier layer. Start score -1,
/// strictly greater wins, the first in (layer, unit) order wins ties.
pub(super) fn best_matches(
    blocks: &dyn UnitBlocks,
    group: &Group,
    gram: &Gram,
    progress: &dyn Fn(f64),
) -> Result<Vec<Best>, MatchError> {
    let units = group.units.len();
    let window = 2.0 * group.error_bound();
    let mut buffer = group.buffer();
    let mut found = Vec::new();
    let mut next = 0;
    while next < units {
        let begin = next;
        let mut pairs = Vec::new();
        while next < units && pairs.len() < PAIRS {
            push_contenders(group, gram, next, window, &mut pairs);
            next += 1;
        }
        let (from, share) = (
            begin as f64 / units as f64,
            (next - begin) as f64 / units as f64,
        );
        sum_pairs(blocks, group, &mut buffer, &mut pairs, &|part| {
            progress(from + share * part);
        })?;
        for of_unit in pairs.chunk_by(|a, b| a.unit == b.unit) {
            let mut best = Best {
                unit: of_unit[0].unit as usize,
                matched: usize::MAX,
                score: -1.0,
            };
            for pair in of_unit {
                let (a, b) = (pair.unit as usize, pair.other as usize);
                let score = cosine(pair.dot, gram.norms[a], gram.norms[b]);
                if score > best.score {
                    best.score = score;
                    best.matched = b;
                }
            }
            if best.matched != usize::MAX {
                found.push(best);
            }
        }
    }
    Ok(found)
}

struct Pair {
    unit: u32,
    other: u32,
    dot: f64,
}

/// Appends the earlier units which pass 1 leaves in the running for `unit`.
fn push_contenders(group: &Group, gram: &Gram, unit: usize, window: f64, pairs: &mut Vec<Pair>) {
    let layer = group.ids[unit].layer;
    let earlier = group.ids[..unit].partition_point(|id| id.layer < layer);
    let scores = (0..earlier).map(|other| gram.cosine(unit, other));
    let best = scores.clone().fold(f64::NEG_INFINITY, f64::max);
    for (other, score) in scores.enumerate() {
        if score >= best - window {
            pairs.push(Pair {
                unit: unit as u32,
                other: other as u32,
                dot: 0.0,
            });
        }
    }
}

/// Sums the dot products of `pairs` in `f64`.
fn sum_pairs(
    blocks: &dyn UnitBlocks,
    group: &Group,
    buffer: &mut [f32],
    pairs: &mut [Pair],
    progress: &dyn Fn(f64),
) -> Result<(), MatchError> {
    if pairs.is_empty() {
        return Ok(());
    }
    let slabs: Vec<Slab> = group.slabs().collect();
    for (done, &slab) in slabs.iter().enumerate() {
        group.read_slab(blocks, slab, buffer, |_, _| Ok(()))?;
        let row = |unit: u32| &buffer[unit as usize * slab.len..][..slab.len];
        pairs
            .par_iter_mut()
            .for_each(|pair| pair.dot += dot(row(pair.unit), row(pair.other)));
        progress((done + 1) as f64 / slabs.len() as f64);
    }
    Ok(())
}

/// The power of two at or below the largest magnitude (kept within what can be
/// inverted in `f32`); 1 if all are zero, not a number if one is not finite.
fn row_scale(row: &[f32]) -> f64 {
    let bits = row
        .iter()
        .fold(0, |most, weight| (weight.to_bits() & 0x7fff_ffff).max(most));
    if bits >= f32::INFINITY.to_bits() {
        return f64::NAN;
    }
    if bits == 0 {
        return 1.0;
    }
    let exponent = i64::from(bits >> 23) - 127;
    f64::from_bits(((exponent.clamp(-126, 126) + 1023) as u64) << 52)
}

/// The dot product in `f64`, summed in one fixed order.
fn dot(a: &[f32], b: &[f32]) -> f64 {
    const LANES: usize = 32;
    let (a_lanes, a_rest) = a.as_chunks::<LANES>();
    let (b_lanes, b_rest) = b.as_chunks::<LANES>();
    let mut sums = [0.0f64; LANES];
    for (a, b) in a_lanes.iter().zip(b_lanes) {
        for ((sum, &a), &b) in sums.iter_mut().zip(a).zip(b) {
            *sum += f64::from(a) * f64::from(b);
        }
    }
    for ((sum, &a), &b) in sums.iter_mut().zip(a_rest).zip(b_rest) {
        *sum += f64::from(a) * f64::from(b);
    }
    sums.iter().sum()
}

/// The cosine from a dot product and two squared norms; 0 if a norm is.
pub fn cosine(dot: f64, norm_a: f64, norm_b: f64) -> f64 {
    if norm_a == 0.0 || norm_b == 0.0 {
        return 0.0;
    }
    // Adding 0 turns -0 into 0: the two are a tie.
    (dot / (norm_a * norm_b).sqrt()).clamp(-1.0, 1.0) + 0.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_are_powers_of_two_that_bring_rows_near_one() {
        for (weights, scale) in [
            (&[0.0, -0.0][..], 1.0),
            (&[1.0], 1.0),
            (&[0.1, -5.0], 4.0),
            (&[f32::MAX], 2f64.powi(126)),
            (&[f32::MIN_POSITIVE], 2f64.powi(-126)),
            (&[1e-45], 2f64.powi(-126)),
        ] {
            assert_eq!(row_scale(weights), scale, "{weights:?}");
        }
        for weight in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(row_scale(&[1.0, weight, 2.0]).is_nan(), "{weight}");
        }
    }

    #[test]
    fn dot_products_of_every_length_are_exact_on_integers() {
        for len in 0..100usize {
            let a: Vec<f32> = (0..len).map(|i| i as f32 - 7.0).collect();
            let b: Vec<f32> = (0..len).map(|i| (i % 5) as f32).collect();
            let expected: f64 = (0..len).map(|i| (i as f64 - 7.0) * (i % 5) as f64).sum();
            assert_eq!(dot(&a, &b), expected, "length {len}");
        }
    }

    #[test]
    fn cosines_of_equal_and_opposite_blocks_are_exact() {
        for norm in [1e-90, 0.3, 7.0, 1e83] {
            assert_eq!(cosine(norm, norm, norm), 1.0);
            assert_eq!(cosine(-norm, norm, norm), -1.0);
        }
        assert!(cosine(-0.0, 1.0, 1.0).is_sign_positive());
        assert_eq!(cosine(0.0, 0.0, 1.0), 0.0);
    }
}
