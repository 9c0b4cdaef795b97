//! The calibration text as windows of tokens.

use std::sync::Arc;

use headshare_format::alias::format_digest;
use headshare_format::{Gguf, TensorInfo};
use headshare_runtime::own_text::write_windows;
use headshare_runtime::{Model, ModelParams};

use super::error::EngineError;
use super::options::{Options, Text, logits_bytes, useful_logits};
use super::visit::{Frequencies, Takes};
use crate::input::ModelFile;
use crate::model::{AttentionMap, layer_of, shape};

/// Windows of a text, one after the other.
#[derive(Debug, Clone)]
pub struct Windows {
    /// Their tokens; any where they are [`Text::Unwritten`].
    pub tokens: Vec<i32>,
    /// How many they are.
    pub count: u32,
    /// Tokens of each.
    pub window: u32,
    /// Tokens in the vocabulary.
    pub vocabulary: u32,
    /// Elements of the longest rows that a matrix of a layer has.
    pub widest: u64,
    /// Digest of the text, or of the tokens where the model has written them.
    pub digest: String,
}

/// Fewest windows: some to fit, some to choose the ridge on.
const MIN_WINDOWS: usize = 2;

impl Windows {
    /// Windows of the text, spread evenly over it, as many as there are and memory
    /// has room for beside what visitors take; or as many that the model writes, with
    /// `progress` from 0 to 1. As in llama.cpp's perplexity tool, each begins with the
    /// token that begins a text, if the model has one and uses it.
    pub fn of(
        source: &ModelFile,
        options: &Options,
        takes: Takes<'_>,
        progress: &dyn Fn(f64),
        remark: &dyn Fn(&str),
    ) -> Result<Self, EngineError> {
        let params = ModelParams {
            use_extra_bufts: false,
            n_gpu_layers: 0,
            ..ModelParams::default()
        };
        let model = Model::load(source.path(), &params, None)
            .map_err(headshare_runtime::calibrate::CalibrateError::from)?;
        let model = Arc::new(model);
        model.check_generative()?;
        if let Some(positions) = model.n_positions().filter(|&n| n < options.window) {
            return Err(EngineError::WindowTooLong {
                architecture: model.architecture(),
                positions,
                window: options.window,
            });
        }
        let vocab = model.vocab();
        let window = options.window.max(1) as usize;
        let all = match &options.text {
            Text::Given(text) if text.trim().is_empty() => Some(Vec::new()),
            Text::Given(text) => Some(vocab.tokenize(text, true, false)?),
            Text::Own | Text::Unwritten => None,
        };
        let most = headshare_runtime::calibrate::MAX_WINDOWS as usize;
        let there = (all.as_ref()).map_or(most, |tokens| tokens.len() / window);
        if there < MIN_WINDOWS {
            return Err(EngineError::TextTooShort {
                found: all.map_or(0, |tokens| tokens.len()),
                needed: MIN_WINDOWS * window,
            });
        }
        let wanted = there.min(options.windows as usize).clamp(MIN_WINDOWS, most);
        let embedding = u64::from(model.n_embd());
        let vocabulary = vocab.n_tokens().unsigned_abs();
        let widest = widest_rows(&source.gguf);
        let useful = useful_logits(vocabulary.into(), widest);
        let needs = Needs::of(source, (embedding, window as u64), useful, takes);
        let count = needs.windows(options.memory, wanted)?;
        if count < wanted {
            remark(&format!(
                "note: {count} windows of {window} tokens instead of {wanted}, to stay within {} bytes of memory",
                options.memory
            ));
        }
        let begin = vocab.leading_bos();
        let tokens = match &all {
            None if options.text == Text::Unwritten => vec![0; count * window],
            Some(all) => (0..count)
                .flat_map(|i| {
                    let start = i * there / count * window;
                    let mut tokens = all[start..start + window].to_vec();
                    if let Some(begin) = begin {
                        tokens[0] = begin;
                    }
                    tokens
                })
                .collect(),
            None => {
                remark(&format!(
                    "note: the model writes {count} windows of {window} tokens"
                ));
                let (n_threads, stop) = (options.n_threads, &options.stop);
                let (count, window) = (count as u32, window as u32);
                write_windows(&model, count, window, n_threads, stop, progress)?
            }
        };
        let digest = match &options.text {
            Text::Given(text) => blake3::hash(text.as_bytes()),
            Text::Own | Text::Unwritten => blake3::hash(
                &tokens
                    .iter()
                    .flat_map(|t| t.to_le_bytes())
                    .collect::<Vec<u8>>(),
            ),
        };
        Ok(Self {
            tokens,
            count: count as u32,
            window: window as u32,
            vocabulary,
            widest,
            digest: format_digest(&digest),
        })
    }

