//! Layers of equal units in any number, whose weights are made when they are read.
//! The benches include this file, too.

use headshare_gguf::matching::{MatchError, UnitBlocks};
use headshare_gguf::model::{Part, UnitId};

/// Units of one class; `read` is told the part, the unit and the first weight.
pub struct Grid<R> {
    ids: Vec<UnitId>,
    /// Weights of each part of a unit.
    elements: usize,
    granularity: usize,
    read: R,
}

impl<R: Fn(Part, usize, usize, &mut [f32]) + Sync> Grid<R> {
    pub fn new(layers: u32, units: u32, elements: usize, granularity: usize, read: R) -> Self {
        let ids = (0..layers).flat_map(|layer| (0..units).map(move |unit| UnitId { layer, unit }));
        Grid {
            ids: ids.collect(),
            elements,
            granularity,
            read,
        }
    }
}

impl<R: Fn(Part, usize, usize, &mut [f32]) + Sync> UnitBlocks for Grid<R> {
    fn units(&self) -> &[UnitId] {
        &self.ids
    }

    fn class(&self, _: Part, _: usize) -> u32 {
        0
    }

    fn elements(&self, _: Part, _: usize) -> usize {
        self.elements
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
        (self.read)(part, unit, start, out);
        Ok(())
    }
}
