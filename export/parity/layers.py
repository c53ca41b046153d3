"""transformers' LLM of a checkpoint, of which memory holds one layer at a time."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from salmonrun.training.checkpoint import Checkpoint, load_llm
from salmonrun.training.model.llm import EMBEDDING, LM_HEAD, base_tensors, published_parameters
from salmonrun.training.model.lora import lora_parameters
from salmonrun.training.tensors import load_strict

HEAD_ROWS = 4096  # of the output layer that are in memory at once
V = TypeVar("V")


class LayeredLlm:
    """The model's own forward pass in float32; each layer is filled when its turn comes, and emptied behind it."""

    def __init__(self, source: Checkpoint) -> None:
        self.progress: Callable[[int], object] = lambda _: None  # told the weights that are done
        self.behind: Callable[[Tensor], object] = lambda _: None  # given what each layer gives, before it is emptied
        self._llm: Any = load_llm(source, device="meta")  # names and shapes are checked here
        self._base, self._lora = base_tensors(source.parts["llm"], tied=False), source.parts["lora"]
        self._head = source.merged_llm()[EMBEDDING if source.config.llm.get("tie_word_embeddings") else LM_HEAD]
        self._embedding = self._base[EMBEDDING]
        body: Any = self._llm.model
        body.rotary_emb = type(body.rotary_emb)(config=self._llm.config)  # it has no weights, but tables
        self._fill(body.norm, "model.norm.")
        for i, layer in enumerate(body.layers):
            self._visit(layer, f"model.layers.{i}.")

    @property
    def size(self) -> int:
        """Weights that a pass goes through."""
        layers: nn.Module = self._llm.model.layers
        return sum(weights.numel() for weights in (*layers.parameters(), self._llm.get_output_embeddings().weight))

    def embed(self, ids: Sequence[int]) -> Tensor:
        """Token embeddings [len(ids), dim]: these rows alone are read."""
        return self._embedding()[torch.tensor(ids, dtype=torch.long)].float()

    def linears(self) -> dict[str, nn.Linear]:
        """The layers' matrices by the names of their tensors, without adapters and fused experts."""
        return {
            f"{name.removesuffix('.base_layer')}.weight": module
            for name, module in self._llm.named_modules()
            if isinstance(module, nn.Linear) and ".layers." in name and ".lora_" not in name
        }

    def begin_behind(self, count: int) -> None:
        """Leave out the first layers: from now on, rows are what has gone through them."""
        for i in range(count):
            self._llm.model.layers[i] = _Passing()

    @torch.inference_mode()
    def states(self, rows: Sequence[Tensor]) -> list[Tensor]:
        """What the output layer gets of B rows [S, dim] of any lengths, each as if it were alone."""
        # Filled up behind, where no position looks.
        inputs_embeds = nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
        states = self._llm.model(inputs_embeds=inputs_embeds, use_cache=False).last_hidden_state
        return [state[: len(row)] for state, row in zip(states, rows, strict=True)]

    @torch.inference_mode()
    def logits(self, rows: Sequence[Tensor], last: int) -> Tensor:
        """Logits [B, last, V] of the last positions of `states`."""
        return self.logits_of(rows, [last] * len(rows)).unflatten(0, (len(rows), last))

    @torch.inference_mode()
    def logits_of(self, rows: Sequence[Tensor], lasts: Sequence[int]) -> Tensor:
        """Logits [N, V] of the last positions of `states`, of each row so many, one row after the other."""
        hidden = torch.cat([state[-last:] for state, last in zip(self.states(rows), lasts, strict=True)])
        pieces = []
        for weights in self._head().split(HEAD_ROWS):
            pieces.append(hidden @ weights.float().T)
            self.progress(weights.numel())
        return torch.cat(pieces, dim=-1)

    def _visit(self, layer: nn.Module, prefix: str) -> None:
        def fill(module: nn.Module, _inputs: object) -> None:
            self._fill(module, prefix)

        def empty(module: nn.Module, _inputs: object, output: Tensor) -> None:
            self.behind(output)
            module.to("meta")
            self.progress(sum(parameter.numel() for parameter in module.parameters()))

        layer.register_forward_pre_hook(fill)
        layer.register_forward_hook(empty)

    def _fill(self, module: nn.Module, prefix: str) -> None:
        module.to_empty(device="cpu")
        load_strict(_under(prefix, published_parameters(self._llm)), _under(prefix, self._base), "llm")
        load_strict(_under(prefix, lora_parameters(self._llm)), _under(prefix, self._lora), "lora")


class _Passing(nn.Module):
    """In place of a layer: gives what it is given."""

    def forward(self, hidden_states: Tensor, **_: object) -> Tensor:
        return hidden_states


def _under(prefix: str, named: Mapping[str, V]) -> dict[str, V]:
    return {name: value for name, value in named.items() if name.startswith(prefix)}
