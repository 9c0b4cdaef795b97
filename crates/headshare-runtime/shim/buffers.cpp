// Two buffer types for weights that are used more than once in a model:
//
// - fold: the CPU backend's own repacking type, over an arena of ours, so that
//   equal repacked pages can become the same memory;
// - map: weights stay in the mapped file, where the loader has them or where
//   they lie better.
//
// Which weights go there is asked weight by weight. llama.cpp's own way to say
// it, `tensor_buft_overrides`, takes regular expressions and compiles each of
// them anew for every tensor; so there is a device for each of the two types
// that llama.cpp asks, as it asks accelerators, whether it takes a weight.
//
// ggml's buffer interface is internal; its header is taken from the sources
// that this build of ggml was made of.

#include <cstddef>
#include <cstdint>
#include <cstring>

#include <ggml-backend-impl.h>
#include <ggml-backend.h>
#include <ggml-cpu.h>
#include <ggml.h>

extern "C" {

// Where a tensor lies, and what decides how it lies there.
struct headshare_place {
    size_t       offset;      // into the memory
    size_t       size;        // there
    size_t       file_size;   // as the file has it
    int64_t      row;         // elements
    const void * layout;      // that it is repacked into
};

// What the Rust side does. `user` is the owner of one load.
struct headshare_arena {
    void * user;
    // Memory for `size` bytes, page-aligned; NULL when there is none.
    void * (*allocate)(void * user, size_t size);
    // Whether the tensor came to be in place without being written, because
    // another that is in place holds the same.
    bool (*repeated)(void * user, const char * name, const headshare_place * place);
    // The tensor's bytes are in place.
    void (*written)(void * user, const char * name, const headshare_place * place);
    // Where a weight is to be used whose bytes the loader has at `data`.
    const void * (*mapped)(void * user, const char * name, const void * data);
};

// What one load decides about its weights.
struct headshare_choice {
    void * user;
    // NULL when nothing goes there.
    ggml_backend_buffer_type_t fold;
    ggml_backend_buffer_type_t map;
    // The buffer type that the weight goes to; NULL when that is llama.cpp's
    // business.
    ggml_backend_buffer_type_t (*choose)(void * user, const char * name);
};

}

// The Rust side, which is there on 64-bit systems only, asserts the same.
#if UINTPTR_MAX == UINT64_MAX
static_assert(sizeof(headshare_place) == 40 && alignof(headshare_place) == 8);
static_assert(offsetof(headshare_place, offset) == 0);
static_assert(offsetof(headshare_place, size) == 8);
static_assert(offsetof(headshare_place, file_size) == 16);
static_assert(offsetof(headshare_place, row) == 24);
static_assert(offsetof(headshare_place, layout) == 32);

static_assert(sizeof(headshare_arena) == 40 && alignof(headshare_arena) == 8);
static_assert(offsetof(headshare_arena, user) == 0);
static_assert(offsetof(headshare_arena, allocate) == 8);
static_assert(offsetof(headshare_arena, repeated) == 16);
static_assert(offsetof(headshare_arena, written) == 24);
static_assert(offsetof(headshare_arena, mapped) == 32);

static_assert(sizeof(headshare_choice) == 32 && alignof(headshare_choice) == 8);
static_assert(offsetof(headshare_choice, user) == 0);
static_assert(offsetof(headshare_choice, fold) == 8);
static_assert(offsetof(headshare_choice, map) == 16);
static_assert(offsetof(headshare_choice, choose) == 24);
#endif

