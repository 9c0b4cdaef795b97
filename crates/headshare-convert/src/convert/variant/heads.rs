//! A model without some of its units: their rows of q, k and v and their
//! columns of `attn_output` are gone, not shared.
//!
//! llama.cpp runs that as `deci`, which is `llama` with a number of heads for
//! each layer (`src/models/deci.cpp`).

use std::collections::BTreeSet;
use std::ops::Range;

use headshare_format::{FormatError, TensorInfo};

use super::deci::{self, DECI};
use super::error::ShapeError;
use super::shapes::Shapes;
use crate::input::ModelFile;
use crate::model::{AttentionLayer, AttentionMap, Part, UnitId};

/// Which units stay, and which go.
#[derive(Debug, Clone)]
pub struct Heads<'a> {
    map: &'a AttentionMap,
    dropped: BTreeSet<UnitId>,
}

/// What limits the choice of units to drop.
#[derive(Debug, Clone, Copy)]
pub struct Limits<'a> {
    source: &'a ModelFile,
    map: &'a AttentionMap,
}

impl<'a> Limits<'a> {
    /// Those of `source`.
    ///
    /// # Errors
    /// When llama.cpp has no numbers of heads for each layer of this
    /// architecture, or `attn_output` has other columns than heads.
    pub fn of(source: &'a ModelFile, map: &'a AttentionMap) -> Result<Self, ShapeError> {
        deci::check(&source.gguf, "units can go").map_err(ShapeError::units)?;
        for layer in &map.layers {
            let own = layer.key_length == layer.value_length;
            if !own {
                return Err(ShapeError::units(format!(
                    "layer {}: llama.cpp's {DECI} wants values as long as keys",
                    layer.layer
                )));
            }
        }
        let this = Self { source, map };
        for layer in &map.layers {
            if let Some(output) = this.output(layer.layer) {
                (layer.check_output(output))
                    .map_err(|problem| FormatError::tensor(&output.name, problem))?;
            }
        }
        Ok(this)
    }

    /// Units of `layer` that can only go together, so that rows of
    /// `attn_output` stay whole quantization blocks: neighbours, so many.
    pub fn together(&self, layer: u32) -> u32 {
        let Some((layer, output)) = self.map.layer(layer).zip(self.output(layer)) else {
            return 1;
        };
        let width = layer.output_width();
        let block = output.ggml_type.block_elems();
        let together = block / gcd(block, width);
        u32::try_from(together).unwrap_or(u32::MAX)
    }

    /// Whether a unit must be left in `layer`: llama.cpp takes sizes from layer
    /// 0, and leaves out a bias together with the last unit.
    pub fn must_keep_one(&self, layer: u32) -> bool {
        let bias = format!("blk.{layer}.attn_output.bias");
        layer == 0 || self.source.gguf.tensor(&bias).is_some()
    }

    /// Bytes of a unit's q, k and v, and of its columns of `attn_output`.
    pub fn sizes(&self, unit: UnitId) -> (u64, u64) {
        let rows: u64 = Part::ALL
            .into_iter()
            .filter_map(|part| self.map.block(unit, part))
            .map(|rows| rows.len)
            .sum();
        let columns = self
            .map
            .layer(unit.layer)
            .zip(self.output(unit.layer))
            .map_or(0, |(layer, output)| {
                output.byte_len() / u64::from(layer.n_head_kv)
            });
        (rows, columns)
    }

    fn output(&self, layer: u32) -> Option<&'a TensorInfo> {
        self.source
            .gguf
            .tensor(&format!("blk.{layer}.attn_output.weight"))
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

impl<'a> Heads<'a> {
    /// Checks that `dropped` can go.
    ///
    /// # Errors
    /// [`ShapeError`].
    pub fn new(
        source: &'a ModelFile,
        map: &'a AttentionMap,
        dropped: BTreeSet<UnitId>,
    ) -> Result<Self, ShapeError> {
        let this = Self { map, dropped };
        if this.dropped.is_empty() {
            return Ok(this);
        }
        let limits = Limits::of(source, map)?;
        for layer in &map.layers {
            let kept = this.kept(layer);
            let n = layer.layer;
            if kept.is_empty() && limits.must_keep_one(n) {
                return Err(ShapeError::units(format!(
                    "a unit of layer {n} must be left"
                )));
            }
            let together = limits.together(n) as usize;
            for units in (0..layer.n_head_kv).collect::<Vec<_>>().chunks(together) {
                let gone = units.iter().filter(|u| !kept.contains(u)).count();
                if gone != 0 && (gone != units.len() || units.len() != together) {
                    return Err(ShapeError::units(format!(
                        "units {} to {} of layer {n} can only go together: rows of attn_output are whole blocks",
                        units[0],
                        units[0] as usize + together - 1
                    )));
                }
            }
        }
        Ok(this)
    }

    /// Whether nothing goes.
    pub fn is_empty(&self) -> bool {
        self.dropped.is_empty()
    }

    /// The units of `layer` that stay.
    pub fn kept(&self, layer: &AttentionLayer) -> Vec<u32> {
        layer
            .units()
            .filter(|unit| !self.dropped.contains(unit))
            .map(|unit| unit.unit)
            .collect()
    }

    /// The columns of `attn_output` of `layer` that stay, where some go.
    pub fn kept_columns(&self, layer: u32) -> Option<Vec<Range<u64>>> {
        let layer = self.map.layer(layer)?;
        let kept = self.kept(layer);
        if kept.len() == layer.n_head_kv as usize {
            return None;
        }
        Some(
            kept.into_iter()
                .map(|unit| layer.output_columns(unit))
                .collect(),
        )
    }

    /// Adds what goes to `shapes`.
    pub(super) fn shape(&self, shapes: &mut Shapes<'_>) {
        for layer in &self.map.layers {
            let n = layer.layer;
            let Some(kept_columns) = self.kept_columns(n) else {
                continue;
            };
            let kept = self.kept(layer);
            let output = format!("blk.{n}.attn_output.weight");
            if kept.is_empty() {
                shapes.remove(&format!("blk.{n}.attn_norm.weight"));
                shapes.remove(&output);
            }
            shapes.keep_columns(&output, kept_columns);
            for part in Part::ALL {
                let tensor = layer.tensor(part);
                let stay: Vec<Range<u64>> = kept
                    .iter()
                    .map(|&unit| {
                        let heads = layer.heads(part, unit);
                        let row =
                            |head: u32| tensor.first_row + u64::from(head) * tensor.rows_per_head;
                        row(heads.start)..row(heads.end)
                    })
                    .collect();
                let weight = shapes.name(tensor.tensor).to_owned();
                for name in [weight.replace(".weight", ".bias"), weight] {
                    if kept.is_empty() {
                        shapes.remove(&name);
                    }
                    // Of a fused tensor, one part after the other.
                    shapes.keep_rows(&name, stay.iter().cloned());
                }
            }
        }
    }

    /// The numbers of query and of KV heads of `blocks` layers.
    pub(super) fn head_counts(&self, blocks: usize) -> (Vec<u32>, Vec<u32>) {
        let mut query = vec![0; blocks];
        let mut kv = vec![0; blocks];
        for layer in &self.map.layers {
            let kept = self.kept(layer).len() as u32;
            let n = layer.layer as usize;
            if n < blocks {
                query[n] = kept * layer.heads_per_unit();
                kv[n] = kept;
            }
        }
        (query, kv)
    }
}
