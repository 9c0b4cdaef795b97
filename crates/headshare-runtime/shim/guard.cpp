// llama.cpp reports some failures (a vocabulary that lacks byte tokens, a
// grammar that rejects a token, an allocation) by throwing. An exception that
// reaches a Rust frame ends the process, so the calls that can throw go
// through here: each returns 0, or 1 with the exception's text in `error`.

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <new>

#include <llama.h>

#include "guarded.h"

namespace {

void (*new_failed)() = nullptr;

} // namespace

// What `src/stitched/stream.rs` takes the C library's table for a stream's
// functions to be.
#if defined(__linux__) && !defined(__ANDROID__) && UINTPTR_MAX == UINT64_MAX
static_assert(sizeof(cookie_io_functions_t) == 32 && alignof(cookie_io_functions_t) == 8);
static_assert(offsetof(cookie_io_functions_t, read) == 0);
static_assert(offsetof(cookie_io_functions_t, write) == 8);
static_assert(offsetof(cookie_io_functions_t, seek) == 16);
static_assert(offsetof(cookie_io_functions_t, close) == 24);
#endif

extern "C" {

void headshare_watch_new(void (*failed)()) {
    new_failed = failed;
    std::set_new_handler([] {
        new_failed();
        throw std::bad_alloc();
    });
}

int headshare_model_load(const char * path, const llama_model_params * params,
                         llama_model ** out, char * error, size_t error_size) {
    return guarded(error, error_size, [&] { *out = llama_model_load_from_file(path, *params); });
}

int headshare_model_load_stream(FILE * stream, const llama_model_params * params,
                                llama_model ** out, char * error, size_t error_size) {
    return guarded(error, error_size,
                   [&] { *out = llama_model_load_from_file_ptr(stream, *params); });
}

int headshare_context_init(llama_model * model, const llama_context_params * params,
                           llama_context ** out, char * error, size_t error_size) {
    return guarded(error, error_size, [&] { *out = llama_init_from_model(model, *params); });
}

int headshare_decode(llama_context * context, llama_token * tokens, int32_t n_tokens,
                     int32_t * out, char * error, size_t error_size) {
    return guarded(error, error_size, [&] {
        *out = llama_decode(context, llama_batch_get_one(tokens, n_tokens));
        llama_synchronize(context);
    });
}

int headshare_decode_batch(llama_context * context, llama_batch * batch, int32_t * out,
                           char * error, size_t error_size) {
    return guarded(error, error_size, [&] {
        *out = llama_decode(context, *batch);
        llama_synchronize(context);
    });
}

int headshare_memory_seq_cp(llama_context * context, llama_seq_id from, llama_seq_id to,
                            llama_pos p0, llama_pos p1, char * error, size_t error_size) {
    return guarded(error, error_size, [&] {
        llama_memory_seq_cp(llama_get_memory(context), from, to, p0, p1);
    });
}

int headshare_memory_seq_rm(llama_context * context, llama_seq_id sequence, llama_pos p0,
                            llama_pos p1, bool * out, char * error, size_t error_size) {
    return guarded(error, error_size, [&] {
        *out = llama_memory_seq_rm(llama_get_memory(context), sequence, p0, p1);
    });
}

int headshare_memory_seq_keep(llama_context * context, llama_seq_id sequence, char * error,
                              size_t error_size) {
    return guarded(error, error_size, [&] {
        llama_memory_seq_keep(llama_get_memory(context), sequence);
    });
}

int headshare_tokenize(const llama_vocab * vocab, const char * text, int32_t text_len,
                       llama_token * tokens, int32_t n_tokens_max, bool add_special,
                       bool parse_special, int32_t * out, char * error, size_t error_size) {
    return guarded(error, error_size, [&] {
        *out = llama_tokenize(vocab, text, text_len, tokens, n_tokens_max, add_special, parse_special);
    });
}

int headshare_token_to_piece(const llama_vocab * vocab, llama_token token, char * buf,
                             int32_t length, bool special, int32_t * out, char * error,
                             size_t error_size) {
    return guarded(error, error_size,
                   [&] { *out = llama_token_to_piece(vocab, token, buf, length, 0, special); });
}

int headshare_detokenize(const llama_vocab * vocab, const llama_token * tokens, int32_t n_tokens,
                         char * text, int32_t text_len_max, bool remove_special,
                         bool unparse_special, int32_t * out, char * error, size_t error_size) {
    return guarded(error, error_size, [&] {
        *out = llama_detokenize(vocab, tokens, n_tokens, text, text_len_max, remove_special,
                                unparse_special);
    });
}

int headshare_grammar_init(const llama_vocab * vocab, const char * grammar, const char * root,
                           llama_sampler ** out, char * error, size_t error_size) {
    return guarded(error, error_size,
                   [&] { *out = llama_sampler_init_grammar(vocab, grammar, root); });
}

int headshare_sampler_apply(llama_sampler * sampler, llama_token_data_array * candidates,
                            char * error, size_t error_size) {
    return guarded(error, error_size, [&] { llama_sampler_apply(sampler, candidates); });
}

int headshare_sampler_accept(llama_sampler * sampler, llama_token token, char * error,
                             size_t error_size) {
    return guarded(error, error_size, [&] { llama_sampler_accept(sampler, token); });
}

} // extern "C"
