"""Where a part's layers are, in a model and among a checkpoint's tensors, and a model that goes without some."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, cast, get_args

from torch import Tensor, nn

from salmonrun.runtime.errors import ConfigError
from salmonrun.training.model.config import ModelConfig
from salmonrun.training.model.salmonn import SalmonnModel

Part = Literal["llm", "whisper", "audio_encoder"]
PARTS: tuple[Part, ...] = get_args(Part)  # in the order in which they are measured: the encoders' states are kept
Gone = Mapping[Part, Collection[int]]  # of each part the layers that are left out


def parts_of(config: ModelConfig) -> tuple[Part, ...]:
    """The parts of this model whose layers can be left out."""
    return tuple(part for part in PARTS if part != "audio_encoder" or config.audio_encoder)


def count_layers(config: ModelConfig, part: Part) -> int:
    """How many a part has.

    Raises:
        ConfigError: the model has no such part.
    """
    if part == "llm":
        return int(config.llm["num_hidden_layers"])
    if part == "whisper":
        return config.whisper.layers
    if config.audio_encoder is None:
        raise ConfigError("the model has no audio encoder beside Whisper; leave out --audio-encoder")
    return config.audio_encoder.layers


def layer_prefix(config: ModelConfig, part: Part) -> str:
    """What stands before a layer's number in the names of its tensors."""
    if part == "audio_encoder":
        assert config.audio_encoder is not None, "count_layers refuses it"
        return config.audio_encoder.layer_prefix
    return {"llm": "model.layers.", "whisper": "layers."}[part]


def layers_of(model: SalmonnModel, part: Part) -> nn.ModuleList:
    """A part's layers in PyTorch."""
    prefix = layer_prefix(model.config, part).removesuffix(".")
    module: Any = getattr(model, part)
    return cast(nn.ModuleList, module.get_submodule(prefix))


class PassedBy(nn.Module):
    """In place of a layer: gives what it is given."""

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        """[B, T, D] -> [B, T, D], whatever else the layers of this part are told."""
        return x


@contextmanager
def without(model: SalmonnModel, gone: Gone) -> Iterator[None]:
    """Let a model go without layers while the block runs.

    Those that stay keep their numbers, by which an LLM tells which of them see all positions and which a window.
    """
    with ExitStack() as stack:
        for part, numbers in gone.items():
            layers = layers_of(model, part)
            for number in numbers:
                stack.callback(layers.__setitem__, number, layers[number])
                layers[number] = PassedBy()
        yield
