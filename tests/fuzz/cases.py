"""One case: a mutant is loaded and asked, every array of it beside pages that nobody may touch."""

from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from salmonrun.kernels.cpu import load_native
from salmonrun.kernels.formats import F32
from salmonrun.runtime.arrays import Array
from salmonrun.runtime.decoder import Chunk
from salmonrun.runtime.decoders import native_weights
from salmonrun.runtime.decoders.native_decoder import NativeDecoder, NativeSlot
from salmonrun.runtime.errors import CapacityError, SalmonrunError
from salmonrun.runtime.tensor_file import TensorFile
from tests.fuzz.drafts import Rng, write
from tests.fuzz.mutations import mutant
from tests.helpers.guard_pages import EDGES, Edge, guarded


def prepare(folder: Path) -> None:
    """Nothing: every mutant is made from the beginning."""


def run(seed: int, index: int, folder: Path, material: Path) -> str:
    """The case of this number: "refused", or "ran".

    Raises:
        Exception: any other error than ours, which is a finding; so is a crash.
    """
    rng = np.random.default_rng((seed, index))
    llm, content = mutant(rng)
    edge = EDGES[index % 2]
    try:
        decoder = load(rng, folder, llm, content, edge)
    except SalmonrunError:
        return "refused"
    ask(rng, decoder, llm["dim"], edge)
    return "ran"


def load(rng: Rng, folder: Path, llm: dict[str, Any], content: bytes, edge: Edge) -> NativeDecoder:
    """As the engine does, but that tensors are copied to where guards are."""

    class GuardedFile(TensorFile):
        def array(self, name: str, dtype: str, shape: tuple[int, ...]) -> Array:
            return guarded(super().array(name, dtype, shape), edge)

    name = str(rng.choice(load_native().instruction_sets()))
    with mock.patch.object(native_weights, "TensorFile", GuardedFile):
        return NativeDecoder.load(write(folder, llm, content), 1 + int(rng.random() < 0.1), name)


class GuardedRounds:
    """The extension's model, what goes in and comes out of a round guarded."""

    def __init__(self, model: Any, edge: Edge) -> None:
        self._model = model
        self._edge = edge

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def forward(self, chunks: Array, embeds: F32, logits: F32) -> None:
        """As the model's."""
        found = guarded(logits, self._edge, writable=True)
        self._model.forward(guarded(chunks, self._edge), guarded(embeds, self._edge), found)
        logits[...] = found


def ask(rng: Rng, decoder: NativeDecoder, dim: int, edge: Edge) -> None:
    """Prompts, steps, copies, as far as the model goes; one position further is refused."""
    decoder._model = GuardedRounds(decoder._model, edge)  # type: ignore[assignment]
    limit = min(decoder.max_length, 80)
    with decoder.open(2, limit) as (first, second):
        append(rng, decoder, first, dim, int(rng.integers(1, limit + 1)))
        decoder.fork(first, second, int(rng.integers(0, decoder.length(first) + 1)))
        for _ in range(3):
            slots = [slot for slot in (first, second) if decoder.length(slot) < limit]
            decoder.forward([Chunk(slot, embeds_of(rng, 1, dim)) for slot in slots])
        decoder.truncate(second, int(rng.integers(0, decoder.length(second) + 1)))
        if decoder.length(second) < limit:
            append(rng, decoder, second, dim, limit - decoder.length(second))
        try:
            append(rng, decoder, second, dim, 1)
        except CapacityError:
            return
    raise AssertionError("a sequence grew beyond its end")


def append(rng: Rng, decoder: NativeDecoder, slot: NativeSlot, dim: int, count: int) -> None:
    decoder.forward([Chunk(slot, embeds_of(rng, count, dim), wanted=int(rng.integers(0, count + 1)))])


def embeds_of(rng: Rng, count: int, dim: int) -> F32:
    """[count, dim]; now and then with numbers that are none."""
    embeds = rng.normal(0, 10.0 ** rng.integers(-3, 4), (count, dim)).astype(np.float32)
    if rng.random() < 0.2:
        embeds[rng.random((count, dim)) < 0.1] = rng.choice(
            np.array([np.nan, np.inf, -np.inf, 3e38, 1e-45], np.float32)
        )
    return embeds
