//! The keys of a synthetic model: hyperparameters and a minimal tokenizer.

use headshare_format::gguf::{HeaderBuilder, KEY_ALIGNMENT, KEY_ARCHITECTURE};

use crate::tensors::{Layers, StateSpace, Tokenizer};
use crate::{KeyOrder, ModelSpec, PerLayer};

/// Adds all keys of `spec`.
pub(crate) fn write(spec: &ModelSpec, header: &mut HeaderBuilder) {
    let alignment = |header: &mut HeaderBuilder| {
        if let Some(alignment) = spec.alignment {
            header.u32(KEY_ALIGNMENT, alignment);
        }
    };
    if spec.key_order == KeyOrder::Usual {
        header.str(KEY_ARCHITECTURE, &spec.arch);
        alignment(header);
    }
    header.str("general.type", "model");
    // Without the architecture: llama.cpp takes some names for known models
    // and asks for their special tokens.
    header.str("general.name", "synthetic");
    header.u32("general.quantization_version", 2);
    hyperparameters(spec, header);
    match spec.family().tokenizer {
        Tokenizer::SentencePiece => sentence_piece(spec.n_vocab, header),
        Tokenizer::BytePairs => byte_pairs(spec.n_vocab, header),
        Tokenizer::WordPiece => word_piece(spec.n_vocab, header),
    }
    if spec.key_order == KeyOrder::Reversed {
        alignment(header);
        header.str(KEY_ARCHITECTURE, &spec.arch);
    }
}

fn hyperparameters(spec: &ModelSpec, header: &mut HeaderBuilder) {
    let family = spec.family();
    let key = |name: &str| format!("{}.{name}", spec.arch);
    header.u32(&key("block_count"), spec.total_layers());
    header.u32(&key("context_length"), spec.n_ctx);
    header.u32(&key("embedding_length"), spec.n_embd);
    header.u32(&key("feed_forward_length"), spec.n_ff);
    header.u32(&key("vocab_size"), spec.n_vocab);
    per_layer(spec, header, "attention.head_count", &spec.n_head);
    per_layer(spec, header, "attention.head_count_kv", &spec.n_head_kv);
    if let Some(rows) = spec.key_length {
        header.u32(&key("attention.key_length"), rows);
    }
    if let Some(rows) = spec.value_length {
        header.u32(&key("attention.value_length"), rows);
    }
    if spec.n_expert > 0 {
        header.u32(&key("expert_count"), spec.n_expert);
        header.u32(&key("expert_used_count"), 2);
    }
    if family.layer_norm {
        header.f32(&key("attention.layer_norm_epsilon"), 1e-5);
    } else {
        header.f32(&key("attention.layer_norm_rms_epsilon"), 1e-5);
    }
    if family.layers == Layers::StateSpace {
        let size = StateSpace::of(spec.n_embd);
        header.u32(&key("ssm.conv_kernel"), size.conv_kernel);
        header.u32(&key("ssm.inner_size"), size.inner);
        header.u32(&key("ssm.state_size"), size.state);
        header.u32(&key("ssm.time_step_rank"), size.time_step_rank);
    } else if !family.positions {
        header.u32(&key("rope.dimension_count"), spec.head_rows());
        header.f32(&key("rope.freq_base"), 10000.0);
    }
    for (name, value) in &spec.numbers {
        header.u32(&key(name), *value);
    }
    for (name, value) in &spec.floats {
        header.f32(&key(name), *value);
    }
    for (name, value) in &spec.strings {
        header.str(&key(name), value);
    }
    if family.encoder {
        header.bool(&key("attention.causal"), false);
        header.u32(&key("pooling_type"), 1);
    }
}

fn per_layer(spec: &ModelSpec, header: &mut HeaderBuilder, name: &str, value: &PerLayer) {
    let key = format!("{}.{name}", spec.arch);
    match value {
        PerLayer::All(n) => header.u32(&key, *n),
        PerLayer::Each(list) => {
            let all: Vec<u32> = (0..spec.repeat).flat_map(|_| list.clone()).collect();
            header.u32s(&key, all.into_iter());
        }
    }
}

// llama.cpp's token types.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const BYTE: i32 = 6;

