"""A SALMONN `.pth`, opened: its tensors under our names, and its own settings."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from salmonrun.runtime.config import WindowConfig
from salmonrun.runtime.errors import CheckpointError
from salmonrun.training.foreign.names import rename_salmonn, run_state
from salmonrun.training.foreign.part_files import as_lazy
from salmonrun.training.model.config import LoraConfig, QFormerConfig
from salmonrun.training.tensors import LazyTensors, load_pickle

BERT_HEAD_DIM = 64  # bert-base: 768 / 12; the number of heads is in no published checkpoint
WHISPER_WINDOW_FRAMES = 1500  # the published code derives the window from 1500 frames in 30 s


@dataclass(frozen=True)
class SalmonnFile:
    """The tensors and settings of a `.pth`."""

    path: Path
    tensors: LazyTensors  # qformer.*, lora.*, whisper_lora.*
    options: dict[str, Any]  # its config's `model`
    leftovers: dict[str, str]  # name -> why it is not needed
    state: LazyTensors  # under the published names, leftovers included
    pruned_layers: tuple[int, ...]  # of the LLM
    whisper_prune: tuple[int, ...]  # layers of Whisper's encoder

    @property
    def prunes(self) -> bool:
        """Whether its own config has the layers it lists left out."""
        return self.options.get("prune") is True


def open_salmonn(path: Path) -> SalmonnFile:
    """Open a SALMONN, Nota or NOTA-09 file; tensors are read on demand.

    Raises:
        CheckpointError: it is none, or has an entry or a key that is neither used nor known to be superfluous.
    """
    return read_salmonn(load_pickle(path), path)


def read_salmonn(loaded: dict[str, Any], path: Path) -> SalmonnFile:
    """As open_salmonn, of a file that is loaded."""
    state = loaded.get("model")
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} has no 'model'; expected a SALMONN .pth")
    config = loaded.get("config")
    options = config.get("model", {}) if isinstance(config, dict) else {}
    state = as_lazy(state)
    tensors, leftovers = rename_salmonn(state, path)
    return SalmonnFile(
        path,
        tensors,
        options if isinstance(options, dict) else {},
        leftovers | run_state(set(loaded), path),
        state,
        *(_layer_numbers(loaded, key, path) for key in ("pruned_layers", "whisper_prune")),
    )


def _layer_numbers(loaded: dict[str, Any], key: str, path: Path) -> tuple[int, ...]:
    numbers = loaded.get(key) or []
    if not isinstance(numbers, list | tuple) or not all(type(number) is int for number in numbers):
        raise CheckpointError(f"{path}: {key} is {numbers!r}; expected a list of layer numbers")
    return tuple(sorted(numbers))


def left_out_layers(file: SalmonnFile, prune: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The layers that the LLM and Whisper go without, as NOTA-09's code decides: where `prune` is on.

    Raises:
        CheckpointError: Whisper is to be pruned and has no adapters, which NOTA-09's code cannot do.
    """
    if not prune and not file.prunes:
        return (), ()
    if file.whisper_prune and not whisper_adapted(file):
        raise CheckpointError(
            f"{file.path}: whisper_prune is {list(file.whisper_prune)}, but there are no adapters on Whisper and "
            "whisper_lora is not set; NOTA-09 prunes Whisper with whisper_lora: True only"
        )
    return file.pruned_layers, file.whisper_prune


def whisper_adapted(file: SalmonnFile) -> bool:
    """Whether the file was trained with adapters on Whisper.

    Raises:
        CheckpointError: its config has whisper_lora: False, and there are some.
    """
    adapted = any(name.startswith("whisper_lora.") for name in file.tensors)
    option = file.options.get("whisper_lora")
    if adapted and option is False:
        raise CheckpointError(f"{file.path}: its config has whisper_lora: False, but there are adapters on Whisper")
    return adapted or option is True


def qformer_config(file: SalmonnFile) -> QFormerConfig:
    """Sizes by the tensors, windows by the file's config.

    Raises:
        CheckpointError: it is no window-level Q-Former.
    """
    tensors, options = file.tensors, file.options
    for name in ("qformer.query_tokens", "qformer.layers.0.fc1.weight"):
        if name not in tensors:
            raise CheckpointError(f"the file has no {name.removeprefix('qformer.')}; a window-level Q-Former is needed")
    num_queries, dim = tensors["qformer.query_tokens"]().shape
    layers = {int(name.split(".")[2]) for name in tensors if name.startswith("qformer.layers.")}
    if options.get("window_level_Qformer", True) is not True:
        raise CheckpointError("the file was trained with window_level_Qformer=False, which is not supported")
    return QFormerConfig(
        dim=dim,
        layers=max(layers) + 1,
        heads=max(1, dim // BERT_HEAD_DIM),
        ffn=tensors["qformer.layers.0.fc1.weight"]().shape[0],
        window=WindowConfig(
            frames=seconds_to_frames(options.get("second_per_window", 0.333333)),
            stride=seconds_to_frames(options.get("second_stride", 0.333333)),
            num_queries=num_queries,
        ),
    )


def seconds_to_frames(seconds: float) -> int:
    """Whisper frames of a window, rounded as the published code rounds."""
    return round(WHISPER_WINDOW_FRAMES * seconds / 30.0)


def lora_config(file: SalmonnFile, part: str) -> LoraConfig | None:
    """The adapters of `lora` or `whisper_lora`: rank and targets by the tensors; one alpha for both, as in NOTA-09."""
    adapters = [name for name in file.tensors if name.startswith(f"{part}.")]
    if not adapters:
        return None
    rank = next((file.tensors[name]().shape[0] for name in adapters if name.endswith(".A")), 0)
    if not rank:
        raise CheckpointError(f"{file.path}: {part} has no A matrices, missing {adapters[0][:-1]}A")
    return LoraConfig(
        r=rank,
        alpha=float(file.options.get("lora_alpha", 32)),
        dropout=float(file.options.get("lora_dropout", 0.1)),
        targets=tuple(sorted({name.split(".")[-2] for name in adapters})),
    )
