// What ik_llama_worker.py calls of ik_llama.cpp: its structures are compiled, not written down a second time in Python.

#include <cstdint>

#include "llama.h"

extern "C" {

llama_context *bridge_load(const char *path, uint32_t positions, uint32_t threads) {
    llama_backend_init();
    llama_model_params model_options = llama_model_default_params();
    model_options.repack_tensors = model_options.use_thp = true;  // `-rtr 1 -thp`: the fastest that it has
    llama_model *model = llama_model_load_from_file(path, model_options);
    if (!model) return nullptr;
    llama_context_params options = llama_context_default_params();
    options.n_ctx = options.n_batch = positions;
    options.n_ubatch = 512;
    options.n_threads = options.n_threads_batch = threads;
    options.flash_attn = true;
    return llama_init_from_model(model, options);
}

int32_t bridge_vocab_size(llama_context *context) { return llama_n_vocab(llama_get_model(context)); }

void bridge_clear(llama_context *context) { llama_kv_cache_clear(context); }

// Logits of the last of `count` tokens, which are appended from position `first` on; null if it fails.
const float *bridge_decode(llama_context *context, int32_t *tokens, int32_t count, int32_t first) {
    if (llama_decode(context, llama_batch_get_one(tokens, count, first, 0))) return nullptr;
    return llama_get_logits_ith(context, -1);
}
}
