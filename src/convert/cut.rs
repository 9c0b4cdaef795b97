//! A model without some of its units: their rows of q, k and v and their
//! columns of `attn_output` are gone, not shared.
//!
//! llama.cpp runs that as `deci`, which is `llama` with a number of heads for
//! each layer (`src/models/deci.cpp`): the same tensors, keys under another
//! name, arrays for what was one number. The result is a plain GGUF.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use headshare_format::gguf::{HeaderBuilder, KEY_ARCHITECTURE, Kv, Value, align_up};
use headshare_format::{FormatError, GgmlType, Gguf, TensorInfo};

use crate::input::{InputError, ModelFile};
use crate::model::{AttentionLayer, AttentionMap};
use crate::model::{Part, UnitId};
use crate::plan::{Alias, Plan};

/// The architecture whose units can be dropped, and what it becomes.
const FROM: &str = "llama";
const TO: &str = "deci";

/// The key under which the result says how it was made, as JSON.
pub const MADE_BY: &str = "headshare_gguf.made_by";

/// Why units cannot be dropped.
#[derive(Debug, thiserror::Error)]
#[error("dropping units: {0}")]
pub struct CutError(String);

/// Which units go.
#[derive(Debug, Clone)]
pub struct Cut<'a> {
    map: &'a AttentionMap,
    dropped: BTreeSet<UnitId>,
}