namespace {

struct BufferType {
    ggml_backend_buffer_type  buft;
    ggml_backend_buffer_type_t real; // NULL for map
    headshare_arena           arena;
    size_t                    page;
};

struct Buffer {
    BufferType *          type;
    void *                base;
    ggml_backend_buffer_i real; // the genuine functions, for fold
};

BufferType * type_of(ggml_backend_buffer_type_t buft) {
    return static_cast<BufferType *>(buft->context);
}

Buffer * context_of(ggml_backend_buffer_t buffer) {
    return static_cast<Buffer *>(buffer->context);
}

const char * fold_name(ggml_backend_buffer_type_t) { return "CPU_FOLDED"; }
const char * map_name(ggml_backend_buffer_type_t) { return "CPU_MAPPED_SHARED"; }

size_t alignment(ggml_backend_buffer_type_t buft) { return type_of(buft)->page; }

size_t fold_alloc_size(ggml_backend_buffer_type_t buft, const ggml_tensor * tensor) {
    return ggml_backend_buft_get_alloc_size(type_of(buft)->real, tensor);
}

bool is_host(ggml_backend_buffer_type_t) { return true; }

void free_buffer(ggml_backend_buffer_t buffer) {
    // The memory belongs to the arena's owner, which outlives the model.
    delete context_of(buffer);
}

void * get_base(ggml_backend_buffer_t buffer) { return context_of(buffer)->base; }

ggml_status fold_init_tensor(ggml_backend_buffer_t buffer, ggml_tensor * tensor) {
    auto * real = context_of(buffer)->real.init_tensor;
    return real ? real(buffer, tensor) : GGML_STATUS_SUCCESS;
}

headshare_place place_of(const Buffer * context, const ggml_tensor * tensor) {
    auto * real = context->type->real;
    return {
        static_cast<size_t>(static_cast<char *>(tensor->data) - static_cast<char *>(context->base)),
        real ? ggml_backend_buft_get_alloc_size(real, tensor) : ggml_nbytes(tensor),
        ggml_nbytes(tensor),
        tensor->ne[0],
        tensor->extra,
    };
}

void fold_set_tensor(ggml_backend_buffer_t buffer, ggml_tensor * tensor, const void * data,
                     size_t offset, size_t size) {
    Buffer * context = context_of(buffer);
    // From now on the kernels see the type they know their layout by. Until
    // the first weight arrives, allocation needed our page alignment.
    buffer->buft = context->type->real;
    const auto & arena = context->type->arena;
    const headshare_place place = place_of(context, tensor);
    const bool whole = offset == 0 && size == place.file_size;
    if (!whole || !arena.repeated(arena.user, tensor->name, &place)) {
        context->real.set_tensor(buffer, tensor, data, offset, size);
    }
    arena.written(arena.user, tensor->name, &place);
}

void map_set_tensor(ggml_backend_buffer_t buffer, ggml_tensor * tensor, const void * data, size_t,
                    size_t) {
    const auto & arena = context_of(buffer)->type->arena;
    tensor->data = const_cast<void *>(arena.mapped(arena.user, tensor->name, data));
}

void get_tensor(ggml_backend_buffer_t, const ggml_tensor * tensor, void * data, size_t offset,
                size_t size) {
    std::memcpy(data, static_cast<const char *>(tensor->data) + offset, size);
}

// Weights are written by set_tensor only.
void clear(ggml_backend_buffer_t, uint8_t) {}

ggml_backend_buffer_t alloc_buffer(ggml_backend_buffer_type_t buft, size_t size) {
    BufferType * type = type_of(buft);
    auto * context = new Buffer{type, nullptr, {}};
    ggml_backend_buffer_i iface = {};
    if (type->real) {
        ggml_backend_buffer_t genuine = ggml_backend_buft_alloc_buffer(type->real, 64);
        if (!genuine) {
            delete context;
            return nullptr;
        }
        iface = context->real = genuine->iface;
        ggml_backend_buffer_free(genuine);
        iface.init_tensor = fold_init_tensor;
        iface.set_tensor  = fold_set_tensor;
        iface.memset_tensor = nullptr;
        iface.cpy_tensor    = nullptr;
    } else {
        iface.set_tensor = map_set_tensor;
        iface.get_tensor = get_tensor;
    }
    iface.free_buffer = free_buffer;
    iface.get_base    = get_base;
    iface.clear       = clear;
    iface.reset       = nullptr;
    context->base = type->arena.allocate(type->arena.user, size);
    if (!context->base) {
        delete context;
        return nullptr;
    }
    return ggml_backend_buffer_init(buft, iface, context, size);
}

ggml_backend_dev_t cpu() { return ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU); }

