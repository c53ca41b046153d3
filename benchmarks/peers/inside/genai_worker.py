"""onnxruntime-genai: its generator on the builder's int4 graph."""

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import onnxruntime_genai
from protocol import F32, Json, serve


class Generator:
    """A model; each prompt has a generator of its own, as the API wants it."""

    def __init__(self, request: Json) -> None:
        folder = Path(request["model"])
        # Left alone, it takes one thread for each core it sees, and more than this process may use.
        session = {"intra_op_num_threads": request["threads"], "inter_op_num_threads": 1}
        config = onnxruntime_genai.Config(str(folder))
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
        self.model = onnxruntime_genai.Model(config)
        self.weight_bytes = weight_bytes(folder / "model.onnx")

    def reset(self, prompt: int, steps: int) -> None:
        """A new generator."""
        options = onnxruntime_genai.GeneratorParams(self.model)
        options.set_search_options(max_length=prompt + steps + 1, do_sample=False)
        self.generator = onnxruntime_genai.Generator(self.model, options)

    def prefill(self, token_ids: list[int]) -> None:
        """The prompt; the first token is then chosen without running anything."""
        self.generator.append_tokens(np.array([token_ids], np.int32))
        self.prompt_logits = np.asarray(self.generator.get_logits(), np.float32).reshape(-1)
        self.generator.generate_next_token()

    def step(self) -> None:
        """One token."""
        if self.generator.is_done():
            raise RuntimeError("the model ended its answer; make it with other random weights")
        self.generator.generate_next_token()

    def logits(self, token_ids: list[int]) -> F32:  # noqa: ARG002
        """Of the prompt's end."""
        return self.prompt_logits


def weight_bytes(path: Path) -> int:
    """Of the products; not the rows of embeddings and rotations, of which a token reads one each."""
    read = [
        tensor
        for tensor in onnx.load(path, load_external_data=False).graph.initializer
        if not tensor.name.endswith("_cache") and "embed_tokens" not in tensor.name
    ]
    return sum(int(entry.value) for tensor in read for entry in tensor.external_data if entry.key == "length")


if __name__ == "__main__":
    serve(Generator, {name: version(name) for name in ("onnxruntime-genai", "onnxruntime")})
