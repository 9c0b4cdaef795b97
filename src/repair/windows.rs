//! The calibration text as windows of tokens.

use headshare_format::alias::format_digest;
use headshare_runtime::{Model, ModelParams};

use super::{Options, RepairError};
use crate::input::ModelFile;

/// Windows of a text, one after the other.
#[derive(Debug, Clone)]
pub struct Windows {
    /// Their tokens.
    pub tokens: Vec<i32>,
    /// How many they are.
    pub count: u32,
    /// Tokens of each.
    pub window: u32,
    /// Tokens in the vocabulary.
    pub vocabulary: u32,
    /// Digest of the text.
    pub digest: String,
}

/// Fewest windows: some to fit, some to choose the ridge on.
const MIN_WINDOWS: usize = 2;

impl Windows {
    /// Windows of the text, spread evenly over it, as many as there are and
    /// memory has room for. As in llama.cpp's perplexity tool, each begins with
    /// the token that begins a text, if the model has one and uses it.
    pub fn of(
        source: &ModelFile,
        options: &Options,
        remark: &dyn Fn(&str),
    ) -> Result<Self, RepairError> {
        let params = ModelParams {
            use_extra_bufts: false,
            n_gpu_layers: 0,
            ..ModelParams::default()
        };
        let model = Model::load(source.path(), &params, None)
            .map_err(headshare_runtime::calibrate::CalibrateError::from)?;
        let vocab = model.vocab();
        let mut all = vocab.tokenize(&options.text, true, false)?;
        if options.text.trim().is_empty() {
            all.clear();
        }
        let window = options.window.max(1) as usize;
        let there = all.len() / window;
        if there < MIN_WINDOWS {
            return Err(RepairError::TextTooShort {
                found: all.len(),
                needed: MIN_WINDOWS * window,
            });
        }
        let wanted = there.min(options.windows as usize).clamp(
            MIN_WINDOWS,
            headshare_runtime::calibrate::MAX_WINDOWS as usize,
        );
        let needs = Needs::of(source, &model, window as u64, options.memory);
        let count = needs.windows(options.memory, wanted)?;
        if count < wanted {
            remark(&format!(
                "note: {count} windows of {window} tokens instead of {wanted}, to stay within {} bytes of memory",
                options.memory
            ));
        }
        let begin = vocab.bos().filter(|_| vocab.adds_bos());
        let tokens = (0..count)
            .flat_map(|i| {
                let start = i * there / count * window;
                let mut tokens = all[start..start + window].to_vec();
                if let Some(begin) = begin {
                    tokens[0] = begin;
                }
                tokens
            })
            .collect();
        Ok(Self {
            tokens,
            count: count as u32,
            window: window as u32,
            vocabulary: vocab.n_tokens().unsigned_abs(),
            digest: format_digest(&blake3::hash(options.text.as_bytes())),
        })
    }

    /// Some windows of those in `range`, at most `most`, spread evenly over it.
    pub(super) fn pick(&self, range: std::ops::Range<usize>, most: usize) -> Self {
        let window = self.window as usize;
        let count = range.len().min(most);
        let tokens = (0..count)
            .flat_map(|i| {
                let at = range.start + i * range.len() / count;
                &self.tokens[at * window..(at + 1) * window]
            })
            .copied()
            .collect();
        Self {
            tokens,
            count: count as u32,
            digest: self.digest.clone(),
            ..*self
        }
    }

    /// Windows, the last ones, that ridges are chosen on.
    pub fn held_out(&self) -> u32 {
        (self.count / 8).max(1)
    }
}

/// Bytes that a repair takes.
struct Needs {
    fixed: u64,
    a_window: u64,
}

impl Needs {
    /// An estimate from the model's shape: two copies of the model, and for each
    /// token and stream the KV cache in f16 and what llama.cpp keeps of
    /// activations at once, measured as about three times the feed-forward and
    /// nine times the residual stream's width; our copies of one node of each
    /// stream come on top.
    fn of(source: &ModelFile, model: &Model, window: u64, memory: u64) -> Self {
        let embedding = u64::from(model.n_embd());
        let widest = source
            .gguf
            .tensors
            .iter()
            .filter(|t| t.name.ends_with("ffn_down.weight"))
            .map(|t| t.row_elems())
            .max()
            .unwrap_or(embedding);
        let kv: u64 = source
            .gguf
            .tensors
            .iter()
            .filter(|t| t.name.ends_with("attn_k.weight") || t.name.ends_with("attn_v.weight"))
            .map(|t| t.dims.get(1).copied().unwrap_or(0))
            .sum();
        let activations = 4 * (3 * widest + 9 * embedding) + 4 * window;
        let a_token = 2 * (2 * kv + activations) + 4 * (widest + 3 * embedding);
        let sums = 8 * 6 * widest * (widest + embedding);
        Self {
            fixed: 2 * source.len() + sums + 2 * super::logits_bytes(memory),
            a_window: a_token * window,
        }
    }

    fn windows(&self, bound: u64, wanted: usize) -> Result<usize, RepairError> {
        let room = bound.saturating_sub(self.fixed) / self.a_window.max(1);
        if (room as usize) < MIN_WINDOWS {
            return Err(RepairError::Memory {
                bound,
                needed: self.fixed + MIN_WINDOWS as u64 * self.a_window,
            });
        }
        Ok(wanted.min(room as usize))
    }
}
