//! Unit blocks held in vectors, and a builder of shapes for the tests.

use headshare_gguf::matching::{MatchError, UnitBlocks};
use headshare_gguf::model::{Part, UnitId};

/// Reproducible numbers (splitmix64).
pub struct Random(pub u64);

impl Random {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From -1 to 1.
    pub fn weight(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.bits() % end as u64) as usize
    }
}

/// One layer of a shape: how many units, and each part's length and class.
#[derive(Clone, Copy, Debug)]
pub struct Layer {
    pub units: u32,
    pub lengths: [usize; 3],
    pub classes: [u32; 3],
}

/// Blocks in memory. Public, so that a case can edit what it needs.
#[derive(Clone, Debug)]
pub struct Synthetic {
    pub ids: Vec<UnitId>,
    pub classes: Vec<[u32; 3]>,
    /// By unit, then part.
    pub weights: Vec<[Vec<f32>; 3]>,
    pub granularity: usize,
}

impl Synthetic {
    /// Random weights in the shape of `layers`, read in multiples of
    /// `granularity`.
    pub fn random(seed: u64, granularity: usize, layers: &[Layer]) -> Self {
        let mut random = Random(seed);
        let mut blocks = Synthetic {
            ids: Vec::new(),
            classes: Vec::new(),
            weights: Vec::new(),
            granularity,
        };
        for (layer, shape) in layers.iter().enumerate() {
            for unit in 0..shape.units {
                blocks.ids.push(UnitId {
                    layer: layer as u32,
                    unit,
                });
                blocks.classes.push(shape.classes);
                let part = |length| (0..length).map(|_| random.weight()).collect();
                blocks.weights.push(shape.lengths.map(part));
            }
        }
        blocks
    }

    /// Layers of one shape and class.
    pub fn uniform(seed: u64, layers: usize, units: u32, lengths: [usize; 3]) -> Self {
        let layer = Layer {
            units,
            lengths,
            classes: [0; 3],
        };
        Self::random(seed, 1, &vec![layer; layers])
    }

    /// One-element-deep blocks whose q, k and v all are the given vectors: one
    /// vector a unit, one list of vectors a layer.
    pub fn vectors(layers: &[&[&[f32]]]) -> Self {
        let mut blocks = Synthetic {
            ids: Vec::new(),
            classes: Vec::new(),
            weights: Vec::new(),
            granularity: 1,
        };
        for (layer, units) in layers.iter().enumerate() {
            for (unit, vector) in units.iter().enumerate() {
                blocks.ids.push(UnitId {
                    layer: layer as u32,
                    unit: unit as u32,
                });
                blocks.classes.push([0; 3]);
                blocks
                    .weights
                    .push(std::array::from_fn(|_| vector.to_vec()));
            }
        }
        blocks
    }

    /// Replaces a unit's weights by a multiple of another's.
    pub fn copy(&mut self, from: usize, to: usize, factor: f32) {
        let scaled = |part: &Vec<f32>| part.iter().map(|weight| weight * factor).collect();
        self.weights[to] = std::array::from_fn(|part| scaled(&self.weights[from][part]));
    }
}

impl UnitBlocks for Synthetic {
    fn units(&self) -> &[UnitId] {
        &self.ids
    }

    fn class(&self, part: Part, unit: usize) -> u32 {
        self.classes[unit][part as usize]
    }

    fn elements(&self, part: Part, unit: usize) -> usize {
        self.weights[unit][part as usize].len()
    }

    fn granularity(&self, _: Part, _: usize) -> usize {
        self.granularity
    }

    fn read(
        &self,
        part: Part,
        unit: usize,
        start: usize,
        out: &mut [f32],
    ) -> Result<(), MatchError> {
        assert!(!out.is_empty());
        assert!(start.is_multiple_of(self.granularity), "start {start}");
        assert!(
            out.len().is_multiple_of(self.granularity),
            "length {}",
            out.len()
        );
        out.copy_from_slice(&self.weights[unit][part as usize][start..][..out.len()]);
        Ok(())
    }
}
