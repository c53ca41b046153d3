"""Steps: one token for each of a batch of sequences, in buffers that stay in place, so that a graph can replay it.

A whole step is in the graph: the tokens' embeddings, all layers, logits, the likeliest token. What changes from step to
step is one small array of integers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from salmonrun.runtime.decoders.torch_decoder.attention import Attention, Places
from salmonrun.runtime.decoders.torch_decoder.model import Pool, TorchModel
from salmonrun.runtime.decoders.torch_decoder.pages import PAGE, SCRATCH, PagedSlot, pages_of

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)  # what a batch is filled up to: each has a graph of its own
_TOKEN, _POSITION, _ROW, _LENGTH, _TABLE = range(5)  # columns of what changes


@dataclass(frozen=True)
class StepLayers:
    """What computes a step between its embeddings [B, 1, dim] and its logits [B, V] in float32."""

    name: str
    whole_tables: bool  # whether tables of the longest sequence cost no more than short ones
    logits: Callable[[Tensor, Pool, Places], Tensor]


def torch_layers(model: TorchModel, attention: Attention) -> StepLayers:
    """By PyTorch's operations, as for any other chunk."""

    def logits(embeds: Tensor, pool: Pool, places: Places) -> Tensor:
        return model.logits(model.states(embeds, pool, places, attention)[:, 0])

    return StepLayers("torch", attention.whole_tables, logits)


class Steps:
    """The steps of a model over one pool."""

    def __init__(
        self,
        model: TorchModel,
        pool: Pool,
        layers: StepLayers,
        embeddings: Tensor,
        max_length: int,
        captured: bool = True,
    ) -> None:
        self._model = model
        self._pool = pool
        self._layers = layers
        self._embeddings = embeddings  # [V, dim]
        self._longest = pages_of(max_length)
        self._made: dict[tuple[int, int], _Step] = {}
        self.captured = captured and embeddings.is_cuda and model.launches_alike

    def run(self, slots: Sequence[PagedSlot], tokens: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Append a token to each of at most BATCHES[-1] slots, whose pages are there.

        Returns:
            logits [n, V] and, of each, the likeliest token and its log probability [n, 2], on the device. The next step
            overwrites them.
        """
        batch = next(size for size in BATCHES if size >= len(slots))
        pages = self._longest
        if not self._layers.whole_tables:  # as few as there are, in powers of two, so that few graphs are made
            pages = 1 << (max(len(slot.pages) for slot in slots) - 1).bit_length()
        step = self._made.get((batch, pages)) or self._make(batch, pages)
        logits, likeliest = step.run(slots, tokens)
        return logits[: len(slots)], likeliest[: len(slots)]

    def _make(self, batch: int, pages: int) -> "_Step":
        step = _Step(batch, pages, self._embeddings.device, self._work, self._model.head.rows)
        if self.captured:
            step.capture()
        self._made[batch, pages] = step
        return step

    def _work(self, changing: Tensor, logits: Tensor, likeliest: Tensor) -> None:
        """What a graph holds. All is read from `changing` [B, 4 + pages], and written to `logits` and `likeliest`."""
        places = Places(
            positions=changing[:, _POSITION : _POSITION + 1].long(),
            rows=changing[:, _ROW].long(),
            lengths=changing[:, _LENGTH].contiguous(),
            tables=changing[:, _TABLE:].contiguous(),
        )
        embeds = self._embeddings[changing[:, _TOKEN : _TOKEN + 1]]
        logits.copy_(self._layers.logits(embeds, self._pool, places))
        largest, tokens = logits.max(dim=-1)
        log_probabilities = largest - logits.logsumexp(dim=-1)
        log_probabilities.masked_fill_(~logits.isfinite().all(dim=-1), torch.nan)  # as `likeliest` of the seam has it
        likeliest.copy_(torch.stack((tokens.float(), log_probabilities), dim=-1))


class _Step:
    """A step of one batch size and length of tables."""

    def __init__(
        self,
        batch: int,
        pages: int,
        device: torch.device,
        work: Callable[[Tensor, Tensor, Tensor], None],
        vocab_size: int,
    ) -> None:
        idle = [0, 0, SCRATCH, 1, *[SCRATCH] * pages]  # writes to nobody's page
        self._host = torch.tensor([idle] * batch, dtype=torch.int32, pin_memory=device.type == "cuda")
        self._rows = self._host.numpy()
        self._changing = self._host.to(device)
        self._logits = torch.zeros(batch, vocab_size, device=device)
        self._likeliest = torch.zeros(batch, 2, device=device)
        self._replay = lambda: work(self._changing, self._logits, self._likeliest)

    def capture(self) -> None:
        """Make a CUDA graph of the work. Kernels must have been launched once before, to be loaded and tuned."""
        stream = torch.cuda.Stream(self._changing.device)
        stream.wait_stream(torch.cuda.current_stream(self._changing.device))
        with torch.cuda.stream(stream):
            self._replay()
        torch.cuda.current_stream(self._changing.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            self._replay()
        self._replay = graph.replay

    def run(self, slots: Sequence[PagedSlot], tokens: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Logits [B, V], and what is likeliest [B, 2]."""
        rows = self._rows
        rows[:, :_TABLE] = 0, 0, SCRATCH, 1
        rows[:, _TABLE:] = SCRATCH
        for row, slot, token in zip(rows, slots, tokens, strict=False):
            row[:_TABLE] = token, slot.length, slot.place(slot.length), slot.length + 1
            row[_TABLE : _TABLE + len(slot.pages)] = slot.pages
        self._changing.copy_(self._host, non_blocking=True)
        self._replay()
        return self._logits, self._likeliest


def places_of(slot: PagedSlot, count: int, device: torch.device) -> Places:
    """Those of the next `count` positions of one slot, whose pages are there."""
    positions = np.arange(slot.length, slot.length + count)
    table = np.array(slot.pages, np.int32)
    rows = table[positions // PAGE].astype(np.int64) * PAGE + positions % PAGE
    on_device = [torch.from_numpy(array).to(device) for array in (positions[None], rows, table[None])]
    length = torch.tensor([slot.length + count], dtype=torch.int32, device=device)
    return Places(on_device[0], on_device[1], length, on_device[2])
