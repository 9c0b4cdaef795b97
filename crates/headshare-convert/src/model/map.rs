//! The attention layers of one file, held against its tensors.

use headshare_format::{GgmlType, Gguf, TensorInfo};

use super::hyper::{HeadRows, Hyper};
use super::{
    About, Architecture, Attention, AttentionLayer, BlockTensor, HeadBlock, HeadsError, Layout,
    Part, RowsRange, UnitId, architecture,
};

/// Where the heads of a file are.
#[derive(Debug, Clone)]
pub struct AttentionMap {
    /// The file's architecture, a shareable one.
    pub architecture: &'static Architecture,
    /// The layers with heads, ascending.
    pub layers: Vec<AttentionLayer>,
    /// Layers without heads.
    pub headless_layers: u32,
    /// Layers at the end that only draft tokens ("nextn", MTP); they take no
    /// part in sharing.
    pub draft_layers: u32,
}

impl AttentionMap {
    /// Finds the heads of the file whose header is `gguf`.
    ///
    /// # Errors
    /// Whatever keeps the heads from being shared. Only whole tensors of such
    /// a file can be.
    pub fn of(gguf: &Gguf) -> Result<Self, HeadsError> {
        let (architecture, layout) = shareable(gguf)?;
        let hyper = Hyper::new(gguf, architecture);
        if let Some(suffix) = architecture.refused_with
            && hyper.u32(suffix)?.is_some_and(|n| n != 0)
        {
            return Err(HeadsError::NotShareable {
                architecture: architecture.name,
                place: About::Key(format!("{}.{suffix}", architecture.name)),
                reason: "some of its layers are no plain attention layers".into(),
            });
        }
        let (n_layers, draft_layers) = hyper.layers()?;
        let (query_heads, kv_heads) = hyper.heads(n_layers + draft_layers)?;
        let reader = LayerReader {
            gguf,
            architecture,
            layout,
            sizes: hyper.head_rows(&query_heads)?,
            embedding: hyper.embedding_length()?.into(),
        };
        let mut map = Self {
            architecture,
            layers: Vec::new(),
            headless_layers: 0,
            draft_layers,
        };
        for layer in 0..n_layers {
            match reader.read(layer, query_heads.at(layer), kv_heads.at(layer))? {
                Some(layer) => map.layers.push(layer),
                None => map.headless_layers += 1,
            }
        }
        Ok(map)
    }

    /// All units, ascending by (layer, unit).
    pub fn units(&self) -> Vec<UnitId> {
        self.layers.iter().flat_map(AttentionLayer::units).collect()
    }

    /// Number of units.
    pub fn unit_count(&self) -> u64 {
        self.layers.iter().map(|l| u64::from(l.n_head_kv)).sum()
    }

    /// Whether units are KV groups: some have more than one query head.
    pub fn is_grouped(&self) -> bool {
        self.layers.iter().any(|l| l.n_head != l.n_head_kv)
    }

    /// The layer with the number `layer`, if it has heads.
    pub fn layer(&self, layer: u32) -> Option<&AttentionLayer> {
        self.layers
            .binary_search_by_key(&layer, |l| l.layer)
            .ok()
            .map(|i| &self.layers[i])
    }

    /// What two blocks must agree on to stand in for each other: type, row length,
    /// bytes.
    pub fn block_kind(&self, unit: UnitId, part: Part) -> Option<(GgmlType, u64, u64)> {
        let tensor = self.layer(unit.layer)?.tensor(part);
        let rows = self.block(unit, part)?;
        Some((tensor.ggml_type, tensor.row_elems, rows.len))
    }

    /// The rows of a unit's part; `None` when there is no such unit.
    pub fn block(&self, unit: UnitId, part: Part) -> Option<RowsRange> {
        let layer = self.layer(unit.layer)?;
        (unit.unit < layer.n_head_kv)
            .then(|| layer.tensor(part).range(layer.heads(part, unit.unit)))
    }

    /// The block of every q, k and v head on its own, by layer, then part.
    pub fn head_blocks(&self) -> impl Iterator<Item = HeadBlock> + '_ {
        self.layers.iter().flat_map(|layer| {
            Part::ALL.into_iter().flat_map(move |part| {
                let tensor = *layer.tensor(part);
                (0..tensor.heads).map(move |head| HeadBlock {
                    layer: layer.layer,
                    part,
                    head,
                    rows: tensor.range(head..head + 1),
                })
            })
        })
    }

    /// The map in a few words: `llama, 30 layers of 9 query heads in 3 KV
    /// groups, 90 units`.
    pub fn describe(&self) -> String {
        let span = |number: fn(&AttentionLayer) -> u32| {
            let numbers = || self.layers.iter().map(number);
            match (numbers().min(), numbers().max()) {
                (Some(low), Some(high)) if low != high => format!("{low} to {high}"),
                (_, high) => high.unwrap_or(0).to_string(),
            }
        };
        let heads = if self.is_grouped() {
            format!(
                "{} query heads in {} KV groups",
                span(|l| l.n_head),
                span(|l| l.n_head_kv)
            )
        } else {
            format!("{} heads", span(|l| l.n_head))
        };
        let layers = self.layers.len();
        format!(
            "{}, {layers} {} of {heads}, {} units",
            self.architecture.name,
            if layers == 1 { "layer" } else { "layers" },
            self.unit_count()
        )
    }
}

