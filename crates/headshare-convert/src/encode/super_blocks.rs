//! Encoders of ggml's types of 256 weights whose parts have small whole scales of
//! their own: the K-types and IQ4_XS.
//!
//! A weight is d x scale x level - dmin x minimum, with d and dmin (f16) of the
//! super-block, scale and minimum of its part. Scales come first, from each part by
//! itself; then the parts are rounded one after the other, each with the scale and
//! minimum that suit it best now that the errors before it have moved it.

use half::f16;
use rayon::prelude::*;

use super::affine::to_f16;
use super::block::{Block, Coded};
use super::feedback::{Levels, Span};
use super::ideal::{Base, Search};
use super::lanes::{Grids, LANES, Rounded};
use super::level_type::LevelType;
use super::super_layout::{self, IQ4_LIST, Kind, PARTS, Super, WIDTH};

/// One of the types.
#[derive(Debug, Clone, Copy)]
pub struct SuperBlocks {
    kind: Kind,
    /// Weights of a part.
    part: usize,
    levels: Levels,
    /// Smallest and largest scale.
    scales: (i32, i32),
    /// The largest minimum; 0 where there are none.
    minimums: i32,
}

/// d is tried so much larger or smaller than the largest scale would have it, and dmin than
/// the largest minimum.
const STRETCHES: [f64; 9] = [1.0, 0.97, 0.94, 0.91, 0.88, 1.03, 1.06, 1.1, 1.15];
const STRETCHES_MIN: [f64; 3] = [1.0, 0.94, 1.05];

impl SuperBlocks {
    /// The type with ggml's name `name`, if it is one of them.
    pub fn of(name: &str) -> Option<Self> {
        let (kind, part, levels, scales, minimums) = match name {
            "q2_K" => (Kind::Q2K, 16, Levels::Whole(0, 3), (0, 15), 15),
            "q3_K" => (Kind::Q3K, 16, Levels::Whole(-4, 3), (-32, 31), 0),
            "q4_K" => (Kind::Q4K, 32, Levels::Whole(0, 15), (0, 63), 63),
            "q5_K" => (Kind::Q5K, 32, Levels::Whole(0, 31), (0, 63), 63),
            "q6_K" => (Kind::Q6K, 16, Levels::Whole(-32, 31), (-128, 127), 0),
            "iq4_xs" => (Kind::Iq4Xs, 32, Levels::Listed(&IQ4_LIST), (-32, 31), 0),
            _ => return None,
        };
        Some(Self {
            kind,
            part,
            levels,
            scales,
            minimums,
        })
    }

    /// Encodes the same 256 columns of several rows.
    pub fn encode(&self, wanted: &[f64], block: &Block) -> Coded {
        let blocks: Vec<Super> = wanted
            .par_chunks(WIDTH)
            .map(|row| self.best(row, block))
            .collect();
        let mut bytes = Vec::new();
        let mut values = Vec::with_capacity(wanted.len());
        for block in &blocks {
            super_layout::pack(self.kind, block, &mut bytes);
            values.extend((0..WIDTH).map(|i| self.value(block, i)));
        }
        Coded { bytes, values }
    }

