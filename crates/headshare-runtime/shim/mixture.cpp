// llama-quantize's choice of types (`llama-ext.h`, a header of llama.cpp's sources
// that is not installed), over plain arrays.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <vector>

#include <ggml.h>
#include <llama-ext.h>

#include "guarded.h"

// As the other side has it.
static_assert(sizeof(llama_quant_model_desc) == 40 && alignof(llama_quant_model_desc) == 8);
static_assert(offsetof(llama_quant_model_desc, architecture) == 0);
static_assert(offsetof(llama_quant_model_desc, n_embd) == 8);
static_assert(offsetof(llama_quant_model_desc, n_ff) == 12);
static_assert(offsetof(llama_quant_model_desc, n_layer) == 16);
static_assert(offsetof(llama_quant_model_desc, n_head) == 20);
static_assert(offsetof(llama_quant_model_desc, n_head_kv) == 24);
static_assert(offsetof(llama_quant_model_desc, n_expert) == 28);
static_assert(offsetof(llama_quant_model_desc, n_embd_head_k) == 32);
static_assert(offsetof(llama_quant_model_desc, n_embd_head_v) == 36);

extern "C" int headshare_mixture(const llama_quant_model_desc * desc, int32_t ftype, bool pure,
                                 size_t n_overrides, const char * const * patterns,
                                 const int32_t * override_types, size_t n,
                                 const char * const * names, const int64_t * dims,
                                 int32_t * types, char * error, size_t error_size) noexcept {
    return guarded(error, error_size, [&] {
        std::unique_ptr<llama_model, decltype(&llama_model_free)> model(
            llama_quant_model_from_metadata(desc), llama_model_free);
        // Of these llama.cpp has only a number; it aborts over them.
        if (llama_ftype_get_default_type(static_cast<llama_ftype>(ftype)) == GGML_TYPE_COUNT) {
            throw std::runtime_error("llama-quantize has no such mixture");
        }
        llama_model_quantize_params params = llama_model_quantize_default_params();
        params.ftype = static_cast<llama_ftype>(ftype);
        params.pure = pure;
        std::vector<llama_model_tensor_override> overrides;
        for (size_t i = 0; i < n_overrides; i++) {
            overrides.push_back({patterns[i], static_cast<ggml_type>(override_types[i])});
        }
        overrides.push_back({nullptr, GGML_TYPE_COUNT});
        params.tt_overrides = overrides.data();
        std::unique_ptr<quantize_state_impl, decltype(&llama_quant_free)> state(
            llama_quant_init(model.get(), &params), llama_quant_free);
        ggml_init_params memory = {(n + 1) * ggml_tensor_overhead(), nullptr, true};
        std::unique_ptr<ggml_context, decltype(&ggml_free)> context(ggml_init(memory), ggml_free);
        std::vector<ggml_tensor *> allowed;
        std::vector<size_t> places;
        for (size_t i = 0; i < n; i++) {
            ggml_tensor * tensor =
                ggml_new_tensor(context.get(), GGML_TYPE_F32, GGML_MAX_DIMS, dims + 4 * i);
            ggml_set_name(tensor, names[i]);
            types[i] = -1;
            if (llama_quant_tensor_allows_quantization(state.get(), tensor)) {
                allowed.push_back(tensor);
                places.push_back(i);
            }
        }
        std::vector<ggml_type> assigned(allowed.size());
        llama_quant_compute_types(state.get(), params.ftype, allowed.data(), assigned.data(),
                                  allowed.size());
        for (size_t i = 0; i < places.size(); i++) {
            types[places[i]] = assigned[i];
        }
    });
}
