//! The weights of the heads, dequantized, for the matching.

use std::collections::HashMap;

use headshare_format::{FormatError, Gguf};
use headshare_runtime::quants;

use super::{MatchError, UnitBlocks};
use crate::model::{About, AttentionMap, HeadsError, Part, UnitId};

/// The weight blocks of a file's units, dequantized on demand through ggml.
pub struct WeightBlocks<'a> {
    file: &'a [u8],
    units: Vec<UnitId>,
    blocks: Vec<[Block; 3]>,
}

/// One part of one unit.
#[derive(Clone, Copy)]
struct Block {
    /// Where its bytes begin in the file.
    start: usize,
    elements: usize,
    class: u32,
    ggml_type: u32,
    block_elems: usize,
    block_bytes: usize,
}

impl<'a> WeightBlocks<'a> {
    /// The blocks of `map`, which was made of `gguf`, the header of `file`.
    ///
    /// # Errors
    /// When ggml cannot dequantize one of the tensors, or `file` is not the
    /// file that the header is of.
    pub fn new(gguf: &Gguf, file: &'a [u8], map: &AttentionMap) -> Result<Self, HeadsError> {
        if file.len() as u64 != gguf.file_len() {
            return Err(FormatError::unsupported(
                "file",
                format!(
                    "has {} bytes now; it had {} when its header was read",
                    file.len(),
                    gguf.file_len()
                ),
            )
            .into());
        }
        let mut classes = HashMap::new();
        let mut units = Vec::new();
        let mut blocks = Vec::new();
        for layer in &map.layers {
            for part in Part::ALL {
                let tensor = layer.tensor(part);
                let id = tensor.ggml_type.id();
                if !quants::type_info(id).is_some_and(|info| info.has_to_float) {
                    return Err(HeadsError::NotShareable {
                        architecture: map.architecture.name,
                        place: About::Tensor(gguf.tensors()[tensor.tensor].name.clone()),
                        reason: format!(
                            "ggml cannot turn its type {} into numbers to compare",
                            tensor.ggml_type
                        ),
                    });
                }
            }
            for unit in layer.units() {
                units.push(unit);
                blocks.push(Part::ALL.map(|part| {
                    let tensor = layer.tensor(part);
                    let rows = tensor.range(layer.heads(part, unit.unit));
                    let n_rows = rows.len / tensor.row_bytes;
                    let fresh = classes.len() as u32;
                    let class = *classes
                        .entry((tensor.ggml_type, n_rows, tensor.row_elems))
                        .or_insert(fresh);
                    let data = gguf.data_range(&gguf.tensors()[tensor.tensor]);
                    // All of these are below the file's length in memory, but
                    // the elements: types of less than a byte have more.
                    Block {
                        start: (data.start + rows.offset) as usize,
                        elements: (n_rows * tensor.row_elems) as usize,
                        class,
                        ggml_type: tensor.ggml_type.id(),
                        block_elems: tensor.ggml_type.block_elems() as usize,
                        block_bytes: tensor.ggml_type.block_bytes() as usize,
                    }
                }));
            }
        }
        Ok(Self {
            file,
            units,
            blocks,
        })
    }

    fn block(&self, part: Part, unit: usize) -> &Block {
        &self.blocks[unit][part as usize]
    }
}

impl UnitBlocks for WeightBlocks<'_> {
    fn units(&self) -> &[UnitId] {
        &self.units
    }

    fn class(&self, part: Part, unit: usize) -> u32 {
        self.block(part, unit).class
    }

    fn elements(&self, part: Part, unit: usize) -> usize {
        self.block(part, unit).elements
    }

    fn granularity(&self, part: Part, unit: usize) -> usize {
        self.block(part, unit).block_elems
    }

    fn read(
        &self,
        part: Part,
        unit: usize,
        start: usize,
        out: &mut [f32],
    ) -> Result<(), MatchError> {
        let block = self.block(part, unit);
        let bytes = |elements: usize| elements / block.block_elems * block.block_bytes;
        assert!(
            start
                .checked_add(out.len())
                .is_some_and(|end| end <= block.elements)
                && start.is_multiple_of(block.block_elems),
            "read past the block of {part} of {}",
            self.units[unit]
        );
        let from = block.start + bytes(start);
        let source = &self.file[from..from + bytes(out.len())];
        quants::dequantize_row(block.ggml_type, source, out).map_err(|e| MatchError::Read {
            part,
            unit: self.units[unit],
            source: Box::new(e),
        })
    }
}
