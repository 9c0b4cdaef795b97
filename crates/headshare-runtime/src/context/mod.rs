//! A context: the state of texts going through a model (KV cache, compute
//! buffers, logits). RAII owner of llama.cpp's `llama_context`.
//!
//! One text at a time needs [`Context::decode`] only. Several side by side are
//! *sequences*: [`Context::decode_batch`] evaluates tokens of any of them at
//! once, and the operations of [`crate::sequences`] copy and remove what the
//! context remembers of each.

mod error;
mod params;
#[cfg(all(test, target_os = "linux"))]
mod tests;

use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ggml_sys as sys;

use crate::batch::{Batch, BatchError};
use crate::callbacks::{self, Observer, Slot, Watched};
use crate::model::Model;
use crate::threads::{Governor, Team, ThreadUse};
use crate::vocab::Token;
use crate::{guard, log, threads};

pub use error::ContextError;
pub use params::{CacheType, ContextParams, DEFAULT_N_CTX, FlashAttention};

/// Cells of the KV cache up to which llama.cpp's flash attention gives one token
/// the same bits with any number of threads; with more of them, it splits the
/// cells among the threads and adds up what each found. It does so from 512 on,
/// and counts in steps of 256.
const SAME_BITS_CELLS: u32 = 256;

/// The state of texts going through a model.
pub struct Context {
    pub(crate) raw: NonNull<sys::llama_context>,
    model: Arc<Model>,
    stop: Arc<AtomicBool>,
    pub(crate) kv_unified: bool,
    /// The model's, for which it would be asked with every token.
    n_positions: Option<u32>,
    /// Outputs that a batch may ask for.
    n_outputs_max: usize,
    /// Where llama.cpp finds the observer; an Arc, since it keeps a pointer.
    observed: Option<Arc<Slot>>,
    /// Chooses the number of threads, where none was ordered.
    governor: Option<Governor>,
    /// Threads that were ordered for more than one token.
    n_threads_batch: Option<u32>,
    reproducible: bool,
    thread_use: ThreadUse,
    team: Team,
    n_past: u32,
    /// Where in the last evaluated batch the tokens stand whose logits are
    /// there.
    outputs: Vec<i32>,
}

// SAFETY: llama.cpp ties a context to no thread; `&mut self` keeps it from
// being used by two at once. The slot for an observer is shared with no one but
// llama.cpp, and empty whenever no evaluation runs.
unsafe impl Send for Context {}

