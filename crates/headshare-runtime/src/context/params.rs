//! How a context is made.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Tokens of context when none are asked for, or the model's training context
/// where that is smaller.
pub const DEFAULT_N_CTX: u32 = 4096;

/// When llama.cpp uses flash attention.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FlashAttention {
    /// Where model and backend allow it.
    #[default]
    Auto,
    /// Never.
    Off,
    /// Always.
    On,
}

/// What the KV cache stores its numbers in (llama.cpp's `type_k` and `type_v`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheType {
    /// Half floats, llama.cpp's default.
    #[default]
    F16,
    /// Floats, twice the memory: keys and values are rounded nowhere, so that
    /// another implementation's numbers can be held against llama.cpp's.
    F32,
}

/// How a context is made; llama.cpp's names.
#[derive(Clone, Debug)]
pub struct ContextParams {
    /// Tokens of context, of all sequences together; `None` means
    /// [`DEFAULT_N_CTX`] or the model's training context if that is smaller.
    pub n_ctx: Option<u32>,
    /// Tokens handed to llama.cpp at once when a prompt is evaluated.
    pub n_batch: u32,
    /// Tokens computed at once.
    pub n_ubatch: u32,
    /// Sequences that there can be at once; llama.cpp allows 256.
    pub n_seq_max: u32,
    /// Keep all sequences in one KV cache: any of them can be as long as the
    /// context, and what they share (see [`crate::Context::seq_cp`]) is there
    /// once. Otherwise each has its own part of `n_ctx / n_seq_max` tokens, which
    /// is faster for sequences that share nothing.
    pub kv_unified: bool,
    /// Tokens of one batch whose logits can be asked for, which memory is set
    /// aside for; 0 means all of them.
    pub n_outputs_max: u32,
    /// Threads; `None` means one a physical core that this process may use, and
    /// fewer while other programs keep processors busy.
    pub n_threads: Option<u32>,
    /// Threads when more than one token is evaluated; `None` means as many.
    pub n_threads_batch: Option<u32>,
    /// The same bits whatever other programs do: where the number of threads
    /// would change them (one token after 256 or more, with flash attention), it
    /// stays what it is when nothing else runs.
    pub reproducible: bool,
    /// When to use flash attention.
    pub flash_attention: FlashAttention,
    /// What keys and values are cached in.
    pub cache_type: CacheType,
    /// Allow [`crate::Context::decode_observed`]; costs a call for each node of
    /// the graph.
    pub observable: bool,
    /// While true, evaluation stops as soon as it can; for Ctrl-C.
    pub stop: Arc<AtomicBool>,
}

impl Default for ContextParams {
    fn default() -> Self {
        Self {
            n_ctx: None,
            n_batch: 2048,
            n_ubatch: 512,
            n_seq_max: 1,
            kv_unified: false,
            n_outputs_max: 0,
            n_threads: None,
            n_threads_batch: None,
            reproducible: false,
            flash_attention: FlashAttention::Auto,
            cache_type: CacheType::F16,
            observable: false,
            stop: Arc::default(),
        }
    }
}
