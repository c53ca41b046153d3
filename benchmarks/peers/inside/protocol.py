"""How a worker is spoken to: a JSON request on a line of stdin, a JSON reply on a line of stdout; arrays in files.

    load    model, threads, options     -> seconds, versions, weight_bytes
    answer  prompt, tokens, limit_s     -> prefill_s, step_s (null without steps), steps
    encode  log_mel                     -> encode_s
    measure                             -> what limits_worker.py says

With `output`, the logits or states are saved there. Every reply has peak_rss, in bytes; a failure is {"error": reason}.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
Json = dict[str, Any]


class LanguageModel(Protocol):
    """One sequence at a time, decoded greedily."""

    weight_bytes: int  # read for each token

    def reset(self, prompt: int, steps: int) -> None:
        """Forget everything; room for a prompt and so many steps. Not timed."""

    def prefill(self, token_ids: list[int]) -> None:
        """Run the prompt and choose the first token."""

    def step(self) -> None:
        """Append the token chosen last and choose the next."""

    def logits(self, token_ids: list[int]) -> F32:
        """After the prompt that was run last: [V]. Not timed."""


class Encoder(Protocol):
    """A Whisper encoder."""

    weight_bytes: int

    def encode(self, log_mel: F32) -> F32:
        """[n_mels, 2 T] -> [T, d_model]."""


class Machine(Protocol):
    """What all of them run on."""

    weight_bytes: int

    def measure(self) -> Json:
        """Rate -> bytes or operations a second."""


def serve(load: Callable[[Json], LanguageModel | Encoder | Machine], versions: dict[str, str]) -> None:
    """Answer requests until stdin ends. `load` gets the request of that name."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not come between
    model: Any = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["do"] == "load":
                started = time.perf_counter()
                model = load(request)
                reply = {"seconds": time.perf_counter() - started, "versions": versions}
                reply["weight_bytes"] = model.weight_bytes
            else:
                reply = DO[request["do"]](model, request)
        except Exception as error:
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        _send(replies, reply | {"peak_rss": peak_rss()})


def _answer(model: LanguageModel, request: Json) -> Json:
    prompt, tokens = request["prompt"], request["tokens"]
    model.reset(len(prompt), tokens)
    started = time.perf_counter()
    model.prefill(prompt)
    prefilled = time.perf_counter()
    steps, elapsed = 0, 0.0
    while steps < tokens and (steps < 4 or elapsed < request["limit_s"]):  # slow ones need not say it 32 times
        model.step()
        steps += 1
        elapsed = time.perf_counter() - prefilled
    if request.get("output"):
        np.save(request["output"], model.logits(prompt))
    return {"prefill_s": prefilled - started, "step_s": elapsed / steps if steps else None, "steps": steps}


def _encode(model: Encoder, request: Json) -> Json:
    log_mel = np.load(request["log_mel"])
    started = time.perf_counter()
    states = model.encode(log_mel)
    elapsed = time.perf_counter() - started
    if request.get("output"):
        np.save(request["output"], states)
    return {"encode_s": elapsed}


DO: dict[str, Callable[[Any, Json], Json]] = {
    "answer": _answer,
    "encode": _encode,
    "measure": lambda model, _: model.measure(),
}


def _send(replies: TextIO, reply: Json) -> None:
    replies.write(json.dumps(reply) + "\n")


def peak_rss() -> int:
    """Largest resident memory so far, pages of mapped files included, in bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def padded(log_mel: F32, frames: int) -> F32:
    """Silence behind a log-mel spectrogram, for engines that hear a fixed window."""
    return np.pad(log_mel, ((0, 0), (0, frames - log_mel.shape[1])), constant_values=log_mel.min())