/// The file's row of the table, when it allows sharing.
fn shareable(gguf: &Gguf) -> Result<(&'static Architecture, Layout), HeadsError> {
    let kind = match gguf.str_value("general.type")? {
        Some("adapter") => Some("a LoRA adapter"),
        Some("mmproj") => Some("a multimodal projector"),
        Some("imatrix") => Some("an importance matrix"),
        _ => None,
    };
    if let Some(kind) = kind {
        let problem = format!("this file is {kind}, not a model: it has no attention heads");
        return Err(HeadsError::NotAModel(problem));
    }
    let name = gguf.architecture()?.ok_or_else(|| {
        HeadsError::NotAModel(
            "this file does not state its architecture (general.architecture), \
             so nothing tells where its heads are"
                .into(),
        )
    })?;
    if name == "headshare" {
        return Err(HeadsError::Converted);
    }
    let architecture =
        architecture(name).ok_or_else(|| HeadsError::UnknownArchitecture(name.to_owned()))?;
    match architecture.attention {
        Attention::Shareable(_) if gguf.tensors().is_empty() => Err(HeadsError::NotAModel(
            "this file has no tensors: a vocabulary, not a model".into(),
        )),
        Attention::Shareable(layout) => Ok((architecture, layout)),
        Attention::NotShareable(reason) => Err(HeadsError::NotShareable {
            architecture: architecture.name,
            place: About::Architecture,
            reason: reason.to_owned(),
        }),
    }
}

struct LayerReader<'a> {
    gguf: &'a Gguf,
    architecture: &'static Architecture,
    layout: Layout,
    sizes: Vec<HeadRows>,
    embedding: u64,
}

/// A tensor of the file.
type Found<'a> = (usize, &'a TensorInfo);

impl<'a> LayerReader<'a> {
    /// The layer's heads, or `None` when it may and does have none.
    fn read(
        &self,
        layer: u32,
        n_head: u32,
        n_head_kv: u32,
    ) -> Result<Option<AttentionLayer>, HeadsError> {
        let fused_name = weight(layer, "attn_qkv");
        let names = ["attn_q", "attn_k", "attn_v"].map(|stem| weight(layer, stem));
        let fused = self.find(&fused_name);
        let separate = names.each_ref().map(|name| self.find(name));

        if n_head == 0 || n_head_kv == 0 {
            if !self.architecture.headless_layers {
                return Err(self.layer_error(
                    layer,
                    format!("{n_head} query heads and {n_head_kv} key and value heads"),
                ));
            }
            return match fused.or(separate.into_iter().flatten().next()) {
                None => Ok(None),
                Some((_, info)) => Err(self.tensor_error(
                    &info.name,
                    "is in the file although the layer has no key and value heads",
                )),
            };
        }
        if !n_head.is_multiple_of(n_head_kv) {
            return Err(self.layer_error(
                layer,
                format!(
                    "{n_head} query heads do not divide evenly among {n_head_kv} key and value heads"
                ),
            ));
        }
        self.refuse_scales(layer)?;

        match fused {
            Some(found) => {
                if let Some((_, info)) = separate.into_iter().flatten().next() {
                    return Err(self
                        .tensor_error(&info.name, format!("is in the file beside {fused_name}")));
                }
                if self.layout == Layout::Separate {
                    return Err(self.tensor_error(
                        &fused_name,
                        "is in the file, but llama.cpp wants attn_q, attn_k and attn_v here",
                    ));
                }
                self.fused_layer(layer, n_head, n_head_kv, found).map(Some)
            }
            None => {
                if self.layout == Layout::Fused {
                    return Err(self.tensor_error(&fused_name, "is not in the file"));
                }
                let mut tensors = Vec::with_capacity(names.len());
                for (name, found) in names.iter().zip(separate) {
                    tensors
                        .push(found.ok_or_else(|| self.tensor_error(name, "is not in the file"))?);
                }
                let [q, k, v] = tensors[..] else {
                    unreachable!("one for each name")
                };
                self.separate_layer(layer, n_head, n_head_kv, [q, k, v])
                    .map(Some)
            }
        }
    }

