"""The LLM's matrices rounded on speech: what they are multiplied with is seen in a pass, of one layer at a time."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from salmonrun.export.parity.encoders import audio_embeds, features, modules_of
from salmonrun.export.parity.layers import LayeredLlm
from salmonrun.export.parity.speech import entry_prompt
from salmonrun.export.progress import Progress
from salmonrun.export.weights.rounding import inverse_root, round_compensated
from salmonrun.kernels.formats import dequantize_t16, quantize_t16
from salmonrun.runtime.tokenizer import Tokenizer
from salmonrun.training.checkpoint import Checkpoint
from salmonrun.training.data.annotation import Entry
from salmonrun.training.data.recordings import load_recording
from salmonrun.training.tensors import LazyTensors

MOST_RECORDINGS = 96  # that are gone through
BITS = 4
# Measured (docs/performance.md, "Numeric formats"): once calibrated no worse than 32, and a prompt takes a quarter less
# time.
BLOCK: Literal[64] = 64


def rounded_llm(
    source: Checkpoint, speech: Sequence[Entry], scratch: Path, progress: Progress, block: int = BLOCK
) -> LazyTensors:
    """The LLM's tensors, adapters merged; the layers' matrices hold the values of int4, rounded by GPTQ.

    Experts are left as they are: most see few of the positions.

    Args:
        source: the checkpoint.
        speech: recordings whose prompts and transcripts the LLM goes through; the first MOST_RECORDINGS.
        scratch: a folder to keep the matrices in, packed, as long as the tensors are read.
        progress: shows the pass.
        block: neighbouring inputs that share a scale.
    """
    merged, llm = source.merged_llm(), LayeredLlm(source)
    rows = typical_rows(source, llm, speech[:MOST_RECORDINGS])
    inputs = _Inputs(llm.linears(), [len(row) for row in rows])
    rounded: LazyTensors = {}

    def round_layer() -> None:
        for names, gram in inputs.take():
            inverse = inverse_root(gram)
            for name in names:
                rounded[name] = _kept(round_compensated(merged[name](), inverse, BITS, block), block, scratch / name)

    llm.behind = round_layer
    with progress.weights("rounding", llm.size) as llm.progress:
        llm.states(rows)
    return merged | rounded


def typical_rows(source: Checkpoint, llm: LayeredLlm, speech: Sequence[Entry]) -> list[Tensor]:
    """Embeddings [S, dim] of prompts, recordings and transcripts."""
    config, tokenizer = source.config, Tokenizer(source.tokenizer_file)
    recordings = [features(source, config.audio, load_recording(entry, config.audio).pcm) for entry in speech]
    rows = []
    for entry, audio in zip(speech, audio_embeds(modules_of(source), recordings), strict=True):
        prompt = entry_prompt(config.prompt, tokenizer, entry)
        behind = (*prompt.after, *tokenizer.encode(entry.text))
        rows.append(torch.cat([llm.embed(prompt.before), torch.from_numpy(audio), llm.embed(behind)]))
    return rows


class _Inputs:
    """Sees what matrices are multiplied with: the sums of x x^T over all positions x."""

    def __init__(self, linears: dict[str, nn.Linear], lengths: Sequence[int]) -> None:
        self._there = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]  # [B, S]; rows are filled up
        self._last: Tensor | None = None
        self._seen: list[tuple[list[str], Tensor]] = []
        for name, linear in linears.items():
            linear.register_forward_pre_hook(partial(self._see, name))

    def take(self) -> list[tuple[list[str], Tensor]]:
        """The matrices that have one input (q, k and v; gate and up), and its sum [in, in]; they are forgotten here."""
        taken, self._last, self._seen = self._seen, None, []
        return taken

    def _see(self, name: str, _: nn.Module, inputs: tuple[Tensor]) -> None:
        (x,) = inputs
        if x is not self._last:
            there = x[self._there]
            self._last = x
            self._seen.append(([], there.T @ there))
        self._seen[-1][0].append(name)


def _kept(weight: Tensor, block: int, path: Path) -> Callable[[], Tensor]:
    """Values that int4 has, on the disk."""
    rows, columns = weight.shape
    packed, scales = quantize_t16(weight.numpy(), BITS, block)
    np.savez(path, packed=packed, scales=scales)

    def get() -> Tensor:
        with np.load(f"{path}.npz") as kept:
            return torch.from_numpy(dequantize_t16(kept["packed"], kept["scales"])[:rows, :columns])

    return get
