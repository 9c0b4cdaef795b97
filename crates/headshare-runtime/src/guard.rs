//! Declarations of the C++ shim (`shim/guard.cpp`) through which llama.cpp is
//! called where it can throw: its exceptions come back as error text.

use std::ffi::{c_char, c_int};
use std::path::Path;
use std::sync::Arc;

use ggml_sys as sys;

use crate::abort;

/// Room for an exception's text; longer ones are cut.
const ERROR_SIZE: usize = 1024;

unsafe extern "C" {
    pub(crate) fn headshare_model_load(
        path: *const c_char,
        params: *const sys::llama_model_params,
        out: *mut *mut sys::llama_model,
        error: *mut c_char,
        error_size: usize,
    ) -> c_int;
    #[cfg(all(target_os = "linux", target_pointer_width = "64"))]
    pub(crate) fn headshare_model_load_stream(
        stream: *mut libc::FILE,
        params: *const sys::llama_model_params,
        out: *mut *mut sys::llama_model,
        error: *mut c_char,
        error_size: usize,
    ) -> c_int;
    pub(crate) fn headshare_context_init(
        model: *mut sys::llama_model,
        params: *const sys::llama_context_params,
        out: *mut *mut sys::llama_context,
        error: *mut c_char,
        error_size: usize,
    ) -> c_int;
    pub(crate) fn headshare_decode(
        context: *mut sys::llama_context,
        tokens: *mut sys::llama_token,
        n_tokens: i32,
        out: *mut i32,
        error: *mut c_char,
        error_size: usize,
    ) -> c_int;
    pub(crate) fn headshare_decode_batch(
        context: *mut sys::llama_context,
        batch: *mut sys::llama_batch,
        out: *mut i32,
        error: *mut c_char,
        error_size: usize,
    ) -> c_int;
    pub(crate) fn headshare_memory_seq_cp(
        context: *mut sys::llama_context,
        from: sys::llama_seq_id,
        to: sys::llama_seq_id,
        p0: sys::llama_pos,
        p1: sys::llama_pos,
        error: *mut c_char,
        error_size: usize,
    ) -> c_int;
    pub(crate) fn headshare_memory_seq_rm(
        context: *mut sys::llama_context,
        sequence: sys::llama_seq_id,
        p0: sys::llama_pos,
        p1: sys::llama_pos,
        out: *mut bool,
        error: *mut c_char,
        error_size: usize,
    ) -> c_int;
    pub(crate) fn headshare_memory_seq_keep(
        context: *mut sys::llama_context,
        sequence: sys::llama_seq_id,
        error: *mut c_char,
        error_size: usize,
    ) -> c_int;
    pub(crate) fn headshare_tokenize(
        vocab: *const sys::llama_vocab,
        text: *const c_char,
        text_len: i32,
        tokens: *mut sys::llama_token,
        n_tokens_max: i32,
        add_special: bool,
        parse_special: bool,
        out: *mut i32,
        error: *mut c_char,
        error_size: usize,
    ) -> c_int;
    pub(crate) fn headshare_token_to_piece(
        vocab: *const sys::llama_vocab,
        token: sys::llama_token,
        buf: *mut c_char,
        length: i32,
        special: bool,
        out: *mut i32,
        error: *mut c_char,
        error_size: usize,
    ) -> c_int;
    pub(crate) fn headshare_detokenize(
        vocab: *const sys::llama_vocab,
        tokens: *const sys::llama_token,
        n_tokens: i32,
        text: *mut c_char,
        text_len_max: i32,
        remove_special: bool,
        unparse_special: bool,
        out: *mut i32,
        error: *mut c_char,
        error_size: usize,
    ) -> c_int;
    pub(crate) fn headshare_grammar_init(
        vocab: *const sys::llama_vocab,
        grammar: *const c_char,
        root: *const c_char,
        out: *mut *mut sys::llama_sampler,
        error: *mut c_char,
        error_size: usize,
    ) -> c_int;
    pub(crate) fn headshare_sampler_apply(
        sampler: *mut sys::llama_sampler,
        candidates: *mut sys::llama_token_data_array,
        error: *mut c_char,
        error_size: usize,
    ) -> c_int;
    pub(crate) fn headshare_sampler_accept(
        sampler: *mut sys::llama_sampler,
        token: sys::llama_token,
        error: *mut c_char,
        error_size: usize,
    ) -> c_int;
}

/// Runs one shim call on `model`, handing it the place for the exception's text.
pub(crate) fn call(
    model: &Arc<Path>,
    shim: impl FnOnce(*mut c_char, usize) -> c_int,
) -> Result<(), String> {
    let mut error = [0u8; ERROR_SIZE];
    if abort::at_work(model, || shim(error.as_mut_ptr().cast(), error.len())) == 0 {
        return Ok(());
    }
    let end = error.iter().position(|&b| b == 0).unwrap_or(error.len());
    Err(String::from_utf8_lossy(&error[..end]).into_owned())
}
