//! Which tensors an architecture has, as llama.cpp's loaders ask for them.

use anyhow::{Result, ensure};
use headshare_format::gguf::align_up;
use headshare_format::{GgmlType, TensorInfo};

use crate::ModelSpec;
use crate::fill::Content;

/// What sets an architecture's tensors apart from llama's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Family {
    pub arch: &'static str,
    pub layers: Layers,
    /// Norms with a bias (LayerNorm) instead of a weight alone (RMSNorm).
    pub layer_norm: bool,
    /// Biases on attn_output and the feed-forward layer.
    pub bias: bool,
    pub ffn: Ffn,
    /// Learned positions.
    pub positions: bool,
    /// Norms on query and key, one head wide.
    pub qk_norm: bool,
    /// Norms after attention and feed-forward.
    pub post_norms: bool,
    /// Norms after the residual add, no output norm: BERT.
    pub encoder: bool,
    pub tokenizer: Tokenizer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layers {
    /// Attention and feed-forward.
    Attention,
    /// A selective state space, and nothing else: Mamba.
    StateSpace,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ffn {
    /// ffn_gate, ffn_up, ffn_down.
    Gated,
    /// ffn_up twice as wide, ffn_down.
    GateInUp,
    /// ffn_up, ffn_down.
    Plain,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tokenizer {
    SentencePiece,
    BytePairs,
    WordPiece,
}

const LLAMA: Family = Family {
    arch: "llama",
    layers: Layers::Attention,
    layer_norm: false,
    bias: false,
    ffn: Ffn::Gated,
    positions: false,
    qk_norm: false,
    post_norms: false,
    encoder: false,
    tokenizer: Tokenizer::SentencePiece,
};

const FAMILIES: &[Family] = &[
    LLAMA,
    Family {
        arch: "qwen2",
        tokenizer: Tokenizer::BytePairs,
        ..LLAMA
    },
    Family {
        arch: "qwen3",
        qk_norm: true,
        tokenizer: Tokenizer::BytePairs,
        ..LLAMA
    },
    Family {
        arch: "gemma2",
        post_norms: true,
        ..LLAMA
    },
    Family {
        arch: "gemma3",
        qk_norm: true,
        post_norms: true,
        ..LLAMA
    },
    Family {
        arch: "phi3",
        ffn: Ffn::GateInUp,
        ..LLAMA
    },
    Family {
        arch: "gpt2",
        layer_norm: true,
        bias: true,
        ffn: Ffn::Plain,
        positions: true,
        tokenizer: Tokenizer::BytePairs,
        ..LLAMA
    },
    Family {
        arch: "falcon",
        layer_norm: true,
        ffn: Ffn::Plain,
        tokenizer: Tokenizer::BytePairs,
        ..LLAMA
    },
    Family {
        arch: "bert",
        layer_norm: true,
        bias: true,
        ffn: Ffn::Plain,
        positions: true,
        encoder: true,
        tokenizer: Tokenizer::WordPiece,
        ..LLAMA
    },
    Family {
        arch: "mamba",
        layers: Layers::StateSpace,
        tokenizer: Tokenizer::BytePairs,
        ..LLAMA
    },
];

/// The sizes inside a Mamba layer: those that all trained models have, whatever
/// their width.
pub(crate) struct StateSpace {
    pub inner: u32,
    pub state: u32,
    pub conv_kernel: u32,
    pub time_step_rank: u32,
}

impl StateSpace {
    pub fn of(n_embd: u32) -> Self {
        Self {
            inner: 2 * n_embd,
            state: 16,
            conv_kernel: 4,
            time_step_rank: n_embd.div_ceil(16),
        }
    }
}

impl ModelSpec {
    /// The architectures whose own tensors are written.
    pub fn architectures() -> impl Iterator<Item = &'static str> {
        FAMILIES.iter().map(|f| f.arch)
    }

    pub(crate) fn family(&self) -> &'static Family {
        FAMILIES
            .iter()
            .find(|f| f.arch == self.arch)
            .unwrap_or(&LLAMA)
    }
}

