"""Threads of the kernels beside threads of the caller: the same bits, and for ThreadSanitizer something to look at."""

import subprocess
import sys
import threading
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from salmonrun.kernels.formats import F32, Bytes
from tests.helpers.native_encoders import (
    Encoded,
    NativeEncoder,
    in_blocks,
    random_encoder,
    random_positions,
    same_bits,
)
from tests.helpers.native_encoders import Shape as EncoderShape
from tests.helpers.native_llms import NativeModel, Shape, random_model

native: Any = pytest.importorskip("salmonrun.kernels.cpu._native")
ROOT = Path(__file__).parents[2]

# Small, since what is looked for lies between the loops and not in them; every loop has several chunks.
SHAPE = Shape(intermediate=80, vocab=80, layers=1, heads=3, kv_heads=3, head_dim=32, max_length=70)
ROUNDS = 2  # of each caller


@cache
def specified() -> tuple[F32, F32]:
    """Embeddings of a sequence, and the logits after each."""
    embeds = np.random.default_rng(0).normal(0, 1, (SHAPE.max_length, SHAPE.dim)).astype(np.float32)
    return embeds, random_model(SHAPE).logits(embeds)


def at_once(calls: list[Callable[[], None]]) -> None:
    """Run each in a thread of its own; the first error is raised here."""
    errors: list[BaseException] = []
    start = threading.Barrier(len(calls))

    def run(call: Callable[[], None]) -> None:
        start.wait()
        try:
            call()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in errors:
        raise error


def follow(model: NativeModel, turn: threading.Lock, cuts: list[int]) -> None:
    """A request: a sequence of its own, appended piece by piece, while others append theirs."""
    embeds, expected = specified()
    for _ in range(ROUNDS):
        with turn:
            sequence = model.native.open()
        for piece, logits in zip(np.split(embeds, cuts), np.split(expected, cuts), strict=True):
            with turn:
                (found,) = model.forward((sequence, piece, len(piece)))
            np.testing.assert_array_equal(found.view(np.uint32), logits.view(np.uint32))
        with turn:
            model.native.close(sequence)


CUTS = ([60, *range(61, 70)], list(range(1, 70, 7)), [1, 64, 65])


@pytest.mark.parametrize("threads", [2, 3])
def test_requests_take_turns_at_one_model(instruction_set: str, threads: int) -> None:
    """As the decoder has it: a lock, and callers from any thread."""
    model, turn = NativeModel(random_model(SHAPE), instruction_set, threads), threading.Lock()
    at_once([partial(follow, model, turn, cuts) for cuts in CUTS])


@pytest.mark.parametrize("threads", [2, 3])
def test_models_compute_beside_each_other(instruction_set: str, threads: int) -> None:
    """Each with a pool of its own, which is made and ended while the others work; they share their weights."""
    model = random_model(SHAPE)

    def ask(cuts: list[int]) -> None:
        for _ in range(ROUNDS):
            follow(NativeModel(model, instruction_set, threads), threading.Lock(), cuts)

    at_once([partial(ask, cuts) for cuts in CUTS])


ENCODERS = (EncoderShape(layers=1), EncoderShape(layers=1, floats=True, gated=True, norm_first=False))
RECORDING = 99  # positions: two tiles of queries, and some


@cache
def encoded(shape: EncoderShape) -> tuple[F32, Encoded]:
    """A recording of two blocks, and what becomes of it."""
    x = random_positions(RECORDING, shape.dim)
    return x, in_blocks(random_encoder(shape), x, RECORDING - 20)


def listen(encoder: NativeEncoder, turn: threading.Lock, shape: EncoderShape) -> None:
    """A stream: block behind block, what was kept of one going into the next, while others have theirs encoded."""
    x, expected = encoded(shape)

    def encode(block: F32, past: Bytes | None) -> Encoded:
        with turn:
            return encoder(block, past)

    for _ in range(ROUNDS):
        same_bits(in_blocks(encode, x, RECORDING - 20), expected)


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("shape", ENCODERS, ids=["bytes", "floats"])
def test_streams_take_turns_at_one_encoder(instruction_set: str, shape: EncoderShape, threads: int) -> None:
    encoder, turn = NativeEncoder(random_encoder(shape), instruction_set, threads), threading.Lock()
    at_once([partial(listen, encoder, turn, shape) for _ in range(3)])


@pytest.mark.parametrize("threads", [2, 3])
def test_encoders_compute_beside_each_other(instruction_set: str, threads: int) -> None:
    """As Whisper and BEATs may; two of them share their weights."""
    encoders = {shape: random_encoder(shape) for shape in ENCODERS}

    def ask(shape: EncoderShape) -> None:
        for _ in range(ROUNDS):
            listen(NativeEncoder(encoders[shape], instruction_set, threads), threading.Lock(), shape)

    at_once([partial(ask, shape) for shape in (*ENCODERS, ENCODERS[0])])


SANITIZED = any(name in Path("/proc/self/maps").read_text() for name in ("libasan", "libtsan"))
TOO_MANY = """
import resource, sys
from pathlib import Path
from tests.helpers.native_build import use
from tests.helpers.native_llms import NativeModel, Shape, random_model
use(Path(sys.argv[1]))
model = random_model(Shape(layers=1))
held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + 100 * 2**20,) * 2)  # a thread's stack takes 8 MiB
try:
    NativeModel(model, "portable", 500)
except RuntimeError as error:
    print("refused:", error)
NativeModel(model, "portable", 2).logits(model.layers[0].input_norm[None])
"""


@pytest.mark.skipif(SANITIZED, reason="sanitizers reserve more addresses than a limit could leave")
def test_threads_that_the_system_does_not_have() -> None:
    """An error, and the process goes on: the threads that were made have ended."""
    command = [sys.executable, "-c", TOO_MANY, native.__file__]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("refused: ")