/// What limits the choice of units that go.
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
    /// architecture.
    pub fn of(source: &'a ModelFile, map: &'a AttentionMap) -> Result<Self, CutError> {
        let name = map.architecture.name;
        if name != FROM {
            return Err(CutError(if name == TO {
                format!(
                    "this is {TO}, of which units are gone already; let all go in one step, from the {FROM} model"
                )
            } else {
                format!(
                    "units can go from {FROM} models only, which llama.cpp also runs with another number of heads in each layer, as {TO}; this is {name}"
                )
            }));
        }
        let experts = source.gguf.u64_value("llama.expert_count");
        if experts.ok().flatten().is_some_and(|n| n > 0) {
            return Err(CutError(format!(
                "this model has experts, and llama.cpp's {TO} has none"
            )));
        }
        for layer in &map.layers {
            let own = layer.key_length == layer.value_length;
            if !own {
                return Err(CutError(format!(
                    "layer {}: llama.cpp's {TO} wants values as long as keys",
                    layer.layer
                )));
            }
        }
        Ok(Self { source, map })
    }

    /// Units of `layer` that can only go together, so that rows of
    /// `attn_output` stay whole quantisation blocks: neighbours, so many.
    pub fn together(&self, layer: u32) -> u32 {
        let Some((layer, output)) = self.map.layer(layer).zip(self.output(layer)) else {
            return 1;
        };
        let width = width(layer);
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

/// Columns of `attn_output` that belong to a unit.
fn width(layer: &AttentionLayer) -> u64 {
    u64::from(layer.heads_per_unit()) * layer.value_length
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

impl<'a> Cut<'a> {
    /// Checks that `dropped` can go.
    ///
    /// # Errors
    /// [`CutError`].
    pub fn new(
        source: &'a ModelFile,
        map: &'a AttentionMap,
        dropped: BTreeSet<UnitId>,
    ) -> Result<Self, CutError> {
        let this = Self { map, dropped };
        if this.dropped.is_empty() {
            return Ok(this);
        }
        let limits = Limits::of(source, map)?;
        for layer in &map.layers {
            let kept = this.kept(layer);
            let n = layer.layer;
            if kept.is_empty() && limits.must_keep_one(n) {
                return Err(CutError(format!("a unit of layer {n} must be left")));
            }
            let together = limits.together(n) as usize;
            for units in (0..layer.n_head_kv).collect::<Vec<_>>().chunks(together) {
                let gone = units.iter().filter(|u| !kept.contains(u)).count();
                if gone != 0 && (gone != units.len() || units.len() != together) {
                    return Err(CutError(format!(
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
    pub fn kept_columns(&self, layer: u32) -> Option<Vec<Range<usize>>> {
        let layer = self.map.layer(layer)?;
        let kept = self.kept(layer);
        if kept.len() == layer.n_head_kv as usize {
            return None;
        }
        let width = width(layer) as usize;
        Some(
            kept.into_iter()
                .map(|unit| unit as usize * width..(unit as usize + 1) * width)
                .collect(),
        )
    }

    /// `plan` for the model that is left.
    pub fn renumber(&self, plan: &Plan, source: String) -> Plan {
        let place = |unit: UnitId| {
            let before = self.dropped.range(
                UnitId {
                    layer: unit.layer,
                    unit: 0,
                }..unit,
            );
            unit.unit - before.count() as u32
        };
        let unit = |layer, unit| place(UnitId { layer, unit });
        Plan {
            source,
            units: plan.units - self.dropped.len(),
            saved: None,
            aliases: plan
                .aliases
                .iter()
                .map(|a| Alias {
                    unit: unit(a.layer, a.unit),
                    donor_unit: unit(a.donor_layer, a.donor_unit),
                    matched_unit: unit(a.matched_layer, a.matched_unit),
                    ..a.clone()
                })
                .collect(),
            dropped: Vec::new(),
            ..*plan
        }
    }

    /// What is left of `source`, with new data for the tensors in `replaced`
    /// (cut already where they are to be cut). `made_by` is kept in the file.
    ///
    /// # Errors
    /// When the source's keys are not what they must be.
    pub fn apply<'s>(
        &self,
        source: &'s ModelFile,
        replaced: &'s BTreeMap<usize, Vec<u8>>,
        made_by: &str,
    ) -> Result<Rest<'s>, InputError> {
        let content = InputError::content(source.path());
        let tensors = self.tensors(source, replaced);
        let header = self.header(source, &tensors, made_by).map_err(content)?;
        Ok(Rest {
            alignment: source.gguf.alignment,
            header,
            tensors,
        })
    }

    fn tensors<'s>(
        &self,
        source: &'s ModelFile,
        replaced: &'s BTreeMap<usize, Vec<u8>>,
    ) -> Vec<Tensor<'s>> {
        let gguf = &source.gguf;
        let mut rows: BTreeMap<usize, Vec<Range<u64>>> = BTreeMap::new();
        let mut columns: BTreeMap<usize, Vec<Range<usize>>> = BTreeMap::new();
        let mut gone: BTreeSet<usize> = BTreeSet::new();
        for layer in &self.map.layers {
            let n = layer.layer;
            let Some(kept_columns) = self.kept_columns(n) else {
                continue;
            };
            let kept = self.kept(layer);
            let find = |suffix: &str| gguf.tensor_index(&format!("blk.{n}.{suffix}"));
            if kept.is_empty() {
                let all = ["attn_norm.weight", "attn_output.weight"];
                gone.extend(all.iter().filter_map(|suffix| find(suffix)));
            }
            columns.extend(find("attn_output.weight").map(|t| (t, kept_columns)));
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
                let weight = &gguf.tensors[tensor.tensor].name;
                let bias = gguf.tensor_index(&weight.replace(".weight", ".bias"));
                for index in [Some(tensor.tensor), bias].into_iter().flatten() {
                    if kept.is_empty() {
                        gone.insert(index);
                    }
                    rows.entry(index).or_default().extend(stay.iter().cloned());
                }
            }
        }
        let whole = |index: usize| source.bytes(gguf.data_range(&gguf.tensors[index]));
        (0..gguf.tensors.len())
            .filter(|index| !gone.contains(index))
            .map(|index| {
                let mut info = gguf.tensors[index].clone();
                let data = if let Some(rows) = rows.get(&index) {
                    let count = rows.iter().map(|r| r.end - r.start).sum();
                    // Of a bias each element is a row.
                    let flat = info.dims.len() == 1;
                    let bytes = if flat {
                        info.ggml_type.block_bytes()
                    } else {
                        info.row_bytes()
                    };
                    info.dims[usize::from(!flat)] = count;
                    let at = |row: u64| (row * bytes) as usize;
                    let all = whole(index);
                    Data::Pieces(rows.iter().map(|r| &all[at(r.start)..at(r.end)]).collect())
                } else if let Some(columns) = columns.get(&index) {
                    let count: usize = columns.iter().map(Range::len).sum();
                    let data = match replaced.get(&index) {
                        Some(data) => Data::Pieces(vec![data]),
                        None => Data::Owned(cut_columns(&info, whole(index), columns)),
                    };
                    info.dims[0] = count as u64;
                    data
                } else {
                    Data::Pieces(vec![
                        replaced.get(&index).map_or(whole(index), Vec::as_slice),
                    ])
                };
                Tensor { info, data }
            })
            .collect()
    }

    fn header(
        &self,
        source: &ModelFile,
        tensors: &[Tensor<'_>],
        made_by: &str,
    ) -> Result<Vec<u8>, FormatError> {
        let gguf = &source.gguf;
        let mut builder = HeaderBuilder::new(gguf.version);
        let mut heads = Heads::of(self, gguf)?;
        for kv in &gguf.kvs {
            match kv.key.strip_prefix("llama.") {
                _ if kv.key == KEY_ARCHITECTURE => builder.str(KEY_ARCHITECTURE, TO),
                _ if kv.key == MADE_BY => {}
                None => builder.record(gguf.record(kv)),
                Some(suffix) => {
                    if !heads.put(suffix, &mut builder) {
                        builder.record(&renamed(gguf, kv, &format!("{TO}.{suffix}")));
                    }
                }
            }
        }
        heads.finish(&mut builder);
        builder.str(MADE_BY, made_by);
        let mut offset = 0;
        for tensor in tensors {
            builder.tensor(&TensorInfo {
                offset,
                ..tensor.info.clone()
            });
            offset = align_up(offset + tensor.info.byte_len(), gguf.alignment)
                .ok_or_else(|| FormatError::new("output", "its size overflows"))?;
        }
        Ok(builder.finish())
    }
}

/// The keys that hold a number for each layer, or must be there because
/// llama.cpp would take them from the number of heads.
struct Heads {
    arrays: BTreeMap<&'static str, Vec<u32>>,
    numbers: BTreeMap<&'static str, u32>,
}

impl Heads {
    fn of(cut: &Cut<'_>, gguf: &Gguf) -> Result<Self, FormatError> {
        let key = |suffix: &str| format!("{FROM}.{suffix}");
        let missing = |suffix: &str| FormatError::key(&key(suffix), "is missing");
        let blocks = gguf
            .u64_value(&key("block_count"))?
            .ok_or_else(|| missing("block_count"))? as usize;
        let mut query = vec![0; blocks];
        let mut kv = vec![0; blocks];
        for layer in &cut.map.layers {
            let kept = cut.kept(layer).len() as u32;
            let n = layer.layer as usize;
            if n < blocks {
                query[n] = kept * layer.heads_per_unit();
                kv[n] = kept;
            }
        }
        const FFN: &str = "feed_forward_length";
        let feed_forward = match gguf.value(&key(FFN)) {
            Some(Value::Array(array)) => array
                .values()
                .map(|v| v.as_u64().and_then(|n| u32::try_from(n).ok()))
                .collect::<Option<Vec<u32>>>()
                .filter(|list| list.len() == blocks)
                .ok_or_else(|| FormatError::key(&key(FFN), "is no list of a number a layer"))?,
            _ => {
                let n = gguf.u64_value(&key(FFN))?.ok_or_else(|| missing(FFN))?;
                vec![u32::try_from(n).unwrap_or(u32::MAX); blocks]
            }
        };
        let length = cut
            .map
            .layers
            .first()
            .map_or(0, |layer| layer.key_length as u32);
        Ok(Self {
            arrays: [
                ("attention.head_count", query),
                ("attention.head_count_kv", kv),
                (FFN, feed_forward),
            ]
            .into(),
            numbers: [
                ("attention.key_length", length),
                ("attention.value_length", length),
                ("rope.dimension_count", length),
            ]
            .into(),
        })
    }

    /// Adds the key in its place, if it is one of these and not a number that
    /// is there already.
    fn put(&mut self, suffix: &str, builder: &mut HeaderBuilder) -> bool {
        // What the file states is right.
        self.numbers.remove(suffix);
        let Some(list) = self.arrays.remove(suffix) else {
            return false;
        };
        builder.u32s(&format!("{TO}.{suffix}"), list.into_iter());
        true
    }

    fn finish(self, builder: &mut HeaderBuilder) {
        for (suffix, list) in self.arrays {
            builder.u32s(&format!("{TO}.{suffix}"), list.into_iter());
        }
        for (suffix, number) in self.numbers {
            builder.u32(&format!("{TO}.{suffix}"), number);
        }
    }
}

/// A record under another key.
fn renamed(gguf: &Gguf, kv: &Kv, key: &str) -> Vec<u8> {
    let record = gguf.record(kv);
    let mut out = (key.len() as u64).to_le_bytes().to_vec();
    out.extend(key.as_bytes());
    out.extend(&record[size_of::<u64>() + kv.key.len()..]);
    out
}

/// Some columns of a tensor, which begin and end with blocks.
pub fn cut_columns(info: &TensorInfo, data: &[u8], columns: &[Range<usize>]) -> Vec<u8> {
    let row = info.row_bytes() as usize;
    let at = |column: usize| byte_of(info.ggml_type, column);
    data.chunks(row)
        .flat_map(|row| {
            columns
                .iter()
                .flat_map(move |c| &row[at(c.start)..at(c.end)])
        })
        .copied()
        .collect()
}

/// Where a column that begins a block lies in its row.
fn byte_of(ggml_type: GgmlType, column: usize) -> usize {
    column / ggml_type.block_elems() as usize * ggml_type.block_bytes() as usize
}

/// Puts cut columns back into rows of the old width, zeros where nothing is.
pub fn spread_columns(info: &TensorInfo, data: &[u8], columns: &[Range<usize>]) -> Vec<u8> {
    let at = |column: usize| byte_of(info.ggml_type, column);
    let narrow: usize = columns.iter().map(|c| at(c.end) - at(c.start)).sum();
    let mut out = vec![0u8; info.byte_len() as usize];
    if narrow == 0 {
        return out;
    }
    let rows = out.chunks_mut(info.row_bytes() as usize);
    for (to, mut from) in rows.zip(data.chunks(narrow)) {
        for column in columns {
            let (bytes, rest) = from.split_at(at(column.end) - at(column.start));
            to[at(column.start)..at(column.end)].copy_from_slice(bytes);
            from = rest;
        }
    }
    out
}

/// What is left of a model.
pub struct Rest<'s> {
    alignment: u64,
    header: Vec<u8>,
    tensors: Vec<Tensor<'s>>,
}

struct Tensor<'s> {
    info: TensorInfo,
    data: Data<'s>,
}

enum Data<'s> {
    Pieces(Vec<&'s [u8]>),
    Owned(Vec<u8>),
}

impl Rest<'_> {
    /// Bytes of its file.
    pub fn len(&self) -> u64 {
        let aligned = |n: u64| n.next_multiple_of(self.alignment);
        let data: u64 = self
            .tensors
            .iter()
            .map(|t| aligned(t.info.byte_len()))
            .sum();
        aligned(self.header.len() as u64) + data
    }

    /// Bytes of its tensors.
    pub fn tensor_bytes(&self) -> u64 {
        self.tensors.iter().map(|t| t.info.byte_len()).sum()
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// Hands its bytes to `write`, with their offsets, but for padding: a new
    /// file has zeros already.
    ///
    /// # Errors
    /// Those of `write`.
    pub fn write<E>(&self, mut write: impl FnMut(u64, &[u8]) -> Result<(), E>) -> Result<(), E> {
        write(0, &self.header)?;
        let mut start = (self.header.len() as u64).next_multiple_of(self.alignment);
        for tensor in &self.tensors {
            let mut at = start;
            let pieces = match &tensor.data {
                Data::Pieces(pieces) => pieces.clone(),
                Data::Owned(data) => vec![data.as_slice()],
            };
            for piece in pieces {
                write(at, piece)?;
                at += piece.len() as u64;
            }
            debug_assert_eq!(at - start, tensor.info.byte_len());
            start += tensor.info.byte_len().next_multiple_of(self.alignment);
        }
        Ok(())
    }
}
