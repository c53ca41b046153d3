"""How far an LLM of few bits is from PyTorch's where it answers: our own kernels run it, without a bundle around."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from salmonrun.export.parity.layers import LayeredLlm
from salmonrun.export.progress import Progress
from salmonrun.export.weights.calibrated import typical_rows
from salmonrun.runtime.arrays import F32
from salmonrun.runtime.cores import usable_cores
from salmonrun.runtime.decoders.native_weights import LlmReader
from salmonrun.runtime.manifest import LlmSpec, NativeWeights
from salmonrun.runtime.matrices import kernels
from salmonrun.runtime.tensor_file import TensorFile
from salmonrun.runtime.tokenizer import Tokenizer
from salmonrun.training.checkpoint import Checkpoint
from salmonrun.training.data.annotation import Entry

if TYPE_CHECKING:
    from salmonrun.kernels.cpu import _native

MOST_TOKENS = 24  # of an answer


@dataclass(frozen=True)
class Divergence:
    """Over all tokens of the answers."""

    kl: float  # mean Kullback-Leibler divergence from PyTorch's distribution, nats a token
    agreement: float  # share whose likeliest token is PyTorch's
    logit_error: float  # of the logits, relative (rms)
    tokens: int


@dataclass(frozen=True)
class Answers:
    """Recordings with their answers, and what PyTorch says at each token of these."""

    rows: list[F32]  # [S, dim] of a prompt, a recording and a transcript
    logits: list[F32]  # [n, V], behind the last n positions of each row

    def divergence(self, logits_of: Callable[[F32, int], F32]) -> Divergence:
        """Of what gives the logits [n, V] behind the last n positions of a row."""
        nats = off = scale = 0.0
        same = 0
        for row, expected in zip(self.rows, self.logits, strict=True):
            got = logits_of(row, len(expected))
            log_p, log_q = _log_softmax(expected), _log_softmax(got)
            nats += float((np.exp(log_p) * (log_p - log_q)).sum())
            same += int((got.argmax(axis=1) == expected.argmax(axis=1)).sum())
            off += float(np.square(got - expected, dtype=np.float64).sum())
            scale += float(np.square(expected, dtype=np.float64).sum())
        tokens = sum(map(len, self.logits))
        return Divergence(nats / tokens, same / tokens, float(np.sqrt(off / scale)), tokens)


def read_answers(source: Checkpoint, speech: Sequence[Entry], progress: Progress) -> Answers:
    """The LLM goes through prompts, recordings and transcripts in PyTorch, in float32."""
    llm, tokenizer = LayeredLlm(source), Tokenizer(source.tokenizer_file)
    rows = typical_rows(source, llm, speech)
    # The last position of the prompt says the first token, that of the transcript the end.
    lasts = [min(MOST_TOKENS, 1 + len(tokenizer.encode(entry.text))) for entry in speech]
    with progress.weights("PyTorch's logits", llm.size) as llm.progress:
        logits = llm.logits_of(rows, lasts).numpy()
    return Answers([row.numpy() for row in rows], np.split(logits, np.cumsum(lasts[:-1])))


class Mixed(LlmReader):
    """An LLM of two files of the same: its matrices in 4 bits, or in 8."""

    def __init__(self, llm: LlmSpec, files: tuple[Path, Path], weights: NativeWeights) -> None:
        super().__init__(TensorFile(files[0]), llm, weights)
        self._int8 = LlmReader(TensorFile(files[1]), llm, replace(weights, precision="int8"))
        self._chosen: frozenset[str] = frozenset()

    def matrix(self, name: str, rows: int, columns: int, precision: str | None = None) -> "_native.Matrix":
        """From the one or the other."""
        reader = self._int8.matrix if name in self._chosen else super().matrix
        return reader(name, rows, columns, precision)

    def with_int8(self, matrices: frozenset[str]) -> Callable[[F32, int], F32]:
        """Logits [n, V] behind the last n positions of a row [S, dim], with these matrices in 8 bits."""
        self._chosen = matrices
        return logits_of(self)


def logits_of(reader: LlmReader) -> Callable[[F32, int], F32]:
    """What gives the logits [n, V] behind the last n positions of a row [S, dim]."""
    model = reader.model(kernels().instruction_sets()[0], usable_cores(), 16)

    def run(row: F32, last: int) -> F32:
        logits = np.empty((last, reader.vocab_size), np.float32)
        sequence = model.open()
        try:
            model.forward(np.array([(sequence, len(row), last)], np.int32), np.ascontiguousarray(row), logits)
        finally:
            model.close(sequence)
        return logits

    return run


def _log_softmax(logits: F32) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    found: np.ndarray[tuple[int, int], np.dtype[np.float64]] = shifted - np.log(
        np.exp(shifted).sum(axis=1, keepdims=True)
    )
    return found