    /// Some windows of those in `range`, at most `most`, spread evenly over it.
    pub(crate) fn pick(&self, range: std::ops::Range<usize>, most: usize) -> Self {
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

    /// How often each of `rows` tokens of the vocabulary comes up.
    pub(super) fn frequencies(&self, rows: usize) -> Frequencies {
        let held_from = (self.count - self.held_out()) as usize * self.window as usize;
        let count = |tokens: &[i32]| {
            let mut counts = vec![0u32; rows];
            for &token in tokens {
                if let Some(count) = counts.get_mut(token as usize) {
                    *count += 1;
                }
            }
            counts
        };
        Frequencies {
            fitted: count(&self.tokens[..held_from]),
            held: count(&self.tokens[held_from..]),
        }
    }

    /// Windows, the last ones, that ridges are chosen on.
    pub fn held_out(&self) -> u32 {
        (self.count / 8).max(1)
    }
}

/// Bytes that a run takes.
struct Needs {
    fixed: u64,
    a_window: u64,
    /// Of logits that are of use.
    logits: u64,
}

impl Needs {
    /// An estimate from the model's shape: two copies of the model, and for each
    /// token and stream the KV cache in f16 and what llama.cpp keeps of
    /// activations at once, measured as about three times the feed-forward and
    /// nine times the residual stream's width; our copies of one node of each
    /// stream come on top. Logits, for which more is set aside where there is
    /// more, are not in it.
    fn of(
        source: &ModelFile,
        (embedding, window): (u64, u64),
        logits: u64,
        takes: Takes<'_>,
    ) -> Self {
        let kv = cached_numbers(&source.gguf);
        let widest = widest_feed_forward(&source.gguf).max(embedding);
        // The cache has whole steps of tokens for each window.
        let cached = 2 * kv * window.next_multiple_of(CACHE_STEP);
        let activations = 4 * (3 * widest + 9 * embedding) + 4 * window;
        let a_token = 2 * activations + 4 * (widest + 3 * embedding);
        let at_most = source.gguf.tensors().iter().map(takes.at).max();
        let visitors = at_most.unwrap_or(0).saturating_add(takes.kept);
        Self {
            fixed: visitors.saturating_add(2 * source.len()),
            a_window: 2 * cached + a_token * window,
            logits,
        }
    }

    fn windows(&self, bound: u64, wanted: usize) -> Result<usize, EngineError> {
        let logits = logits_bytes(bound, self.logits).saturating_mul(2);
        let fixed = self.fixed.saturating_add(logits);
        let room = bound.saturating_sub(fixed) / self.a_window.max(1);
        if (room as usize) < MIN_WINDOWS {
            let needed = self.least();
            return Err(EngineError::Memory { bound, needed });
        }
        Ok(wanted.min(room as usize))
    }