impl Context {
    /// Makes a context of a model.
    pub fn new(model: &Arc<Model>, params: &ContextParams) -> Result<Self, ContextError> {
        let n_ctx = match (params.n_ctx, model.n_ctx_train()) {
            (Some(n_ctx), _) => n_ctx,
            (None, 0) => DEFAULT_N_CTX,
            (None, trained) => trained.min(DEFAULT_N_CTX),
        };
        for (value, name) in [
            (n_ctx, "n_ctx"),
            (params.n_batch, "n_batch"),
            (params.n_ubatch, "n_ubatch"),
            (params.n_seq_max, "n_seq_max"),
            (params.n_threads.unwrap_or(1), "n_threads"),
            (params.n_threads_batch.unwrap_or(1), "n_threads_batch"),
        ] {
            if value == 0 {
                return Err(ContextError::Zero(name));
            }
        }
        let n_threads = params.n_threads.unwrap_or_else(threads::physical_cores);
        let n_threads_batch = params.n_threads_batch.unwrap_or(n_threads);
        let bounded = |threads| i32::try_from(threads).unwrap_or(i32::MAX).min(512);
        let mark = log::mark();
        // SAFETY: returns a plain struct.
        let mut raw_params = unsafe { sys::llama_context_default_params() };
        raw_params.n_ctx = n_ctx;
        // llama.cpp counts on an output for each sequence, and aborts where a
        // batch has no room for as many.
        raw_params.n_batch = params.n_batch.max(params.n_seq_max);
        raw_params.n_ubatch = params.n_ubatch;
        raw_params.n_seq_max = params.n_seq_max;
        raw_params.kv_unified = params.kv_unified;
        raw_params.n_outputs_max = match params.n_outputs_max {
            0 => 0,
            n => n.max(params.n_seq_max).min(raw_params.n_batch),
        };
        raw_params.n_threads = bounded(n_threads);
        raw_params.n_threads_batch = bounded(n_threads_batch);
        raw_params.flash_attn_type = match params.flash_attention {
            FlashAttention::Auto => sys::LLAMA_FLASH_ATTN_TYPE_AUTO,
            FlashAttention::Off => sys::LLAMA_FLASH_ATTN_TYPE_DISABLED,
            FlashAttention::On => sys::LLAMA_FLASH_ATTN_TYPE_ENABLED,
        };
        let cache_type = match params.cache_type {
            CacheType::F16 => sys::GGML_TYPE_F16,
            CacheType::F32 => sys::GGML_TYPE_F32,
        };
        (raw_params.type_k, raw_params.type_v) = (cache_type, cache_type);
        let stop = Arc::clone(&params.stop);
        raw_params.abort_callback = Some(on_abort);
        raw_params.abort_callback_data = Arc::as_ptr(&stop).cast_mut().cast();
        #[allow(clippy::arc_with_non_send_sync)]
        let observed = params.observable.then(|| Arc::new(Slot::default()));
        if let Some(slot) = &observed {
            raw_params.cb_eval = Some(callbacks::on_node);
            raw_params.cb_eval_user_data = Arc::as_ptr(slot).cast_mut().cast();
        }
        let mut raw = std::ptr::null_mut();
        let made = guard::call(model.path(), |error, error_size| {
            // SAFETY: the model lives (we hold an Arc), the parameters live for
            // the call, and the flag that they point to as long as the context.
            unsafe {
                guard::headshare_context_init(
                    model.as_ptr(),
                    &raw_params,
                    &mut raw,
                    error,
                    error_size,
                )
            }
        });
        match (made, NonNull::new(raw)) {
            (Ok(()), Some(raw)) => Ok(Self {
                raw,
                model: Arc::clone(model),
                stop,
                kv_unified: params.kv_unified,
                n_positions: model.n_positions(),
                n_outputs_max: match raw_params.n_outputs_max {
                    0 => usize::MAX,
                    n => n as usize,
                },
                observed,
                governor: match (params.n_threads, params.observable) {
                    // Who watches the graph sees it evaluated in one way.
                    (Some(_), _) | (None, true) => None,
                    (None, false) => Governor::new(n_threads),
                },
                n_threads_batch: params.n_threads_batch,
                reproducible: params.reproducible,
                thread_use: ThreadUse::default(),
                team: Team::default(),
                n_past: 0,
                outputs: Vec::new(),
            }),
            (made, _) => Err(ContextError::Init {
                n_ctx,
                reason: match made {
                    Err(thrown) => thrown,
                    Ok(()) => log::reason_since(mark)
                        .unwrap_or_else(|| "llama.cpp gives no reason".into()),
                },
            }),
        }
    }

    /// The model that this is a context of.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// The flag that interrupts evaluation.
    pub fn stop_flag(&self) -> &Arc<AtomicBool> {
        &self.stop
    }

    /// Whether the stop flag is set.
    pub fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Tokens of context that there are; llama.cpp may round what was asked.
    pub fn n_ctx(&self) -> u32 {
        // SAFETY: the context lives.
        unsafe { sys::llama_n_ctx(self.raw.as_ptr()) }
    }

    /// Tokens of context that one sequence can have: its part of the context,
    /// or all [`Model::n_positions`] if that is less.
    pub fn n_ctx_seq(&self) -> u32 {
        // SAFETY: the context lives.
        let room = unsafe { sys::llama_n_ctx_seq(self.raw.as_ptr()) };
        self.n_positions.map_or(room, |n| n.min(room))
    }

    /// Sequences that there can be at once.
    pub fn n_seq_max(&self) -> u32 {
        // SAFETY: the context lives.
        unsafe { sys::llama_n_seq_max(self.raw.as_ptr()) }
    }