/// `tokens` filled up to (or cut to) `n` with words that are not in it.
fn complete(mut tokens: Vec<(String, i32)>, n: u32, word: impl Fn(usize) -> String) -> Tokens {
    let n = n as usize;
    for i in tokens.len()..n {
        tokens.push((word(i), NORMAL));
    }
    tokens.truncate(n);
    Tokens(tokens)
}

struct Tokens(Vec<(String, i32)>);

impl Tokens {
    fn write(&self, header: &mut HeaderBuilder, model: &str) {
        header.str("tokenizer.ggml.model", model);
        header.strs(
            "tokenizer.ggml.tokens",
            self.0.iter().map(|(text, _)| text.as_str()),
        );
        header.i32s("tokenizer.ggml.token_type", self.0.iter().map(|t| t.1));
    }
}

/// Byte tokens, the printable characters, and made-up words.
fn sentence_piece(n_vocab: u32, header: &mut HeaderBuilder) {
    let mut tokens = vec![
        ("<unk>".to_owned(), UNKNOWN),
        ("<s>".to_owned(), CONTROL),
        ("</s>".to_owned(), CONTROL),
    ];
    tokens.extend((0..=255).map(|byte| (format!("<0x{byte:02X}>"), BYTE)));
    tokens.push(("\u{2581}".to_owned(), NORMAL));
    tokens.extend(('a'..='z').map(|c| (c.to_string(), NORMAL)));
    let tokens = complete(tokens, n_vocab, |i| format!("\u{2581}w{i}"));
    tokens.write(header, "llama");
    header.f32s(
        "tokenizer.ggml.scores",
        (0..tokens.0.len()).map(|i| -(i as f32)),
    );
    header.u32("tokenizer.ggml.bos_token_id", 1);
    header.u32("tokenizer.ggml.eos_token_id", 2);
    header.u32("tokenizer.ggml.unknown_token_id", 0);
    header.bool("tokenizer.ggml.add_bos_token", true);
    header.bool("tokenizer.ggml.add_eos_token", false);
}

/// The 256 characters that stand for bytes, one end token, and made-up words.
fn byte_pairs(n_vocab: u32, header: &mut HeaderBuilder) {
    // Printable bytes stand for themselves, the others for characters from
    // U+0100 on, in order.
    let printable = |b: u32| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 0x100;
    let mut tokens: Vec<(String, i32)> = (0..256)
        .map(|byte| {
            let code = if printable(byte) {
                byte
            } else {
                next += 1;
                next - 1
            };
            let c = char::from_u32(code).expect("all of these are characters");
            (c.to_string(), NORMAL)
        })
        .collect();
    tokens.push(("<|endoftext|>".to_owned(), CONTROL));
    tokens.push(("th".to_owned(), NORMAL));
    let tokens = complete(tokens, n_vocab, |i| format!("\u{120}w{i}"));
    header.str("tokenizer.ggml.pre", "gpt-2");
    tokens.write(header, "gpt2");
    header.strs("tokenizer.ggml.merges", ["t h"].into_iter());
    header.u32("tokenizer.ggml.bos_token_id", 256);
    header.u32("tokenizer.ggml.eos_token_id", 256);
}

/// BERT's special tokens, letters, and made-up words.
fn word_piece(n_vocab: u32, header: &mut HeaderBuilder) {
    let mut tokens: Vec<(String, i32)> = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        .map(|t| (t.to_owned(), CONTROL))
        .to_vec();
    tokens.extend(('a'..='z').map(|c| (format!("\u{2581}{c}"), NORMAL)));
    tokens.extend(('a'..='z').map(|c| (c.to_string(), NORMAL)));
    let tokens = complete(tokens, n_vocab, |i| format!("\u{2581}w{i}"));
    tokens.write(header, "bert");
    header.u32("tokenizer.ggml.token_type_count", 2);
    header.u32("tokenizer.ggml.bos_token_id", 2);
    header.u32("tokenizer.ggml.unknown_token_id", 1);
    header.u32("tokenizer.ggml.seperator_token_id", 3);
    header.u32("tokenizer.ggml.padding_token_id", 0);
    header.u32("tokenizer.ggml.mask_token_id", 4);
    header.u32("tokenizer.ggml.cls_token_id", 2);
}
