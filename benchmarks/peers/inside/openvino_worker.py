"""OpenVINO: compiled models and one inference request, as openvino-genai uses them."""

from importlib.metadata import version
from pathlib import Path

import numpy as np
import openvino
from protocol import F32, Json, serve


class Compiled:
    """An LLM whose cache is the request's state, or an encoder."""

    def __init__(self, request: Json) -> None:
        self.weight_bytes = Path(request["model"]).with_suffix(".bin").stat().st_size
        options = {"INFERENCE_NUM_THREADS": request["threads"], "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
        if "precision" in request["options"]:  # else as OpenVINO chooses
            options["INFERENCE_PRECISION_HINT"] = request["options"]["precision"]
        self.compiled = openvino.Core().compile_model(request["model"], "CPU", options)
        self.request = self.compiled.create_infer_request()
        self.inputs = {name for port in self.compiled.inputs for name in port.names}

    def reset(self, prompt: int, steps: int) -> None:  # noqa: ARG002
        """Empty the cache."""
        self.request.reset_state()
        self.length = 0

    def prefill(self, token_ids: list[int]) -> None:
        """The prompt."""
        self.prompt_logits = self._run(token_ids)

    def step(self) -> None:
        """One token."""
        self._run([self.token])

    def logits(self, token_ids: list[int]) -> F32:  # noqa: ARG002
        """Of the prompt's end."""
        return self.prompt_logits

    def encode(self, log_mel: F32) -> F32:
        """Any length up to 30 s."""
        states: F32 = self.request.infer([log_mel[None]])[0][0].copy()
        return states

    def _run(self, token_ids: list[int]) -> F32:
        end = self.length + len(token_ids)
        inputs = {
            "input_ids": np.array([token_ids]),
            "attention_mask": np.ones((1, end), np.int64),
            "position_ids": np.arange(self.length, end)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        outputs = self.request.infer({name: value for name, value in inputs.items() if name in self.inputs})
        self.length = end
        logits: F32 = outputs["logits"][0, -1].copy()
        self.token = int(np.argmax(logits))
        return logits


if __name__ == "__main__":
    serve(Compiled, {"openvino": version("openvino")})
