"""A step's layers by kernels of our own: five launches each, where PyTorch has one for every operation."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import metadata

import torch
from torch import Tensor

from salmonrun.kernels.gpu.attention import attend
from salmonrun.kernels.gpu.launch import INTERPRETED, Launcher, launch
from salmonrun.kernels.gpu.matrix import Kind, Matrix
from salmonrun.kernels.gpu.norm import add_norm
from salmonrun.kernels.gpu.products import attended_product, gated_product, normed_product, product
from salmonrun.runtime.decoders.torch_decoder.attention import Places
from salmonrun.runtime.decoders.torch_decoder.model import Layer, Mlp, Pool, TorchModel
from salmonrun.runtime.decoders.torch_decoder.products import Product
from salmonrun.runtime.decoders.torch_decoder.steps import StepLayers
from salmonrun.runtime.errors import DeviceError

_KINDS: dict[str, Kind] = {
    "fp32": "float",
    "fp16": "float",
    "bf16": "float",
    "int8": "int8",
    "int4": "int4",
    "nf4": "nf4",
}


def triton_layers(model: TorchModel, run: Launcher = launch) -> StepLayers:
    """By Triton, on a GPU; on a CPU in its interpreter.

    Args:
        model: whose weights are used as they lie.
        run: what becomes of each launch.

    Raises:
        DeviceError: Triton was imported for the other of the two.
    """
    device = model.cos.device
    if device.type == "cpu" and not INTERPRETED:
        raise DeviceError(
            "kernels is 'triton' and the device a CPU, where only Triton's interpreter runs them, for tests: "
            "set TRITON_INTERPRET=1 before Python starts, or leave kernels='torch'"
        )
    if device.type != "cpu" and INTERPRETED:
        raise DeviceError(f"TRITON_INTERPRET is set, which is for tests on a CPU, and the device {device}; unset it")
    name = f"triton {metadata.version('triton')}{', interpreted' if INTERPRETED else ''}"
    return StepLayers(name, True, _Layers(model, run).logits)


@dataclass(frozen=True, eq=False)
class _Matrices:
    """Those of a layer; of a mixture of experts the first two alone."""

    qkv: Matrix
    o: Matrix
    gate_up: Matrix | None
    down: Matrix | None


class _Layers:
    def __init__(self, model: TorchModel, run: Launcher) -> None:
        self._model = model
        self._run = run
        self._matrices = [_matrices(layer) for layer in model.layers]
        self._head = _matrix(model.head)

    def logits(self, embeds: Tensor, pool: Pool, places: Places) -> Tensor:
        """Append B sequences' embeddings [B, 1, dim], and give logits [B, V] in float32."""
        model, run = self._model, self._run
        x, parts = embeds[:, 0].to(model.dtype), None
        with _current(x.device):
            for index, layer in enumerate(model.layers):
                x, parts = self._layer(index, layer, x, parts, pool, places)
            assert parts is not None, "there are layers"
            _, normed = add_norm(x, parts, model.norm, model.eps, run)
            return product(normed, self._head, run).sum(dim=0)

    def _layer(
        self, index: int, layer: Layer, x: Tensor, parts: Tensor | None, pool: Pool, places: Places
    ) -> tuple[Tensor, Tensor]:
        """The residual [B, dim], and parts [any, B, dim] that are not yet added to it."""
        model, matrices, run = self._model, self._matrices[index], self._run
        norms = None if layer.q_norm is None or layer.k_norm is None else (layer.q_norm, layer.k_norm)
        cached = pool.keys[index], pool.values[index]
        where = places.positions, places.rows, places.tables
        x, qkv = normed_product(x, parts, layer.input_norm, model.eps, matrices.qkv, run)
        states, weights = attend(qkv, norms, (model.cos, model.sin), cached, where, layer.window, model.eps, run)
        parts = attended_product(states, weights, model.dtype, matrices.o, run)
        if matrices.gate_up is None or matrices.down is None:  # experts are chosen by PyTorch
            x, normed = add_norm(x, parts, layer.post_norm, model.eps, run)
            return x, layer.mlp(normed)[None]
        x, hidden = gated_product(x, parts, layer.post_norm, model.eps, matrices.gate_up, run)
        return x, product(hidden, matrices.down, run)


def _matrices(layer: Layer) -> _Matrices:
    gate_up, down = (
        (_matrix(layer.mlp.gate_up), _matrix(layer.mlp.down)) if isinstance(layer.mlp, Mlp) else (None, None)
    )
    return _Matrices(_matrix(layer.qkv), _matrix(layer.o), gate_up, down)


def _matrix(product: Product) -> Matrix:
    stored = product.stored
    return Matrix(_KINDS[stored.precision], stored.values, stored.scales, stored.columns, product.bias)


def _current(device: torch.device) -> AbstractContextManager[object]:
    """Triton launches on PyTorch's current device, wherever its arguments are."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
