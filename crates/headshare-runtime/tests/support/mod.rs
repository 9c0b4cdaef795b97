//! Loads the fetched models, and writes tiny GGUF files.
#![allow(dead_code)]

use std::sync::Arc;

use headshare_runtime::{Model, ModelParams};
use headshare_testmodels::fetched::Fetched;

pub fn load(model: Fetched) -> Arc<Model> {
    Arc::new(Model::load(&model.path(), &ModelParams::default(), None).unwrap())
}

/// Writes GGUF v3 with F32 tensors of zeros.
#[derive(Default)]
pub struct TinyGguf {
    kvs: Vec<u8>,
    n_kvs: u64,
    infos: Vec<u8>,
    n_tensors: u64,
    data_bytes: u64,
}

impl TinyGguf {
    fn key(&mut self, key: &str, kind: u32) {
        self.n_kvs += 1;
        put_str(&mut self.kvs, key);
        self.kvs.extend(kind.to_le_bytes());
    }

    pub fn str(mut self, key: &str, value: &str) -> Self {
        self.key(key, 8);
        put_str(&mut self.kvs, value);
        self
    }

    pub fn u32(mut self, key: &str, value: u32) -> Self {
        self.key(key, 4);
        self.kvs.extend(value.to_le_bytes());
        self
    }

    pub fn f32(mut self, key: &str, value: f32) -> Self {
        self.key(key, 6);
        self.kvs.extend(value.to_le_bytes());
        self
    }

    pub fn bool(mut self, key: &str, value: bool) -> Self {
        self.key(key, 7);
        self.kvs.push(value.into());
        self
    }

    pub fn tensor(mut self, name: &str, dims: &[u64]) -> Self {
        self.n_tensors += 1;
        put_str(&mut self.infos, name);
        self.infos.extend((dims.len() as u32).to_le_bytes());
        for dim in dims {
            self.infos.extend(dim.to_le_bytes());
        }
        self.infos.extend(0u32.to_le_bytes());
        self.infos.extend(self.data_bytes.to_le_bytes());
        let bytes = dims.iter().product::<u64>() * 4;
        self.data_bytes += bytes.next_multiple_of(32);
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut file = b"GGUF".to_vec();
        file.extend(3u32.to_le_bytes());
        file.extend(self.n_tensors.to_le_bytes());
        file.extend(self.n_kvs.to_le_bytes());
        file.extend(&self.kvs);
        file.extend(&self.infos);
        file.resize(file.len().next_multiple_of(32), 0);
        file.resize(file.len() + self.data_bytes as usize, 0);
        file
    }
}

fn put_str(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// A BERT of one layer, 8 wide, without a tokenizer.
pub fn tiny_bert() -> Vec<u8> {
    let mut file = TinyGguf::default()
        .str("general.architecture", "bert")
        .u32("bert.block_count", 1)
        .u32("bert.context_length", 16)
        .u32("bert.embedding_length", 8)
        .u32("bert.feed_forward_length", 16)
        .u32("bert.attention.head_count", 2)
        .f32("bert.attention.layer_norm_epsilon", 1e-5)
        .bool("bert.attention.causal", false)
        .u32("bert.pooling_type", 1)
        .str("tokenizer.ggml.model", "none")
        .u32("tokenizer.ggml.token_type_count", 2)
        .u32("bert.vocab_size", 12)
        .tensor("token_embd.weight", &[8, 12])
        .tensor("position_embd.weight", &[8, 16])
        .tensor("token_types.weight", &[8, 2]);
    for (name, dims) in [
        ("attn_q", &[8u64, 8] as &[u64]),
        ("attn_k", &[8, 8]),
        ("attn_v", &[8, 8]),
        ("attn_output", &[8, 8]),
        ("ffn_up", &[8, 16]),
        ("ffn_down", &[16, 8]),
    ] {
        file = file
            .tensor(&format!("blk.0.{name}.weight"), dims)
            .tensor(&format!("blk.0.{name}.bias"), &dims[1..]);
    }
    for name in [
        "token_embd_norm",
        "blk.0.attn_output_norm",
        "blk.0.layer_output_norm",
    ] {
        file = file
            .tensor(&format!("{name}.weight"), &[8])
            .tensor(&format!("{name}.bias"), &[8]);
    }
    file.bytes()
}