    /// Tokens handed to llama.cpp at once, at most.
    pub fn n_batch(&self) -> u32 {
        // SAFETY: the context lives.
        unsafe { sys::llama_n_batch(self.raw.as_ptr()) }
    }

    /// Tokens computed at once, at most.
    pub fn n_ubatch(&self) -> u32 {
        // SAFETY: the context lives.
        unsafe { sys::llama_n_ubatch(self.raw.as_ptr()) }
    }

    /// Threads that evaluate, or do so when nothing else runs.
    pub fn n_threads(&self) -> u32 {
        if let Some(governor) = &self.governor {
            return governor.all();
        }
        // SAFETY: the context lives.
        let threads = unsafe { sys::llama_n_threads(self.raw.as_ptr()) };
        u32::try_from(threads).unwrap_or(0)
    }

    /// How many tokens each number of threads has evaluated so far.
    pub fn thread_use(&self) -> ThreadUse {
        ThreadUse {
            others: self.governor.as_ref().map_or(0.0, Governor::others),
            ..self.thread_use.clone()
        }
    }

    /// Sets the number of threads for `n_tokens` tokens of sequences that end
    /// before the position `end`.
    fn set_threads(&mut self, n_tokens: u32, end: u32) -> Result<(), ContextError> {
        // SAFETY: the context lives.
        let (now, now_batch) = unsafe {
            (
                sys::llama_n_threads(self.raw.as_ptr()),
                sys::llama_n_threads_batch(self.raw.as_ptr()),
            )
        };
        let (mut n, mut n_batch) = (now, now_batch);
        if let Some(governor) = &mut self.governor {
            let (one, several) = governor.n_threads();
            n = match self.reproducible && end > SAME_BITS_CELLS {
                true => governor.all().cast_signed(),
                false => one.cast_signed(),
            };
            if self.n_threads_batch.is_none() {
                n_batch = several.cast_signed();
            }
        }
        if (n, n_batch) != (now, now_batch) {
            // SAFETY: the context lives, and no evaluation runs.
            unsafe { sys::llama_set_n_threads(self.raw.as_ptr(), n, n_batch) };
        }
        let used = if n_tokens == 1 { n } else { n_batch };
        self.thread_use
            .count(used.unsigned_abs(), u64::from(n_tokens));
        let most = n.max(n_batch).unsigned_abs();
        self.team
            .start(most)
            .map_err(|error| ContextError::Threads {
                n: most,
                reason: error.to_string(),
            })
    }

    /// Tokens of the first sequence that were evaluated so far.
    pub fn n_past(&self) -> u32 {
        self.n_past
    }

    /// Whether the model keeps a memory of the text, as generating needs;
    /// encoders of BERT's kind do not.
    pub fn is_generative(&self) -> bool {
        // SAFETY: the context lives.
        !unsafe { sys::llama_get_memory(self.raw.as_ptr()) }.is_null()
    }

    /// Refuses models for which [`Context::is_generative`] is false.
    pub fn check_generative(&self) -> Result<(), ContextError> {
        if self.is_generative() {
            return Ok(());
        }
        Err(ContextError::NotGenerative {
            architecture: self.model.architecture(),
        })
    }

    /// Evaluates tokens of the first sequence that follow what was evaluated of
    /// it before: at most [`Context::n_batch`] and at least one. Afterwards
    /// [`Context::logits`] holds those of the last.
    pub fn decode(&mut self, tokens: &[Token]) -> Result<(), ContextError> {
        self.outputs.clear();
        let len = self.check_tokens(tokens)?;
        if self.n_ctx_seq() - self.n_past.min(self.n_ctx_seq()) < len.unsigned_abs() {
            return Err(ContextError::Full {
                n_ctx: self.n_ctx_seq(),
            });
        }
        self.set_threads(len.unsigned_abs(), self.n_past + len.unsigned_abs())?;
        let mark = log::mark();
        // llama.cpp takes a mutable pointer, which it does not write to.
        let mut tokens = tokens.to_vec();
        let mut status = 0;
        let called = guard::call(self.model.path(), |error, error_size| {
            // SAFETY: the context lives, all tokens are in the vocabulary and
            // no more than a batch takes.
            unsafe {
                guard::headshare_decode(
                    self.raw.as_ptr(),
                    tokens.as_mut_ptr(),
                    len,
                    &mut status,
                    error,
                    error_size,
                )
            }
        });
        self.decoded(called, status, mark)?;
        self.outputs.push(len - 1);
        Ok(())
    }

