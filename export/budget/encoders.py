"""Which products of an int8 encoder stay in float32: as few as halving finds, with which its states are near enough.

What int8 costs is measured of each product alone, at the end of its layer, in one pass for all. Then the dearest stay
in float32, as many as it takes until the states themselves are within the budget, which is measured, too.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from salmonrun.export.graphs.encoder_products import encoder_product
from salmonrun.export.options import ExportOptions
from salmonrun.export.parity.encoders import features
from salmonrun.export.progress import Progress
from salmonrun.export.weights.encoders import BLOCK
from salmonrun.runtime.manifest import EncoderRuntime
from salmonrun.runtime.parity import EncoderProducts
from salmonrun.training.checkpoint import Checkpoint, load_audio_encoder, load_whisper
from salmonrun.training.data.annotation import Entry
from salmonrun.training.data.recordings import load_recording

RECORDINGS = 4  # that are measured: states of each are thousands of rows
_GATE = "grep_linear"  # of BEATs: never quantized


def choose_encoders(
    source: Checkpoint, speech: Sequence[Entry], options: ExportOptions, progress: Progress
) -> tuple[EncoderProducts, ...]:
    """Of each encoder, for each runtime that the bundle has weights for, what stays in float32; empty without a budget.

    Args:
        source: the checkpoint.
        speech: recordings; the first RECORDINGS are measured.
        options: of the bundle, with the budget.
        progress: shows the measurements.
    """
    if options.encoder_budget is None:
        return ()
    loaded = [load_recording(entry, source.config.audio).pcm for entry in speech[:RECORDINGS]]
    recordings = [features(source, source.config.audio, pcm) for pcm in loaded]
    loaders: dict[str, Callable[[Checkpoint], nn.Module]] = {"whisper": load_whisper}
    prefixes = {"whisper": "layers."}
    if source.config.audio_encoder:
        loaders["audio_encoder"] = load_audio_encoder
        prefixes["audio_encoder"] = source.config.audio_encoder.layer_prefix
    found = []
    for part, load in loaders.items():
        module, inputs = load(source), [torch.from_numpy(each[part]) for each in recordings]
        for runtime in options.encoders:
            progress(f"measuring {part}, {runtime}")
            quantized = QuantizedProducts(module, prefixes[part], runtime)
            found.append(_choose(part, runtime, quantized, inputs, options.encoder_budget))
    return tuple(found)


def _choose(
    part: str, runtime: EncoderRuntime, quantized: "QuantizedProducts", inputs: Sequence[Tensor], budget: float
) -> EncoderProducts:
    order = quantized.by_cost(inputs)
    states = [quantized.states(each) for each in inputs]
    measured: dict[int, float] = {}

    def error(count: int) -> float:
        """Of the states where the dearest `count` products stay in float32."""
        if count not in measured:
            with quantized.in_int8(order[count:]):
                measured[count] = _error([quantized.states(each) for each in inputs], states)
        return measured[count]

    few, enough = 0, len(order)  # with all of them in float32 there is no error
    while few < enough:
        middle = (few + enough) // 2
        few, enough = (few, middle) if error(middle) <= budget else (middle + 1, enough)
    return EncoderProducts(part, runtime, budget, error(0), error(enough), len(order), tuple(order[:enough]))


def _error(got: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """Relative (rms), over all rows."""
    difference = sum(float((one - other).square().sum()) for one, other in zip(got, reference, strict=True))
    return (difference / sum(float(each.square().sum()) for each in reference)) ** 0.5


class QuantizedProducts:
    """An encoder whose products are, whenever that is asked for, computed as a runtime's int8 has them."""

    def __init__(self, module: nn.Module, prefix: str, runtime: EncoderRuntime) -> None:
        self._module = module
        self._quantize = QUANTIZE[runtime]
        self._on: frozenset[str] = frozenset()  # products
        self._layers: list[tuple[nn.Module, list[str]]] = []
        for number, layer in enumerate(_children(module.get_submodule(prefix.rstrip(".")))):
            names = []
            for name, linear in layer.named_modules():
                if isinstance(linear, nn.Linear) and _GATE not in name:
                    names.append(encoder_product(f"{prefix}{number}.{name}"))
                    linear.register_forward_hook(self._hook(names[-1]))
            self._layers.append((layer, list(dict.fromkeys(names))))

    @torch.inference_mode()
    def states(self, inputs: Tensor) -> Tensor:
        """What it gives of a recording's features."""
        found: Tensor = self._module(inputs)
        return found

    @contextmanager
    def in_int8(self, products: Sequence[str]) -> Iterator[None]:
        """While this is entered, these are quantized."""
        self._on = frozenset(products)
        try:
            yield
        finally:
            self._on = frozenset()

    def by_cost(self, inputs: Sequence[Tensor]) -> list[str]:
        """All products, the dearest first: by the error that each alone makes in what its layer gives."""
        costs: dict[str, float] = {}
        hooks = [layer.register_forward_hook(self._compare(names, costs)) for layer, names in self._layers]
        for each in inputs:
            self.states(each)
        for hook in hooks:
            hook.remove()
        return sorted(costs, key=lambda product: -costs[product])

    def _compare(self, products: Sequence[str], costs: dict[str, float]) -> Callable[..., None]:
        """As a forward hook of a layer: computes it again with one product after the other in int8."""

        def compare(layer: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
            for product in products:
                with self.in_int8([product]):
                    costs[product] = costs.get(product, 0.0) + _error([layer.forward(*given)], [output])

        return compare

    def _hook(self, product: str) -> Callable[..., Tensor | None]:
        def quantized(linear: nn.Linear, given: tuple[Tensor], _: Tensor) -> Tensor | None:
            return self._quantize(given[0], linear) if product in self._on else None

        return quantized


def _children(layers: nn.Module) -> Iterator[nn.Module]:
    assert isinstance(layers, nn.ModuleList)
    return iter(layers)


def _native(x: Tensor, linear: nn.Linear) -> Tensor:
    """Blocks share a scale (docs/bundle.md, "The encoders' weights"): of weights the largest value's,
    which becomes -128, in 16 bits; of activations a 127th of their largest magnitude.
    """
    weights, inputs = _blocks(linear.weight), _blocks(x)
    largest = weights.gather(-1, weights.abs().argmax(dim=-1, keepdim=True))
    rounded = _rounded(weights, (largest / -128).half().float(), -128)
    values = _rounded(inputs, inputs.abs().amax(dim=-1, keepdim=True) / 127, -127)
    return F.linear(values.flatten(-2), rounded.flatten(-2), linear.bias)


def _blocks(x: Tensor) -> Tensor:
    """[..., n] to [..., blocks, BLOCK], filled up with zeros."""
    return F.pad(x, (0, -x.shape[-1] % BLOCK)).unflatten(-1, (-1, BLOCK))


def _rounded(blocks: Tensor, steps: Tensor, least: int) -> Tensor:
    """To multiples of each block's step; to nothing where it has none."""
    return torch.where(steps == 0, 0.0, (blocks / steps).round().clamp(least, 127) * steps)


def _onnx(x: Tensor, linear: nn.Linear) -> Tensor:
    """DynamicQuantizeMatMul: a scale for an output's weights, and one with an offset for all activations."""
    steps = linear.weight.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / 127
    weight = (linear.weight / steps).round() * steps
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    step = (high - low) / 255 or 1.0
    offset = round(-low / step)
    values = ((x / step).round() + offset).clamp(0, 255) - offset
    return F.linear(values * step, weight, linear.bias)


QUANTIZE: Mapping[str, Callable[[Tensor, nn.Linear], Tensor]] = {"native": _native, "onnx": _onnx}
