"""A SALMONN `.pth`, opened: its tensors under our names, and its own settings."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from salmonrun.runtime.config import WindowConfig
from salmonrun.runtime.errors import CheckpointError
from salmonrun.training.foreign.names import rename_salmonn, run_state
from salmonrun.training.foreign.part_files import as_lazy
from salmonrun.training.model.config import LoraConfig, QFormerConfig
from salmonrun.training.tensors import LazyTensors, foreign, load_pickle

BERT_HEAD_DIM = 64  # bert-base: 768 / 12; the number of heads is in no published checkpoint
MOST = 1e6  # of a setting, which is seconds, a factor or a share
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
    with foreign(path):
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
    numbers = loaded.get(key)
    if numbers is None:
        return ()
    if not isinstance(numbers, list | tuple) or not all(type(number) is int for number in numbers):
        raise CheckpointError(
            f"{path}: {key} is {numbers!r}; expected a list of layer numbers, as NOTA-09's code stores"
        )
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


def qformer_config(file: SalmonnFile, heads: int | None = None) -> QFormerConfig:
    """Sizes by the tensors, windows by the file's config.

    Args:
        file: the opened file.
        heads: of the attention, which no tensor tells; None: as wide as BERT's.

    Raises:
        CheckpointError: it is no window-level Q-Former, or `heads` must be said.
    """
    tensors, options = file.tensors, file.options
    for name in ("qformer.query_tokens", "qformer.layers.0.fc1.weight"):
        if name not in tensors:
            raise CheckpointError(f"the file has no {name.removeprefix('qformer.')}; a window-level Q-Former is needed")
    num_queries, dim = tensors["qformer.query_tokens"]().shape
    if heads is None and (dim < BERT_HEAD_DIM or dim % BERT_HEAD_DIM):
        raise CheckpointError(
            f"{file.path}: the Q-Former is {dim} wide, no multiple of {BERT_HEAD_DIM}, the width of BERT's heads: "
            "say how many heads it was trained with (--qformer-heads)"
        )
    layers = {int(name.split(".")[2]) for name in tensors if name.startswith("qformer.layers.")}
    fc1 = tensors["qformer.layers.0.fc1.weight"]()
    if layers != set(range(len(layers))) or fc1.ndim != 2:
        raise CheckpointError(
            f"{file.path}: the Q-Former has layers {sorted(layers)[:8]}, and fc1 of shape {list(fc1.shape)}; expected "
            "layers from 0 on, without gaps, and a matrix"
        )
    if options.get("window_level_Qformer", True) is not True:
        raise CheckpointError("the file was trained with window_level_Qformer=False, which is not supported")
    return QFormerConfig(
        dim=dim,
        layers=len(layers),
        heads=dim // BERT_HEAD_DIM if heads is None else heads,
        ffn=len(fc1),
        window=WindowConfig(
            frames=seconds_to_frames(_number(file, "second_per_window", 0.333333)),
            stride=seconds_to_frames(_number(file, "second_stride", 0.333333)),
            num_queries=num_queries,
        ),
    )


def _number(file: SalmonnFile, key: str, default: float) -> float:
    """A setting of the file's own config; where the key is not there, what the published code takes."""
    value = file.options.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < MOST:
        raise CheckpointError(f"{file.path}: {key} in its config is {value!r}; expected a number, at least 0")
    return float(value)


def seconds_to_frames(seconds: float) -> int:
    """Whisper frames of a window, rounded as the published code rounds."""
    return round(WHISPER_WINDOW_FRAMES * seconds / 30.0)


def lora_config(file: SalmonnFile, part: str) -> LoraConfig | None:
    """The adapters of `lora` or `whisper_lora`: rank and targets by the tensors; one alpha for both, as in NOTA-09."""
    adapters = [name for name in file.tensors if name.startswith(f"{part}.")]
    if not adapters:
        return None
    if file.options.get(part) is False:  # the published code then reads none of them
        raise CheckpointError(f"{file.path}: its config has {part}: False, but there are adapters: {adapters[0]}")
    matrices = (file.tensors[name]() for name in adapters if name.endswith(".A"))
    rank = next((len(matrix) for matrix in matrices if matrix.ndim == 2), 0)
    if not rank:
        raise CheckpointError(f"{file.path}: {part} has no A matrices, missing {adapters[0][:-1]}A")
    return LoraConfig(
        r=rank,
        alpha=_number(file, "lora_alpha", 32),
        dropout=_number(file, "lora_dropout", 0.1),
        targets=tuple(sorted({name.split(".")[-2] for name in adapters})),
    )