    /// Evaluates tokens of one or more sequences: at most
    /// [`Context::n_batch`] and at least one. Afterwards
    /// [`Context::logits_at`] holds those of the tokens that were flagged.
    ///
    /// The tokens of each sequence must stand in order of their positions and
    /// go on where the sequence ended; llama.cpp refuses others.
    pub fn decode_batch(&mut self, batch: &Batch) -> Result<(), ContextError> {
        self.outputs.clear();
        let len = self.check_tokens(batch.tokens())?;
        batch.check_sequences(self.n_seq_max())?;
        if let Some(n) = self.n_positions.filter(|&n| batch.end() > n) {
            return Err(ContextError::Full { n_ctx: n });
        }
        if batch.n_outputs() > self.n_outputs_max {
            let (wanted, room) = (batch.n_outputs(), self.n_outputs_max);
            return Err(BatchError::Outputs { wanted, room }.into());
        }
        self.set_threads(len.unsigned_abs(), batch.end())?;
        let mark = log::mark();
        let mut status = 0;
        let called = batch.with_raw(len, |raw| {
            guard::call(self.model.path(), |error, error_size| {
                // SAFETY: the context lives; the batch is as long as it says
                // and no longer than a batch may be, all tokens are in the
                // vocabulary and all sequences are ones that there can be.
                unsafe {
                    guard::headshare_decode_batch(
                        self.raw.as_ptr(),
                        raw,
                        &mut status,
                        error,
                        error_size,
                    )
                }
            })
        });
        self.decoded(called, status, mark)?;
        self.outputs.extend(batch.outputs());
        Ok(())
    }

    /// What evaluating tokens needs of them and of the model; their number.
    fn check_tokens(&self, tokens: &[Token]) -> Result<i32, ContextError> {
        self.check_generative()?;
        let room = self.n_batch();
        let len = match i32::try_from(tokens.len()) {
            Ok(len) if len > 0 && len.unsigned_abs() <= room => len,
            _ => {
                let len = tokens.len();
                return Err(BatchError::Length { len, room }.into());
            }
        };
        let n_tokens = self.model.vocab().n_tokens();
        let unknown = |token: &&Token| !(0..n_tokens).contains(*token);
        if let Some(&token) = tokens.iter().find(unknown) {
            return Err(BatchError::UnknownToken { token, n_tokens }.into());
        }
        Ok(len)
    }

    /// Reads llama.cpp's answer to an evaluation.
    fn decoded(
        &mut self,
        called: Result<(), String>,
        status: i32,
        mark: log::Mark,
    ) -> Result<(), ContextError> {
        // Part of a batch may have been evaluated, whatever the answer is.
        self.recount();
        called.map_err(ContextError::Decode)?;
        match status {
            0 => Ok(()),
            1 => Err(ContextError::Full {
                n_ctx: self.n_ctx(),
            }),
            2 => Err(ContextError::Interrupted),
            other => Err(ContextError::Decode(
                log::reason_since(mark).unwrap_or_else(|| format!("status {other}")),
            )),
        }
    }

    /// [`decode`](Self::decode), with `observer` watching.
    ///
    /// # Errors
    /// As `decode`; when the context is not [observable](ContextParams::observable);
    /// and when the observer ends the pass, after which the context has
    /// [forgotten](Self::clear) its text.
    ///
    /// # Panics
    /// When the observer does, with its panic.
    pub fn decode_observed(
        &mut self,
        tokens: &[Token],
        observer: &mut dyn Observer,
    ) -> Result<(), ContextError> {
        self.observed_by(observer, |this| this.decode(tokens))
    }

