"""llama.cpp through llama-cpp-python's low-level functions, flash attention on."""

import ctypes
from importlib.metadata import version
from pathlib import Path

import llama_cpp
import numpy as np
from protocol import F32, Json, serve

CONTEXT = 1024


class Gguf:
    """A model and one context."""

    def __init__(self, request: Json) -> None:
        self.weight_bytes = Path(request["model"]).stat().st_size
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(
            request["model"].encode(), llama_cpp.llama_model_default_params()
        )
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {request['model']}")
        options = llama_cpp.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch = CONTEXT, CONTEXT, 512
        options.n_threads = options.n_threads_batch = request["threads"]
        options.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
        self.context = llama_cpp.llama_init_from_model(self.model, options)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))

    def reset(self, prompt: int, steps: int) -> None:  # noqa: ARG002
        """Empty the cache."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), False)

    def prefill(self, token_ids: list[int]) -> None:
        """One batch, logits of its last position."""
        self.prompt_logits = self._decode(token_ids)

    def step(self) -> None:
        """One token."""
        self._decode([self.token])

    def logits(self, token_ids: list[int]) -> F32:  # noqa: ARG002
        """Of the prompt's end."""
        return self.prompt_logits

    def _decode(self, token_ids: list[int]) -> F32:
        tokens = (llama_cpp.llama_token * len(token_ids))(*token_ids)
        code = llama_cpp.llama_decode(self.context, llama_cpp.llama_batch_get_one(tokens, len(token_ids)))
        if code:
            raise RuntimeError(f"llama_decode returned {code}")
        pointer = llama_cpp.llama_get_logits_ith(self.context, -1)
        logits = np.ctypeslib.as_array(ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float)), (self.vocab_size,)).copy()
        self.token = int(np.argmax(logits))
        return logits


if __name__ == "__main__":
    serve(Gguf, {"llama-cpp-python": version("llama-cpp-python")})