    /// The smallest bound that is enough.
    fn least(&self) -> u64 {
        let windows = MIN_WINDOWS as u64 * self.a_window;
        let without_logits = self.fixed.saturating_add(windows);
        // For logits, twice an eighth of the bound, as far as that is not more
        // than is ever set aside.
        let with = without_logits.saturating_mul(4).div_ceil(3);
        with.min(without_logits.saturating_add(self.logits.saturating_mul(2)))
    }
}

/// Tokens that llama.cpp's KV cache grows by.
const CACHE_STEP: u64 = 256;

/// Numbers that the KV cache has for a token.
fn cached_numbers(gguf: &Gguf) -> u64 {
    if let Ok(map) = AttentionMap::of(gguf) {
        let layers = map.layers.iter();
        return layers.map(|layer| layer.k.rows() + layer.v.rows()).sum();
    }
    shape(gguf).map_or(0, |of| {
        let of_head = u64::from(of.key_length) + u64::from(of.value_length);
        (u64::from(of.layers) * u64::from(of.kv_heads)).saturating_mul(of_head)
    })
}

/// Bytes that the KV cache of `ctx` tokens takes at least, in f16: 0 where layers see
/// less than all of them, so that it depends.
pub fn cache_bytes(gguf: &Gguf, ctx: u32) -> u64 {
    let architecture = gguf.architecture().ok().flatten().unwrap_or_default();
    let slides = gguf.kv(&format!("{architecture}.attention.sliding_window"));
    match slides {
        Some(_) => 0,
        None => (2 * cached_numbers(gguf)).saturating_mul(u64::from(ctx)),
    }
}

/// Elements of the longest rows that a matrix of a layer has.
fn widest_rows(gguf: &Gguf) -> u64 {
    let of_layers = gguf.tensors().iter().filter(|info| {
        let is_matrix = info.dims.len() > 1;
        is_matrix && layer_of(&info.name).is_some()
    });
    of_layers.map(TensorInfo::row_elems).max().unwrap_or(0)
}

/// Numbers that a token has at once in the widest feed-forward part: with
/// experts, those of all that are used for it.
fn widest_feed_forward(gguf: &Gguf) -> u64 {
    let architecture = gguf.architecture().ok().flatten().unwrap_or_default();
    let key = format!("{architecture}.expert_used_count");
    let used = gguf.u64_value(&key).ok().flatten().unwrap_or(1);
    let of = |t: &TensorInfo| {
        if t.name.ends_with("ffn_down.weight") {
            t.row_elems()
        } else if t.name.ends_with("ffn_down_exps.weight") {
            // What comes out is there for each expert before it is added up.
            let comes_out = t.dims.get(1).copied().unwrap_or(0);
            used.saturating_mul(t.row_elems() + comes_out)
        } else {
            0
        }
    };
    gguf.tensors().iter().map(of).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_visitors_take_at_their_widest_matrix_is_left_to_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        let spec = headshare_testmodels::ModelSpec::preset("tiny-llama").unwrap();
        spec.write(&path).unwrap();
        let source = ModelFile::open(&path).unwrap();
        let needs = |takes| Needs::of(&source, (64, 32), 1 << 30, takes);
        let nothing = needs(Takes {
            at: &|_| 0,
            kept: 0,
        });
        let something = needs(Takes {
            at: &|info| info.byte_len(),
            kept: 7,
        });
        let tensors = source.gguf.tensors().iter();
        let widest = tensors.map(TensorInfo::byte_len).max().unwrap();
        assert_eq!(something.fixed, nothing.fixed + widest + 7);
        assert_eq!(something.a_window, nothing.a_window);
        // A bound that would do for nothing does not for that.
        let least = nothing.least();
        assert!(nothing.windows(least, 9).is_ok() && something.windows(least, 9).is_err());
        let endless = needs(Takes {
            at: &|_| u64::MAX,
            kept: u64::MAX,
        });
        assert!(endless.windows(u64::MAX - 1, 9).is_err());
    }

    #[test]
    fn the_least_bound_is_enough_and_nothing_below_it() {
        for (fixed, a_window) in [(0, 1), (12_345, 678), (5 << 30, 81 << 20), (40 << 30, 1)] {
            let needs = Needs {
                fixed,
                a_window,
                logits: 1 << 30,
            };
            let least = needs.least();
            assert!(needs.windows(least, 9).is_ok(), "{fixed} {a_window}");
            // Eighths are rounded down.
            let less = least.saturating_sub(8);
            let refused = needs.windows(less, 9).unwrap_err();
            let EngineError::Memory { needed, .. } = refused else {
                panic!("{refused}")
            };
            assert_eq!(needed, least);
        }
    }
}