    /// [`decode_batch`](Self::decode_batch), with `observer` watching.
    ///
    /// # Errors
    /// As `decode_batch` and [`decode_observed`](Self::decode_observed).
    ///
    /// # Panics
    /// When the observer does, with its panic.
    pub fn decode_batch_observed(
        &mut self,
        batch: &Batch,
        observer: &mut dyn Observer,
    ) -> Result<(), ContextError> {
        self.observed_by(observer, |this| this.decode_batch(batch))
    }

    fn observed_by(
        &mut self,
        observer: &mut dyn Observer,
        decode: impl FnOnce(&mut Self) -> Result<(), ContextError>,
    ) -> Result<(), ContextError> {
        let slot = Arc::clone(self.observed.as_ref().ok_or(ContextError::NotObservable)?);
        let (decoded, watched) = slot.watch(observer, || decode(self));
        match watched {
            Watched::Through => decoded,
            Watched::Halted => {
                self.clear();
                Err(ContextError::Halted)
            }
            Watched::Panicked(panic) => {
                self.clear();
                std::panic::resume_unwind(panic)
            }
        }
    }

    /// Logits of the last evaluated token that asked for them, one for each
    /// token of the vocabulary; `None` before the first successful evaluation.
    pub fn logits(&self) -> Option<&[f32]> {
        self.logits_at(self.outputs.len().checked_sub(1)?)
    }

    /// Number of tokens of the last evaluation whose logits are there.
    pub fn n_outputs(&self) -> usize {
        self.outputs.len()
    }

    /// Logits of the `i`th token that asked for them in the last evaluation, in
    /// the order in which they were added to the batch.
    pub fn logits_at(&self, i: usize) -> Option<&[f32]> {
        let index = *self.outputs.get(i)?;
        // SAFETY: the context lives, and the token at that place of the batch
        // that it evaluated last was an output.
        let logits = unsafe { sys::llama_get_logits_ith(self.raw.as_ptr(), index) };
        if logits.is_null() {
            return None;
        }
        let len = usize::try_from(self.model.vocab().n_tokens()).ok()?;
        // SAFETY: one logit for each token of the vocabulary. llama.cpp puts
        // all outputs in order the first time that it is asked for one after an
        // evaluation and leaves them alone from then on, until the next
        // evaluation, which needs `&mut self`.
        Some(unsafe { std::slice::from_raw_parts(logits, len) })
    }

    /// Takes the first sequence's length from llama.cpp.
    pub(crate) fn recount(&mut self) {
        self.n_past = self.seq_end(0);
    }

    /// Forgets all but the first `n` tokens and returns how many are kept. That
    /// is none where the model's memory cannot be cut (recurrent models).
    ///
    /// [`Context::logits`] are gone if anything was forgotten: evaluate the last
    /// token to have its own.
    pub fn keep(&mut self, n: u32) -> u32 {
        if n >= self.n_past {
            return self.n_past;
        }
        // SAFETY: the context lives; its memory may be NULL, which is checked.
        let cut = n > 0
            && unsafe {
                let memory = sys::llama_get_memory(self.raw.as_ptr());
                !memory.is_null() && sys::llama_memory_seq_rm(memory, 0, n as i32, -1)
            };
        if cut {
            self.n_past = n;
            self.outputs.clear();
        } else {
            self.clear();
        }
        self.n_past
    }

    /// Forgets all texts.
    pub fn clear(&mut self) {
        // SAFETY: the context lives; its memory may be NULL, which is checked.
        unsafe {
            let memory = sys::llama_get_memory(self.raw.as_ptr());
            if !memory.is_null() {
                sys::llama_memory_clear(memory, true);
            }
        }
        self.n_past = 0;
        self.outputs.clear();
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: ours alone; the model and the flag are dropped after it.
        unsafe { sys::llama_free(self.raw.as_ptr()) };
    }
}

/// llama.cpp's question whether to end an evaluation.
///
/// # Safety
/// `stop` points to a flag that lives for the call.
unsafe extern "C" fn on_abort(stop: *mut c_void) -> bool {
    // SAFETY: points into the Arc that the context's owner holds.
    unsafe { &*stop.cast_const().cast::<AtomicBool>() }.load(Ordering::Relaxed)
}
