"""The LLM's matrices rounded on speech: what they are multiplied with is seen in a pass, of one layer at a time."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from salmonrun.export.graphs.linear import BLOCK, super_block_of
from salmonrun.export.parity.encoders import audio_embeds, features, modules_of
from salmonrun.export.parity.layers import LayeredLlm
from salmonrun.export.parity.speech import entry_prompt
from salmonrun.export.progress import Progress
from salmonrun.export.weights.kept import load, save
from salmonrun.export.weights.rounding import gram, inverse_root, round_compensated
from salmonrun.kernels.formats import dequantize_super_t16, dequantize_t16, quantize_super_t16, quantize_t16
from salmonrun.runtime.arrays import Array
from salmonrun.runtime.tokenizer import Tokenizer
from salmonrun.training.checkpoint import Checkpoint
from salmonrun.training.data.annotation import Entry
from salmonrun.training.data.recordings import load_recording
from salmonrun.training.tensors import LazyTensors

MOST_RECORDINGS = 96  # that are gone through
BITS = 4
_STATES = "behind-{}.npz"  # so many layers


def rounded_llm(
    source: Checkpoint, speech: Sequence[Entry], folder: Path, progress: Progress, block: int = BLOCK
) -> LazyTensors:
    """The LLM's tensors, adapters merged; the layers' matrices hold the values of int4, rounded by GPTQ.

    Experts are left as they are: most see few of the positions.

    Args:
        source: the checkpoint.
        speech: recordings whose prompts and transcripts the LLM goes through; the first MOST_RECORDINGS.
        folder: to keep the matrices in, packed, as long as the tensors are read. Layers that an earlier call with the
            same arguments has left there are not gone through again.
        progress: shows the pass.
        block: neighbouring inputs that share a scale.
    """
    merged, llm = source.merged_llm(), LayeredLlm(source)
    names = [*_matrices(llm)]
    done, rows = _begun(folder) or (0, typical_rows(source, llm, speech[:MOST_RECORDINGS]))
    llm.begin_behind(done)
    inputs = Inputs(_matrices(llm), [len(row) for row in rows])

    def round_layer(states: Tensor) -> None:
        nonlocal done
        for alike, sums in inputs.take():
            _round(merged, alike, sums, block, folder)
        done += 1
        _keep_states(folder, done, states, rows)

    llm.behind = round_layer
    with progress.weights("rounding", llm.size) as llm.progress:
        llm.states(rows)
    return merged | {name: partial(stored, folder, name) for name in names}


def _matrices(llm: LayeredLlm) -> dict[str, nn.Linear]:
    """Those that are stored in few bits: gates of experts are not."""
    return {name: linear for name, linear in llm.linears().items() if name.endswith("_proj.weight")}


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


class Inputs:
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
            self._last = x
            self._seen.append(([], gram(x[self._there])))
        self._seen[-1][0].append(name)


def _round(merged: LazyTensors, names: Sequence[str], sums: Tensor, block: int, folder: Path) -> None:
    """Matrices with one input, as a single one."""
    parts = [merged[name]() for name in names]
    shared = super_block_of("int4", block)
    rounded = round_compensated(torch.cat(parts), inverse_root(sums), BITS, block, super_block=shared)
    for name, weight in zip(names, rounded.split([len(part) for part in parts]), strict=True):
        store(folder, name, weight, block)


def store(folder: Path, name: str, weight: Tensor, block: int) -> None:
    """Keep a matrix whose values int4 has, packed."""
    if super_block_of("int4", block):
        parts: tuple[Array, ...] = quantize_super_t16(weight.numpy(), block)
    else:
        parts = quantize_t16(weight.numpy(), BITS, block)
    save(folder / f"{name}.npz", {"shape": weight.shape} | {f"part{i}": part for i, part in enumerate(parts)})


def stored(folder: Path, name: str) -> Tensor:
    """What `store` keeps."""
    kept = load(folder / f"{name}.npz")
    rows, columns = kept["shape"]
    parts = [kept[f"part{i}"] for i in range(len(kept) - 1)]
    whole = dequantize_super_t16(*parts) if len(parts) == 3 else dequantize_t16(*parts)
    return torch.from_numpy(whole[:rows, :columns])


def _keep_states(folder: Path, done: int, states: Tensor, rows: Sequence[Tensor]) -> None:
    """What so many layers have made of the rows; what fewer have is not needed any more."""
    lengths = [len(row) for row in rows]
    whole = torch.cat([state[:length] for state, length in zip(states, lengths, strict=True)])
    save(folder / _STATES.format(done), {"states": whole.numpy(), "lengths": lengths})
    (folder / _STATES.format(done - 1)).unlink(missing_ok=True)


def _begun(folder: Path) -> tuple[int, list[Tensor]] | None:
    """How many layers are done, and the rows [S, dim] behind them."""
    found = [int(path.stem.partition("-")[2]) for path in folder.glob(_STATES.format("*"))]
    if not found:
        return None
    kept = load(folder / _STATES.format(max(found)))
    # A copy lies where PyTorch puts its own, so that its sums are the same to the bit.
    return max(found), list(torch.tensor(kept["states"]).split(kept["lengths"].tolist()))
