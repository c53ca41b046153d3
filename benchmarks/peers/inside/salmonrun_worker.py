"""salmonrun: a bundle in its engine."""

from contextlib import ExitStack
from importlib.metadata import version

import numpy as np
from protocol import F32, Json, serve

from salmonrun.runtime import Engine, __version__
from salmonrun.runtime.decoder import prefill, step


class Bundle:
    """The engine's own decoder and encoder."""

    def __init__(self, request: Json) -> None:
        asked = request.get("options", {})
        decoder, encoder = asked.get("decoder", "auto"), asked.get("encoder", "auto")
        self.engine = Engine.load(
            request["model"], threads=request["threads"], verify=False, decoder=decoder, encoder=encoder
        )
        manifest = self.engine.bundle.manifest
        native, beside = manifest.llm.weights.native, {manifest.llm.embedding.file, *manifest.llm.weights.files}
        graph = {name for name in manifest.files if name.startswith("llm/")} - beside
        read = {native.file} if native and decoder == "native" else graph
        self.weight_bytes = sum(manifest.files[name].size for name in read)
        self.open = ExitStack()

    def reset(self, prompt: int, steps: int) -> None:
        """A slot for the sequence."""
        self.open.close()
        self.slot = self.open.enter_context(self.engine.model.decoder.open(1, prompt + steps))[0]

    def prefill(self, token_ids: list[int]) -> None:
        """As the engine does it: embeddings in."""
        decoder = self.engine.model.decoder
        self.last = self.prompt_logits = prefill(decoder, self.slot, decoder.embed(token_ids))

    def step(self) -> None:
        """One token."""
        self.last = step(self.engine.model.decoder, [self.slot], [int(np.argmax(self.last))])[0]

    def logits(self, token_ids: list[int]) -> F32:  # noqa: ARG002
        """Of the prompt's end."""
        return self.prompt_logits

    def encode(self, log_mel: F32) -> F32:
        """Whisper alone."""
        return self.engine.model.encoder.whisper(log_mel)


if __name__ == "__main__":
    serve(Bundle, {"salmonrun": __version__, "onnxruntime": version("onnxruntime")})
