//! A forward pass of llama models in f64, written for clarity.

use std::collections::HashMap;

use headshare_gguf::input::ModelFile;
use headshare_runtime::quants;

/// What one layer computes, rows by token.
pub struct Layer {
    /// The input of attn_output.
    pub attention: Vec<f64>,
    /// The residual stream after attention.
    pub middle: Vec<f64>,
    /// The input of ffn_down.
    pub inner: Vec<f64>,
    /// The residual stream after the layer.
    pub out: Vec<f64>,
}

pub struct Naive {
    weights: HashMap<String, (Vec<f64>, usize)>,
    pub n_layer: usize,
    pub n_embd: usize,
    n_head: usize,
    n_head_kv: usize,
}

impl Naive {
    pub fn new(file: &ModelFile) -> Self {
        let weights = file
            .gguf
            .tensors()
            .iter()
            .map(|info| {
                let mut values = vec![0f32; (info.byte_len() / 4) as usize];
                let bytes = file.bytes(file.gguf.data_range(info));
                quants::dequantize_row(info.ggml_type.id(), bytes, &mut values).unwrap();
                let values = values.iter().map(|&v| f64::from(v)).collect();
                (info.name.clone(), (values, info.row_elems() as usize))
            })
            .collect();
        let number = |key| file.gguf.u64_value(key).unwrap().unwrap() as usize;
        Self {
            weights,
            n_layer: number("llama.block_count"),
            n_embd: number("llama.embedding_length"),
            n_head: number("llama.attention.head_count"),
            n_head_kv: number("llama.attention.head_count_kv"),
        }
    }

    /// Rows of `x` times the matrix `name`.
    pub fn product(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let (matrix, width) = &self.weights[name];
        x.chunks(*width)
            .flat_map(|x| {
                matrix
                    .chunks(*width)
                    .map(move |row| row.iter().zip(x).map(|(a, b)| a * b).sum::<f64>())
            })
            .collect()
    }

    fn norm(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let (gain, width) = &self.weights[name];
        x.chunks(*width)
            .flat_map(|x| {
                let mean = x.iter().map(|v| v * v).sum::<f64>() / *width as f64;
                let scale = 1.0 / (mean + 1e-5).sqrt();
                x.iter().zip(gain).map(move |(v, g)| v * scale * g)
            })
            .collect()
    }

    /// The residual stream that goes into the first layer.
    pub fn embed(&self, tokens: &[i32]) -> Vec<f64> {
        let (embedding, width) = &self.weights["token_embd.weight"];
        tokens
            .iter()
            .flat_map(|&t| &embedding[t as usize * width..(t as usize + 1) * width])
            .copied()
            .collect()
    }

    /// The matrix `name`, row after row, and the length of a row.
    pub fn matrix(&self, name: &str) -> (&[f64], usize) {
        let (values, width) = &self.weights[name];
        (values, *width)
    }

    /// One window.
    pub fn forward(&self, tokens: &[i32]) -> Vec<Layer> {
        let mut x = self.embed(tokens);
        (0..self.n_layer)
            .map(|i| {
                let layer = self.layer(i, &x);
                x.clone_from(&layer.out);
                layer
            })
            .collect()
    }

    /// What goes into attn_output of layer `i`, whose input is `x`, when q, k
    /// and v are those of layer `of`.
    pub fn attention(&self, i: usize, of: usize, x: &[f64]) -> Vec<f64> {
        let n = x.len() / self.n_embd;
        let name = |part: &str| format!("blk.{of}.{part}.weight");
        let normed = self.norm(&format!("blk.{i}.attn_norm.weight"), x);
        let mut q = self.product(&name("attn_q"), &normed);
        let mut k = self.product(&name("attn_k"), &normed);
        let v = self.product(&name("attn_v"), &normed);
        let size = self.n_embd / self.n_head;
        turn(&mut q, self.n_head * size, size);
        turn(&mut k, self.n_head_kv * size, size);
        let group = self.n_head / self.n_head_kv;
        let row = |m: &[f64], t: usize, width: usize, head: usize| {
            m[t * width + head * size..t * width + (head + 1) * size].to_vec()
        };
        let (wide, narrow) = (self.n_head * size, self.n_head_kv * size);
        let mut attention = Vec::new();
        for t in 0..n {
            for head in 0..self.n_head {
                let query = row(&q, t, wide, head);
                let scores: Vec<f64> = (0..=t)
                    .map(|s| {
                        let key = row(&k, s, narrow, head / group);
                        let dot: f64 = query.iter().zip(&key).map(|(a, b)| a * b).sum();
                        (dot / (size as f64).sqrt()).exp()
                    })
                    .collect();
                let sum: f64 = scores.iter().sum();
                let mut mixed = vec![0.0; size];
                for (s, score) in scores.iter().enumerate() {
                    let value = row(&v, s, narrow, head / group);
                    mixed
                        .iter_mut()
                        .zip(&value)
                        .for_each(|(m, v)| *m += score / sum * v);
                }
                attention.extend(mixed);
            }
        }
        attention
    }

    fn layer(&self, i: usize, x: &[f64]) -> Layer {
        let name = |part: &str| format!("blk.{i}.{part}.weight");
        let attention = self.attention(i, i, x);
        let middle = sum(x, &self.product(&name("attn_output"), &attention));
        let normed = self.norm(&name("ffn_norm"), &middle);
        let gate = self.product(&name("ffn_gate"), &normed);
        let up = self.product(&name("ffn_up"), &normed);
        let inner: Vec<f64> = gate
            .iter()
            .zip(&up)
            .map(|(g, u)| g / (1.0 + (-g).exp()) * u)
            .collect();
        let out = sum(&middle, &self.product(&name("ffn_down"), &inner));
        Layer {
            attention,
            middle,
            inner,
            out,
        }
    }
}

/// Turns pairs of neighbours in each head by the row's position.
fn turn(rows: &mut [f64], width: usize, size: usize) {
    for (position, row) in rows.chunks_mut(width).enumerate() {
        for head in row.chunks_mut(size) {
            for (i, pair) in head.chunks_mut(2).enumerate() {
                let angle = position as f64 * 10000f64.powf(-2.0 * i as f64 / size as f64);
                let (sin, cos) = angle.sin_cos();
                let (a, b) = (pair[0], pair[1]);
                pair[0] = a * cos - b * sin;
                pair[1] = a * sin + b * cos;
            }
        }
    }
}

fn sum(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}
