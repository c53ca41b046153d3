"""ik_llama.cpp through a bridge of four functions, rows interleaved at load, flash attention on."""

import ctypes
import sys
from pathlib import Path

import numpy as np
from protocol import F32, Json, serve

CONTEXT = 1024
PREFIX = Path(sys.prefix)


class Gguf:
    """A model and one context."""

    def __init__(self, request: Json) -> None:
        self.weight_bytes = Path(request["model"]).stat().st_size
        self.library = ctypes.CDLL(str(PREFIX / "lib" / "libik_llama_bridge.so"))
        self.library.bridge_load.restype = ctypes.c_void_p
        self.library.bridge_decode.restype = ctypes.POINTER(ctypes.c_float)
        loaded = self.library.bridge_load(request["model"].encode(), CONTEXT, request["threads"])
        if not loaded:
            raise RuntimeError(f"ik_llama.cpp cannot load {request['model']}")
        self.context = ctypes.c_void_p(loaded)
        self.vocab_size = self.library.bridge_vocab_size(self.context)
        self.length = 0

    def reset(self, prompt: int, steps: int) -> None:  # noqa: ARG002
        """Empty the cache."""
        self.library.bridge_clear(self.context)
        self.length = 0

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
        tokens = (ctypes.c_int32 * len(token_ids))(*token_ids)
        pointer = self.library.bridge_decode(self.context, tokens, len(token_ids), self.length)
        if not pointer:
            raise RuntimeError("llama_decode failed")
        self.length += len(token_ids)
        logits = np.ctypeslib.as_array(pointer, (self.vocab_size,)).copy()
        self.token = int(np.argmax(logits))
        return logits


if __name__ == "__main__":
    serve(Gguf, {"ik_llama.cpp": (PREFIX / "commit.txt").read_text().strip()[:9]})
