"""CTranslate2: its generator's token stream, or Whisper.encode, which takes windows of 30 s alone."""

import json
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import ctranslate2
import numpy as np
from protocol import F32, Json, padded, serve

WINDOW = 3000  # log-mel frames


def load(request: Json) -> "Generator | Whisper":
    """By what was converted."""
    spec = json.loads((Path(request["model"]) / "config.json").read_text())
    return Whisper(request) if "alignment_heads" in spec else Generator(request)


class Generator:
    """An LLM; it streams tokens from a thread of its own."""

    def __init__(self, request: Json) -> None:
        folder = Path(request["model"])
        self.weight_bytes = (folder / "model.bin").stat().st_size
        self.vocabulary = json.loads((folder / "vocabulary.json").read_text())
        self.generator = ctranslate2.Generator(
            str(folder), "cpu", compute_type="int8_float32", inter_threads=1, intra_threads=request["threads"]
        )

    def reset(self, prompt: int, steps: int) -> None:  # noqa: ARG002
        """How many tokens the stream is to have."""
        self.count = 1 + steps

    def prefill(self, token_ids: list[int]) -> None:
        """Start the stream and wait for its first token."""
        prompt = [self.vocabulary[token] for token in token_ids]
        self.stream: Iterator[object] = self.generator.generate_tokens(prompt, max_length=self.count)
        next(self.stream)

    def step(self) -> None:
        """Wait for one token."""
        if next(self.stream, None) is None:
            raise RuntimeError("the model ended its answer; make it with other random weights")

    def logits(self, token_ids: list[int]) -> F32:
        """By a run of its own: the stream does not give them."""
        batch = self.generator.forward_batch([[self.vocabulary[token] for token in token_ids]])
        logits: F32 = np.array(batch, np.float32)[0, -1]
        return logits


class Whisper:
    """The encoder."""

    def __init__(self, request: Json) -> None:
        self.weight_bytes = (Path(request["model"]) / "model.bin").stat().st_size
        self.whisper = ctranslate2.models.Whisper(
            request["model"],
            "cpu",
            compute_type=request["options"]["precision"],
            inter_threads=1,
            intra_threads=request["threads"],
        )

    def encode(self, log_mel: F32) -> F32:
        """Padded to 30 s, and so are the states."""
        window = np.ascontiguousarray(padded(log_mel, WINDOW)[None])
        batch = self.whisper.encode(ctranslate2.StorageView.from_array(window), to_cpu=True)
        states: F32 = np.array(batch, np.float32)[0]
        return states


if __name__ == "__main__":
    serve(load, {"ctranslate2": version("ctranslate2")})