    /// How scales and minimums of parts are looked for.
    pub(super) fn search(&self) -> Search<'static> {
        Search {
            levels: self.levels,
            base: match self.minimums {
                0 => Base::None,
                _ => Base::NotPositive,
            },
            signs: self.scales.0 < 0,
            // Scales of parts are multiples of one that is not known yet.
            stored: &|number| number,
        }
    }

    fn best(&self, row: &[f64], block: &Block) -> Super {
        let parts = WIDTH / self.part;
        let span = |part: usize| Span::new(block, part * self.part, self.part);
        let of_part = |part: usize| &row[part * self.part..(part + 1) * self.part];
        let search = self.search();
        let ideals: Vec<(f64, f64)> = (0..parts)
            .map(|part| {
                let found = search.best(span(part), of_part(part), &[]);
                found.map_or((0.0, 0.0), |found| (found.scale, found.base))
            })
            .collect();
        let largest = (ideals.iter().map(|i| i.0)).fold(0.0, |a: f64, b| match b.abs() > a.abs() {
            true => b,
            false => a,
        });
        let lowest = ideals.iter().map(|i| -i.1).fold(0.0, f64::max);
        // The end that reaches further takes the largest scale.
        let (first, last) = self.scales;
        let end = if -first > last { first } else { last };
        let mut best: Option<(f64, Super)> = None;
        let of_minimums = match self.minimums {
            0 => &STRETCHES_MIN[..1],
            _ => &STRETCHES_MIN,
        };
        for stretch in STRETCHES {
            let d = to_f16(stretch * largest / f64::from(end));
            for stretch_min in of_minimums {
                let dmin = match self.minimums {
                    0 => f16::ZERO,
                    most => to_f16(stretch_min * lowest / f64::from(most)),
                };
                let limit = best.as_ref().map_or(f64::INFINITY, |b| b.0);
                if let Some(found) = self.round(row, block, &ideals, (d, dmin), limit) {
                    best = Some(found);
                }
            }
        }
        // Only weights that are no numbers cost nothing less than infinity.
        best.map_or(
            Super {
                d: f16::NAN,
                dmin: f16::ZERO,
                scales: [0; PARTS],
                minimums: [0; PARTS],
                levels: [0; WIDTH],
            },
            |best| best.1,
        )
    }

    /// Rounds part after part; `None` when that costs `limit` or more.
    fn round(
        &self,
        row: &[f64],
        block: &Block,
        ideals: &[(f64, f64)],
        (d, dmin): (f16, f16),
        limit: f64,
    ) -> Option<(f64, Super)> {
        let mut found = Super {
            d,
            dmin,
            scales: [0; PARTS],
            minimums: [0; PARTS],
            levels: [0; WIDTH],
        };
        let mut rest = row.to_vec();
        let mut rounded = Rounded::room(self.part);
        let mut cost = 0.0;
        let (step, step_min) = (f64::from(d.to_f32()), f64::from(dmin.to_f32()));
        for (part, &ideal) in ideals.iter().enumerate() {
            let columns = part * self.part..(part + 1) * self.part;
            let span = Span::new(block, columns.start, self.part);
            let wanted = &rest[columns.clone()];
            let near: Vec<(i32, i32)> = near(ideal.0, step, self.scales)
                .flat_map(|scale| {
                    let minimums = near(-ideal.1, step_min, (0, self.minimums));
                    minimums.map(move |minimum| (scale, minimum))
                })
                .collect();
            let grids = Grids::new(near.iter().map(|&(scale, minimum)| {
                (step * f64::from(scale), -step_min * f64::from(minimum))
            }));
            let most = limit - cost;
            rounded.round(span, wanted, &self.levels, &grids, &[most; LANES]);
            let (lane, of_part) = rounded.best(most)?;
            cost += of_part;
            (found.scales[part], found.minimums[part]) = near[lane];
            let mut got = Vec::with_capacity(self.part);
            for (at, levels) in columns.zip(&rounded.levels) {
                found.levels[at] = levels[lane] as i8;
                got.push(levels[lane] * grids.scales[lane] + grids.bases[lane]);
            }
            span.move_rest(&mut rest, &got);
        }
        (cost < limit).then_some((cost, found))
    }
}

/// The whole numbers around `ideal` / `step`, within `range`.
fn near(ideal: f64, step: f64, (first, last): (i32, i32)) -> impl Iterator<Item = i32> {
    let middle = match step == 0.0 {
        true => 0,
        false => (ideal / step)
            .round()
            .clamp(f64::from(first), f64::from(last)) as i32,
    };
    (middle - 1).max(first)..=(middle + 1).min(last)
}

impl LevelType for SuperBlocks {
    type Block = Super;

    fn width(&self) -> usize {
        WIDTH
    }

    fn part(&self) -> usize {
        self.part
    }

    fn block_bytes(&self) -> usize {
        super_layout::bytes(self.kind)
    }

    fn levels(&self) -> Levels {
        self.levels
    }

    fn has_base(&self) -> bool {
        self.minimums > 0
    }

    fn unpack(&self, bytes: &[u8]) -> Super {
        super_layout::unpack(self.kind, bytes)
    }

    fn pack(&self, block: &Super, out: &mut Vec<u8>) {
        super_layout::pack(self.kind, block, out);
    }

    fn value(&self, block: &Super, i: usize) -> f32 {
        let part = i / self.part;
        let scale = block.d.to_f32() * block.scales[part] as f32;
        let value = scale * f32::from(block.levels[i]);
        match self.minimums {
            0 => value,
            _ => value - block.dmin.to_f32() * block.minimums[part] as f32,
        }
    }

    fn level_mut<'b>(&self, block: &'b mut Super, part: usize, i: usize) -> &'b mut i8 {
        &mut block.levels[part * self.part + i]
    }

    fn scale(&self, block: &Super, part: usize) -> f64 {
        f64::from(block.d.to_f32()) * f64::from(block.scales[part])
    }

    fn with_scale(&self, block: &Super, part: usize, scale: f64) -> Option<Super> {
        let scale = closest(scale, block.d, self.scales)?;
        let mut moved = block.clone();
        moved.scales[part] = scale;
        (scale != block.scales[part]).then_some(moved)
    }

    fn base(&self, block: &Super, part: usize) -> f64 {
        -f64::from(block.dmin.to_f32()) * f64::from(block.minimums[part])
    }

    fn with_base(&self, block: &Super, part: usize, base: f64) -> Option<Super> {
        let minimum = closest(-base, block.dmin, (0, self.minimums))?;
        let mut moved = block.clone();
        moved.minimums[part] = minimum;
        (minimum != block.minimums[part]).then_some(moved)
    }
}

/// The whole number within `range` of steps that is closest to `value`.
fn closest(value: f64, step: f16, (first, last): (i32, i32)) -> Option<i32> {
    let steps = (value / f64::from(step.to_f32())).round();
    (steps.is_finite()).then(|| steps.clamp(f64::from(first), f64::from(last)) as i32)
}
