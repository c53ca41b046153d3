"""Whisper's linear layers as two thin ones each, by what comes out of them: no training is needed.

LiteASR (Kamahori et al. 2025, arXiv 2502.20583): what a layer gives lies close to a few principal components of it.
"""

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn

from salmonrun.runtime.config import Pruning
from salmonrun.runtime.errors import ConfigError
from salmonrun.training.checkpoint import Checkpoint
from salmonrun.training.model.config import WhisperConfig
from salmonrun.training.model.whisper import WhisperEncoder, build_whisper
from salmonrun.training.tensors import lazy, load_strict


def ranks(config: WhisperConfig, share: float) -> dict[str, int]:
    """By the name of each linear layer, the rank at which two thin ones have `share` of its weights.

    Raises:
        ConfigError: some are of low rank already, or would have no rank at all.
    """
    if config.ranks:
        raise ConfigError("Whisper's linear layers are of low rank already; begin with the checkpoint before that")
    with torch.device("meta"):
        linear = _linear(build_whisper(config, None))
    found = {name: int(share * layer.weight.numel() / sum(layer.weight.shape)) for name, layer in linear.items()}
    if not all(found.values()):
        name = next(name for name, rank in found.items() if not rank)
        raise ConfigError(f"low_rank is {share:g}, at which {name} has no rank left; keep a larger share")
    return found


@torch.no_grad()
def thin_whisper(
    source: Checkpoint, share: float, log_mels: Iterable[Tensor], step: Pruning
) -> tuple[Checkpoint, dict[str, float]]:
    """The checkpoint with thin layers, and of each the share of its output's variance that they keep.

    Adapters on Whisper are merged before; the encoder is stored, since its weights change.

    Args:
        source: of any lineage; Whisper's linear layers are whole.
        share: of their weights that is kept.
        log_mels: of recordings, each [1, n_mels, 2 T].
        step: of the lineage.

    Raises:
        ConfigError: see `ranks`.
    """
    config = source.config
    kept = ranks(config.whisper, share)
    whisper = build_whisper(config.whisper, None)
    load_strict(whisper.state_dict(), source.merged_whisper(), "whisper")
    tensors, explained = dict(whisper.state_dict()), {}
    for name, (down, up, bias, variance) in _thinned(whisper, kept, log_mels).items():
        tensors = {key: value for key, value in tensors.items() if key not in (f"{name}.weight", f"{name}.bias")}
        tensors |= {f"{name}.down.weight": down, f"{name}.up.weight": up, f"{name}.up.bias": bias}
        explained[name] = variance
    config = replace(
        config,
        whisper=replace(config.whisper, ranks=kept),
        whisper_lora=None,
        sources=replace(config.sources, whisper=None),
        pruning=(*config.pruning, step),
    )
    parts = source.parts | {"whisper": lazy(tensors), "whisper_lora": {}}
    return replace(source, config=config, parts=parts), explained


def _thinned(
    whisper: WhisperEncoder, kept: dict[str, int], log_mels: Iterable[Tensor]
) -> dict[str, tuple[Tensor, Tensor, Tensor, float]]:
    """Layer after layer, on what the whole layers before it give: memory holds the moments of one."""
    states = [whisper.embed(log_mel.cpu()) for log_mel in log_mels]
    found: dict[str, tuple[Tensor, Tensor, Tensor, float]] = {}
    for i, layer in enumerate(whisper.layers):
        moments = {name: _Moments(module) for name, module in _linear(layer).items()}
        hooks = [module.register_forward_hook(moments[name].add) for name, module in _linear(layer).items()]
        states = [layer(state, None) for state in states]
        for hook in hooks:
            hook.remove()
        found |= {f"layers.{i}.{name}": one.thin(kept[f"layers.{i}.{name}"]) for name, one in moments.items()}
    return found


class _Moments:
    """Mean and covariance of what a linear layer gives, or is given, whichever is narrower."""

    def __init__(self, layer: nn.Linear) -> None:
        self._layer = layer
        self._of_inputs = layer.in_features < layer.out_features
        width = min(layer.in_features, layer.out_features)
        self._count, self._sum = 0, torch.zeros(width, dtype=torch.float64)
        self._squares = torch.zeros(width, width, dtype=torch.float64)

    def add(self, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """As a forward hook."""
        rows = (inputs[0] if self._of_inputs else output).flatten(0, -2)
        self._count += len(rows)
        self._sum += rows.double().sum(dim=0)
        self._squares += (rows.T @ rows).double()

    def thin(self, rank: int) -> tuple[Tensor, Tensor, Tensor, float]:
        """Two matrices [rank, in] and [out, rank], a bias [out], and the share of the variance that is kept.

        With the principal components V [out, rank] of the output y of mean m, y is close to V V' (y - m) + m: V' W is
        the first matrix, V the second, and V V' (b - m) + m the bias (LiteASR, section 3.2).
        """
        weight = self._layer.weight.double()
        own: Tensor | None = self._layer.bias
        bias = torch.zeros(len(weight), dtype=torch.float64) if own is None else own.double()
        mean = self._sum / self._count
        covariance = self._squares / self._count - torch.outer(mean, mean)
        values, vectors = torch.linalg.eigh(covariance)
        values = values.clamp(min=0)
        if self._of_inputs:  # those of W (x - E x) with x = U diag(s) ^ (1/2) z, by the narrower matrix
            mean = weight @ mean + bias
            vectors, scales, _ = torch.linalg.svd(weight @ (vectors * values.sqrt()), full_matrices=False)
            values = scales**2
        else:
            values, vectors = values.flip(0), vectors.flip(1)
        components = vectors[:, :rank]
        down, shift = components.T @ weight, components @ (components.T @ (bias - mean)) + mean
        return down.float(), components.float(), shift.float(), float(values[:rank].sum() / values.sum())


def _linear(module: nn.Module) -> dict[str, nn.Linear]:
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}
