//! Small synthetic models, and what the map says of them.

mod refused;
mod shareable;
mod table;
mod weights;

use headshare_format::gguf::{HeaderBuilder, align_up};
use headshare_format::{GgmlType, Gguf, TensorInfo};

use super::{AttentionMap, HeadsError};

const F32: u32 = 0;
const F16: u32 = 1;
const Q8_0: u32 = 8;
const I32: u32 = 26;

/// A model file in the making: keys, then tensors of zeroes.
#[derive(Clone)]
struct Model {
    architecture: String,
    header: HeaderBuilder,
    tensors: Vec<TensorInfo>,
}

impl Model {
    /// A model of `architecture` with `layers` layers and rows of `embedding`.
    fn new(architecture: &str, layers: u32, embedding: u32) -> Self {
        let mut model = Self::empty(architecture);
        model.header.str("general.architecture", architecture);
        model
            .key("block_count", layers)
            .key("embedding_length", embedding)
    }

    /// A file without keys.
    fn empty(architecture: &str) -> Self {
        Self {
            architecture: architecture.to_owned(),
            header: HeaderBuilder::new(3),
            tensors: Vec::new(),
        }
    }

    fn text(mut self, key: &str, value: &str) -> Self {
        self.header.str(key, value);
        self
    }

    fn key(mut self, suffix: &str, value: u32) -> Self {
        let key = format!("{}.{suffix}", self.architecture);
        self.header.u32(&key, value);
        self
    }

    fn list(mut self, suffix: &str, values: &[u32]) -> Self {
        let key = format!("{}.{suffix}", self.architecture);
        self.header.u32s(&key, values.iter().copied());
        self
    }

    /// `attention.head_count` and `attention.head_count_kv`.
    fn heads(self, query: u32, kv: u32) -> Self {
        self.key("attention.head_count", query)
            .key("attention.head_count_kv", kv)
    }

    fn tensor(mut self, name: &str, ggml_type: u32, dims: &[u64]) -> Self {
        self.tensors.push(TensorInfo {
            name: name.to_owned(),
            ggml_type: GgmlType::from_id(ggml_type).expect("a ggml type"),
            dims: dims.to_vec(),
            offset: 0,
        });
        self
    }

    /// An F32 matrix of `rows` rows.
    fn matrix(self, name: &str, row: u64, rows: u64) -> Self {
        self.tensor(name, F32, &[row, rows])
    }

    /// `attn_q`, `attn_k` and `attn_v` of a layer.
    fn qkv(self, layer: u32, row: u64, rows: [u64; 3]) -> Self {
        ["q", "k", "v"]
            .iter()
            .zip(rows)
            .fold(self, |model, (part, rows)| {
                model.matrix(&format!("blk.{layer}.attn_{part}.weight"), row, rows)
            })
    }

    /// `attn_qkv` of a layer.
    fn fused(self, layer: u32, row: u64, rows: u64) -> Self {
        self.matrix(&format!("blk.{layer}.attn_qkv.weight"), row, rows)
    }

    /// The file.
    fn bytes(mut self) -> Vec<u8> {
        let mut end = 0;
        for tensor in &mut self.tensors {
            tensor.offset = end;
            end = align_up(end + tensor.byte_len(), 32).expect("small");
            self.header.tensor(tensor);
        }
        let mut file = self.header.finish();
        let start = align_up(file.len() as u64, 32).expect("small");
        file.resize((start + end) as usize, 0);
        file
    }

    fn gguf(self) -> Gguf {
        Gguf::parse(&self.bytes()).expect("a valid file")
    }

    fn map(self) -> Result<AttentionMap, HeadsError> {
        AttentionMap::of(&self.gguf())
    }

    /// Why the model is refused.
    fn refusal(self) -> String {
        self.map().expect_err("a refusal").to_string()
    }
}

/// Two layers, 4 query heads and 2 KV heads of 8 rows, 32 elements a row.
fn grouped() -> Model {
    Model::new("llama", 2, 32)
        .heads(4, 2)
        .qkv(0, 32, [32, 16, 16])
        .qkv(1, 32, [32, 16, 16])
}