// The product that a model computes with such a weight: of a matrix, or of one
// matrix an expert.
ggml_tensor * product_with(ggml_context * ctx, ggml_tensor * weight) {
    const int64_t n_tokens = 512;
    if (weight->ne[2] == 1) {
        ggml_tensor * input = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, weight->ne[0], n_tokens);
        return ggml_mul_mat(ctx, weight, input);
    }
    ggml_tensor * input = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, weight->ne[0], 1, n_tokens);
    ggml_tensor * ids   = ggml_new_tensor_2d(ctx, GGML_TYPE_I32, 1, n_tokens);
    return ggml_mul_mat_id(ctx, weight, input, ids);
}

// The CPU backend's repacking types, the first that takes the tensor.
ggml_backend_buffer_type_t repacking_type(const ggml_tensor * tensor) {
    ggml_backend_dev_t dev = cpu();
    if (!dev) {
        return nullptr;
    }
    ggml_backend_reg_t reg = ggml_backend_dev_backend_reg(dev);
    auto * get = reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(
        ggml_backend_reg_get_proc_address(reg, "ggml_backend_dev_get_extra_bufts"));
    if (!get) {
        return nullptr;
    }
    for (ggml_backend_buffer_type_t * buft = get(dev); buft && *buft; ++buft) {
        ggml_backend_buffer_t buffer = ggml_backend_buft_alloc_buffer(*buft, 64);
        if (!buffer) {
            continue;
        }
        // The backend's own answer to "can you multiply by this weight?", and
        // the genuine init_tensor's to "do you have a layout for it?".
        ggml_init_params params = {16 * ggml_tensor_overhead(), nullptr, true};
        ggml_context * ctx = ggml_init(params);
        ggml_tensor * weight = ggml_dup_tensor(ctx, tensor);
        ggml_tensor * product = product_with(ctx, weight);
        weight->buffer = buffer;
        bool takes = ggml_backend_dev_supports_op(dev, product);
        if (takes && buffer->iface.init_tensor) {
            buffer->iface.init_tensor(buffer, weight);
            takes = weight->extra != nullptr;
        }
        weight->buffer = nullptr;
        ggml_free(ctx);
        ggml_backend_buffer_free(buffer);
        if (takes) {
            return *buft;
        }
    }
    return nullptr;
}

// What the load that goes on in this thread decides; NULL when there is none
// that does.
thread_local const headshare_choice * choice = nullptr;

enum device_index { FOLD, MAP, N_DEVICES };

device_index index_of(ggml_backend_dev_t dev) {
    return static_cast<device_index>(reinterpret_cast<intptr_t>(dev->context));
}

ggml_backend_buffer_type_t chosen_buft(ggml_backend_dev_t dev) {
    if (!choice) {
        return nullptr;
    }
    return index_of(dev) == FOLD ? choice->fold : choice->map;
}

const char * device_name(ggml_backend_dev_t dev) {
    return index_of(dev) == FOLD ? "CPU_FOLDED" : "CPU_MAPPED_SHARED";
}

const char * device_description(ggml_backend_dev_t) { return "weights that are shared"; }

void device_memory(ggml_backend_dev_t, size_t * free, size_t * total) { *free = *total = 0; }

// llama.cpp asks accelerators first which weights they take, and starts every
// one for a context. So that is what this is for one load only; else it is a
// CPU behind the real one, which nobody asks.
enum ggml_backend_dev_type device_type(ggml_backend_dev_t dev) {
    return chosen_buft(dev) ? GGML_BACKEND_DEVICE_TYPE_ACCEL : GGML_BACKEND_DEVICE_TYPE_CPU;
}