/// A tensor to be written.
pub(crate) struct Planned {
    pub info: TensorInfo,
    pub content: Content,
    /// The name that decides the random numbers: that of the layer repeated.
    pub origin: String,
}

/// The tensors of `spec` in file order, with offsets for `alignment`.
pub(crate) fn plan(spec: &ModelSpec, alignment: u64) -> Result<Vec<Planned>> {
    let mut list = List {
        spec,
        family: spec.family(),
        tensors: Vec::new(),
    };
    list.before_layers();
    for repetition in 0..spec.repeat {
        for layer in 0..spec.n_layer {
            list.layer(repetition * spec.n_layer + layer, layer);
        }
    }
    list.after_layers();
    let mut end = 0;
    for tensor in &mut list.tensors {
        tensor.info.validate()?;
        tensor.info.offset = align_up(end, alignment).expect("models are smaller than u64");
        end = tensor.info.offset + tensor.info.byte_len();
        ensure!(
            tensor.info.name.len() < 64,
            "tensor name {:?} is too long",
            tensor.info.name
        );
    }
    Ok(list.tensors)
}

struct List<'a> {
    spec: &'a ModelSpec,
    family: &'static Family,
    tensors: Vec<Planned>,
}

impl List<'_> {
    fn before_layers(&mut self) {
        let s = self.spec;
        self.matrix("token_embd.weight", s.n_embd, s.n_vocab);
        if s.rope_factors {
            self.vector("rope_freqs.weight", s.head_rows() / 2, Content::Norm);
        }
        if self.family.positions {
            self.float_matrix("position_embd.weight", s.n_embd, s.n_ctx);
        }
        if self.family.encoder {
            self.float_matrix("token_types.weight", s.n_embd, 2);
            self.norm("token_embd_norm", s.n_embd);
        }
    }

    fn after_layers(&mut self) {
        let s = self.spec;
        if !self.family.encoder {
            self.norm("output_norm", s.n_embd);
        }
        if !s.tied_output {
            self.matrix("output.weight", s.n_embd, s.n_vocab);
        }
    }

    /// Layer `layer` of the file, with the weights of layer `origin`.
    fn layer(&mut self, layer: u32, origin: u32) {
        let first = self.tensors.len();
        match self.family.layers {
            Layers::Attention => self.attention_layer(origin),
            Layers::StateSpace => self.state_space_layer(),
        }
        for tensor in &mut self.tensors[first..] {
            let name = std::mem::take(&mut tensor.info.name);
            tensor.info.name = format!("blk.{layer}.{name}");
            tensor.origin = format!("blk.{origin}.{name}");
        }
    }

    fn attention_layer(&mut self, origin: u32) {
        let s = self.spec;
        let head = s.head_rows();
        let q_rows = s.n_head.at(origin) * head;
        let k_rows = s.n_head_kv.at(origin) * head;
        let v_rows = s.n_head_kv.at(origin) * s.value_rows();

        if !self.family.encoder {
            self.norm("attn_norm", s.n_embd);
        }
        if s.fused {
            let rows = q_rows + k_rows + v_rows;
            self.matrix("attn_qkv.weight", s.n_embd, rows);
            if s.qkv_bias {
                self.vector("attn_qkv.bias", rows, Content::Bias);
            }
        } else {
            for (part, rows) in [("attn_q", q_rows), ("attn_k", k_rows), ("attn_v", v_rows)] {
                self.matrix(&format!("{part}.weight"), s.n_embd, rows);
                if s.qkv_bias {
                    self.vector(&format!("{part}.bias"), rows, Content::Bias);
                }
            }
        }
        if self.family.qk_norm {
            self.norm("attn_q_norm", head);
            self.norm("attn_k_norm", head);
        }
        self.linear(
            "attn_output",
            s.n_head.at(origin) * s.value_rows(),
            s.n_embd,
        );
        if self.family.encoder {
            self.norm("attn_output_norm", s.n_embd);
        } else {
            if self.family.post_norms {
                self.norm("post_attention_norm", s.n_embd);
            }
            if s.arch != "falcon" {
                self.norm("ffn_norm", s.n_embd);
            }
        }
        match self.family.ffn {
            _ if s.n_expert > 0 => return self.experts(),
            Ffn::Gated => {
                self.linear("ffn_gate", s.n_embd, s.n_ff);
                self.linear("ffn_up", s.n_embd, s.n_ff);
            }
            Ffn::GateInUp => self.linear("ffn_up", s.n_embd, 2 * s.n_ff),
            Ffn::Plain => self.linear("ffn_up", s.n_embd, s.n_ff),
        }
        self.linear("ffn_down", s.n_ff, s.n_embd);
        if self.family.encoder {
            self.norm("layer_output_norm", s.n_embd);
        } else if self.family.post_norms {
            self.norm("post_ffw_norm", s.n_embd);
        }
    }

    /// A gate, and the matrices of all experts in one tensor.
    fn experts(&mut self) {
        let s = self.spec;
        self.float_matrix("ffn_gate_inp.weight", s.n_embd, s.n_expert);
        for (name, inputs, outputs) in [
            ("ffn_gate_exps.weight", s.n_embd, s.n_ff),
            ("ffn_up_exps.weight", s.n_embd, s.n_ff),
            ("ffn_down_exps.weight", s.n_ff, s.n_embd),
        ] {
            let ggml_type = s.type_of(name);
            let dims = vec![inputs, outputs, s.n_expert];
            self.push(name, ggml_type, dims, Content::Weight);
        }
    }

    fn state_space_layer(&mut self) {
        let n_embd = self.spec.n_embd;
        let size = StateSpace::of(n_embd);
        self.norm("attn_norm", n_embd);
        self.matrix("ssm_in.weight", n_embd, 2 * size.inner);
        // Rows of these two are too short for blocks of quantized types.
        self.float_matrix("ssm_conv1d.weight", size.conv_kernel, size.inner);
        self.vector("ssm_conv1d.bias", size.inner, Content::Bias);
        let inputs = size.time_step_rank + 2 * size.state;
        self.matrix("ssm_x.weight", size.inner, inputs);
        self.float_matrix("ssm_dt.weight", size.time_step_rank, size.inner);
        self.vector("ssm_dt.bias", size.inner, Content::Bias);
        let decay = vec![size.state, size.inner];
        self.push("ssm_a", GgmlType::F32, decay, Content::Decay);
        self.vector("ssm_d", size.inner, Content::Norm);
        self.matrix("ssm_out.weight", size.inner, n_embd);
    }

    fn linear(&mut self, name: &str, inputs: u32, outputs: u32) {
        self.matrix(&format!("{name}.weight"), inputs, outputs);
        if self.family.bias {
            self.vector(&format!("{name}.bias"), outputs, Content::Bias);
        }
    }

    fn norm(&mut self, name: &str, width: u32) {
        self.vector(&format!("{name}.weight"), width, Content::Norm);
        if self.family.layer_norm {
            self.vector(&format!("{name}.bias"), width, Content::Bias);
        }
    }

    fn matrix(&mut self, name: &str, inputs: u32, outputs: u32) {
        let ggml_type = self.spec.type_of(name);
        self.push(name, ggml_type, vec![inputs, outputs], Content::Weight);
    }

    fn float_matrix(&mut self, name: &str, inputs: u32, outputs: u32) {
        self.push(name, GgmlType::F32, vec![inputs, outputs], Content::Weight);
    }

    fn vector(&mut self, name: &str, width: u32, content: Content) {
        self.push(name, GgmlType::F32, vec![width], content);
    }

    fn push(&mut self, name: &str, ggml_type: GgmlType, dims: Vec<u32>, content: Content) {
        self.tensors.push(Planned {
            info: TensorInfo {
                name: name.to_owned(),
                ggml_type,
                dims: dims.into_iter().map(u64::from).collect(),
                offset: 0,
            },
            content,
            origin: name.to_owned(),
        });
    }
}