    fn fused_layer(
        &self,
        layer: u32,
        n_head: u32,
        n_head_kv: u32,
        (tensor, info): Found<'a>,
    ) -> Result<AttentionLayer, HeadsError> {
        self.check_matrix(info)?;
        // In 128 bits, where three products of 32-bit numbers cannot overflow.
        let total = |s: &HeadRows| {
            let [heads, kv] = [n_head, n_head_kv].map(u128::from);
            let [key, value] = [s.key, s.value].map(u128::from);
            heads * key + kv * key + kv * value
        };
        let Some(size) = self
            .sizes
            .iter()
            .find(|s| total(s) == u128::from(info.rows()))
        else {
            let s = &self.sizes[0];
            return Err(self.tensor_error(
                &info.name,
                format!(
                    "has {} rows; {n_head} query and {n_head_kv} key heads of {} rows and \
                     {n_head_kv} value heads of {} rows make {}",
                    info.rows(),
                    s.key,
                    s.value,
                    total(s)
                ),
            ));
        };
        let (key, value) = (u64::from(size.key), u64::from(size.value));
        let q = BlockTensor::new(tensor, info, 0, key, n_head);
        let k = BlockTensor::new(tensor, info, q.rows(), key, n_head_kv);
        let v = BlockTensor::new(tensor, info, q.rows() + k.rows(), value, n_head_kv);
        Ok(attention_layer(layer, n_head, n_head_kv, [q, k, v]))
    }

    fn separate_layer(
        &self,
        layer: u32,
        n_head: u32,
        n_head_kv: u32,
        tensors: [Found<'a>; 3],
    ) -> Result<AttentionLayer, HeadsError> {
        for (_, info) in tensors {
            self.check_matrix(info)?;
        }
        let heads = [n_head, n_head_kv, n_head_kv];
        let rows_per_head = |s: &HeadRows| [s.key, s.key, s.value].map(u64::from);
        // The tensor, if any, whose rows are not what heads of this size need.
        let misfit = |s: &HeadRows| {
            let sizes = rows_per_head(s);
            (0..3).find(|&i| u64::from(heads[i]) * sizes[i] != tensors[i].1.rows())
        };
        let Some(size) = self.sizes.iter().find(|s| misfit(s).is_none()) else {
            let size = &self.sizes[0];
            let i = misfit(size).unwrap_or(0);
            let info = tensors[i].1;
            let (n, rows) = (u64::from(heads[i]), rows_per_head(size)[i]);
            return Err(self.tensor_error(
                &info.name,
                format!(
                    "has {} rows; {n} heads of {rows} rows make {}",
                    info.rows(),
                    n * rows
                ),
            ));
        };
        let sizes = rows_per_head(size);
        let [q, k, v] = [0, 1, 2].map(|i| {
            let (tensor, info) = tensors[i];
            BlockTensor::new(tensor, info, 0, sizes[i], heads[i])
        });
        Ok(attention_layer(layer, n_head, n_head_kv, [q, k, v]))
    }

    /// Each row has one element for each of the residual stream's, so q, k and
    /// v agree on it.
    fn check_matrix(&self, info: &TensorInfo) -> Result<(), HeadsError> {
        if info.dims.iter().skip(2).any(|&d| d != 1) {
            return Err(self.tensor_error(
                &info.name,
                format!("has the shape {:?}, which is no matrix", info.dims),
            ));
        }
        if info.row_elems() != self.embedding {
            return Err(self.tensor_error(
                &info.name,
                format!(
                    "has rows of {} elements; the embedding length is {}",
                    info.row_elems(),
                    self.embedding
                ),
            ));
        }
        Ok(())
    }

    /// A scale multiplies the result of a whole tensor: rows moved to a tensor
    /// with another scale would change their meaning.
    fn refuse_scales(&self, layer: u32) -> Result<(), HeadsError> {
        for stem in ["attn_q", "attn_k", "attn_v", "attn_qkv"] {
            let name = format!("blk.{layer}.{stem}.scale");
            if self.gguf.tensor(&name).is_some() {
                return Err(self.tensor_error(
                    &name,
                    "scales the rows of its layer as a whole, so no head of it can stand in for one of another layer",
                ));
            }
        }
        Ok(())
    }

    fn find(&self, name: &str) -> Option<Found<'a>> {
        let index = self.gguf.tensor_index(name)?;
        Some((index, &self.gguf.tensors()[index]))
    }

    fn layer_error(&self, layer: u32, reason: String) -> HeadsError {
        HeadsError::NotShareable {
            architecture: self.architecture.name,
            place: About::Layer(layer),
            reason,
        }
    }

    fn tensor_error(&self, name: &str, reason: impl Into<String>) -> HeadsError {
        HeadsError::NotShareable {
            architecture: self.architecture.name,
            place: About::Tensor(name.to_owned()),
            reason: reason.into(),
        }
    }
}

fn weight(layer: u32, stem: &str) -> String {
    format!("blk.{layer}.{stem}.weight")
}

fn attention_layer(
    layer: u32,
    n_head: u32,
    n_head_kv: u32,
    [q, k, v]: [BlockTensor; 3],
) -> AttentionLayer {
    AttentionLayer {
        layer,
        n_head,
        n_head_kv,
        key_length: k.rows_per_head,
        value_length: v.rows_per_head,
        q,
        k,
        v,
    }
}