void device_props(ggml_backend_dev_t dev, ggml_backend_dev_props * props) {
    *props = {};
    props->name        = device_name(dev);
    props->description = device_description(dev);
    props->type        = device_type(dev);
}

ggml_backend_t device_start(ggml_backend_dev_t, const char * params) {
    return ggml_backend_dev_init(cpu(), params);
}

ggml_backend_buffer_type_t device_buft(ggml_backend_dev_t dev) {
    ggml_backend_buffer_type_t buft = chosen_buft(dev);
    return buft ? buft : ggml_backend_cpu_buffer_type();
}

// The loader's question about a weight: an operation with the weight in it, in
// an empty buffer of the type that is asked about.
bool device_takes(ggml_backend_dev_t dev, const ggml_tensor * op) {
    ggml_backend_buffer_type_t buft = chosen_buft(dev);
    for (const ggml_tensor * src : op->src) {
        if (buft && src && src->buffer && src->buffer->buft == buft) {
            return choice->choose(choice->user, src->name) == buft;
        }
    }
    return false;
}

bool device_reads(ggml_backend_dev_t, ggml_backend_buffer_type_t) { return false; }

} // namespace

extern "C" {

// Adds the two devices. To be called once, after the CPU backend is there.
void headshare_devices_register(void) {
    static ggml_backend_device devices[N_DEVICES];
    for (intptr_t i = 0; i < N_DEVICES; ++i) {
        devices[i].iface.get_name        = device_name;
        devices[i].iface.get_description = device_description;
        devices[i].iface.get_memory      = device_memory;
        devices[i].iface.get_type        = device_type;
        devices[i].iface.get_props       = device_props;
        devices[i].iface.init_backend    = device_start;
        devices[i].iface.get_buffer_type = device_buft;
        devices[i].iface.supports_op     = device_takes;
        devices[i].iface.supports_buft   = device_reads;
        devices[i].reg     = ggml_backend_dev_backend_reg(cpu());
        devices[i].context = reinterpret_cast<void *>(i);
        ggml_backend_device_register(&devices[i]);
    }
}

// From now on, loads in this thread ask `next`; NULL for none. Returns what
// they asked before.
const headshare_choice * headshare_choose(const headshare_choice * next) {
    const headshare_choice * before = choice;
    choice = next;
    return before;
}

// The type that the CPU backend repacks a weight of this type and shape (three
// dimensions) into; NULL when it leaves it as it is.
ggml_backend_buffer_type_t headshare_repacking_type(int32_t type, const int64_t * ne) {
    ggml_init_params params = {2 * ggml_tensor_overhead(), nullptr, true};
    ggml_context * ctx = ggml_init(params);
    ggml_tensor * tensor = ggml_new_tensor(ctx, static_cast<ggml_type>(type), 3, ne);
    ggml_backend_buffer_type_t buft = repacking_type(tensor);
    ggml_free(ctx);
    return buft;
}

// A buffer type over `arena`: fold around the genuine type `real`, or map when
// that is NULL. To be freed after the model that uses it.
ggml_backend_buffer_type_t headshare_buffer_type_new(const headshare_arena * arena,
                                                     ggml_backend_buffer_type_t real, size_t page) {
    auto * type = new BufferType{};
    type->real  = real;
    type->arena = *arena;
    type->page  = page;
    type->buft.iface.get_name      = real ? fold_name : map_name;
    type->buft.iface.alloc_buffer  = alloc_buffer;
    type->buft.iface.get_alignment = alignment;
    if (real) {
        type->buft.iface.get_alloc_size = fold_alloc_size;
    } else {
        type->buft.iface.is_host = is_host;
    }
    type->buft.device  = cpu();
    type->buft.context = type;
    return &type->buft;
}

void headshare_buffer_type_free(ggml_backend_buffer_type_t buft) { delete type_of(buft); }

}
