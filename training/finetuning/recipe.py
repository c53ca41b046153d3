"""A fine-tuning run as YAML with dotted overrides: `--cfg-path stage1.yaml --options run.lr=1e-5`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from salmonrun.runtime.config import BlockConfig
from salmonrun.runtime.errors import ConfigError
from salmonrun.runtime.schema import from_dict
from salmonrun.training.data.config import Augmentation, DataConfig
from salmonrun.training.model.config import LoraConfig
from salmonrun.training.pruning.choose import Search
from salmonrun.training.pruning.prune import PruneOptions
from salmonrun.training.pruning.sensitivity import Criterion
from salmonrun.training.yaml_file import parse_yaml, read_yaml

R = TypeVar("R", bound="Recipe")


@dataclass(frozen=True)
class TrainedParts:
    """Which parameters change."""

    whisper: bool = False  # its own weights
    whisper_lora: bool = True  # its adapters, where there are any
    audio_encoder: bool = False
    qformer: bool = True
    llm: bool = False  # the LLM's own weights
    lora: bool = True  # its adapters, where there are any


@dataclass(frozen=True)
class RunConfig:
    """Steps, rates, losses, precision, and where and how often a run is saved and measured."""

    out: str  # folder of snapshots and of the final checkpoint
    steps: int = 1000
    batch_size: int = 8
    accumulate: int = 1
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: for training from scratch, docs/training.md
    lr: float = 3e-5
    min_lr: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.999)  # of AdamW
    warmup_steps: int = 100
    weight_decay: float = 0.05
    max_grad_norm: float = 1.0  # longer gradients are shortened to this; 0: never
    clip_percentile: float | None = None  # or to this percentile of the run's own norms so far (AutoClip)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    ctc_weight: float = 0.0  # auxiliary character loss on Whisper's states: makes training from scratch converge
    answer_weight: float = 1.0  # 0: the auxiliary loss alone, for a first run that is cheap: no LLM is computed
    seed: int = 42
    workers: int = 0
    log_every: int = 10
    save_every: int = 500  # steps between snapshots, which are when the validation data are measured
    save_dtype: Literal["float32", "float16", "bfloat16"] = "float32"  # of the checkpoints, not of the snapshots
    metric: Literal["loss", "accuracy", "wer", "exact"] = "loss"  # by which <out>/best is chosen on the validation data
    answered: int = 100  # validation recordings answered for wer and exact
    tensorboard: bool = False  # log to <out>/runs as well

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "log_every", "save_every", "answered"):
            if getattr(self, name) < 1:
                raise ConfigError(f"run.{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("workers", "ctc_weight", "answer_weight", "max_grad_norm", "weight_decay", "warmup_steps"):
            if getattr(self, name) < 0:
                raise ConfigError(f"run.{name} is {getattr(self, name)}; it must be at least 0")
        if self.clip_percentile is not None and not 0 < self.clip_percentile <= 100:
            raise ConfigError(f"run.clip_percentile is {self.clip_percentile}; expected more than 0, at most 100")
        if not 0 <= self.min_lr <= self.lr or not self.lr:
            raise ConfigError(f"run.min_lr {self.min_lr} and run.lr {self.lr} must satisfy 0 <= min_lr <= lr, lr > 0")


@dataclass(frozen=True)
class PruneConfig:
    """What is left out of the checkpoint before it is trained, as by `salmonrun prune apply`: docs/pruning.md."""

    llm: float | None = None  # share of the LLM's layers
    whisper: float | None = None
    audio_encoder: float | None = None
    low_rank: float | None = None  # of the weights of Whisper's linear layers, what two thin ones keep
    merge: bool = False
    criterion: Criterion = "loss"
    search: Search = "one-shot"
    protect: int = 1  # layers at each end that stay
    measured: str | None = None  # what `salmonrun prune sensitivity` wrote
    data: str | None = None  # annotation of the recordings that layers are chosen on
    limit: int | None = None  # only the first so many of them

    def __post_init__(self) -> None:
        PruneOptions.of(self)  # says what cannot be
        if self.measured is None and self.data is None:
            raise ConfigError("prune has neither data nor measured; name recordings that layers are chosen on")


@dataclass(frozen=True)
class Recipe:
    """A run: where it starts, what it is trained on, and how."""

    checkpoint: str  # folder to start from
    data: DataConfig
    run: RunConfig
    train: TrainedParts = field(default_factory=TrainedParts)
    augment: Augmentation = field(default_factory=Augmentation)
    whisper_lora: LoraConfig | None = None  # new adapters for a checkpoint that has none on Whisper
    prune: PruneConfig | None = None  # make it smaller before it is trained, into <run.out>/pruned
    # What Whisper hears: 30 s always, or what the recording fills, which is faster. Left out: as the checkpoint has it.
    # The checkpoint that is written has it, and every bundle of that, unless its export asks for the other.
    window: Literal["padded", "trimmed"] | None = None
    streaming: BlockConfig | None = None  # train the encoders on blocks, too; left out: as the checkpoint has it
    nothing: str | None = (
        None  # the text of entries where nothing is to be transcribed; left out: as the checkpoint has it
    )
    quantize_llm: Literal["nf4"] | None = None  # hold the frozen LLM in 4 bits while training (QLoRA)

    def __post_init__(self) -> None:
        if self.quantize_llm and self.train.llm:
            raise ConfigError("train.llm would train the weights that quantize_llm freezes in 4 bits; choose one")
        if self.streaming and self.window == "padded":
            raise ConfigError(
                "window is 'padded', but streaming trains on blocks of what was recorded: leave window out"
            )
        if not self.trains_answers and not self.run.ctc_weight:
            raise ConfigError("run.answer_weight and run.ctc_weight are both 0; there is no loss to train on")
        if self.data.valid and not self.trains_answers:
            raise ConfigError("data.valid measures answers, which run.answer_weight 0 does not train; leave one out")

    @property
    def trains_answers(self) -> bool:
        """Whether the LLM runs, and the loss reaches all that is trained."""
        return bool(self.run.answer_weight)


def load_recipe(path: str | Path, options: Sequence[str] = ()) -> Recipe:
    """Read a YAML recipe of fine-tuning and apply overrides such as "run.lr=1e-5" or "data.train.0.weight=2".

    Raises:
        ConfigError: not YAML, an unknown or missing key, or a value of the wrong type.
    """
    return read_recipe(Recipe, path, options)


def read_recipe(kind: type[R], path: str | Path, options: Sequence[str] = ()) -> R:
    """Read a recipe of a kind.

    Raises:
        ConfigError: not YAML, an unknown or missing key, or a value of the wrong type.
    """
    data = read_yaml(Path(path))
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds a {type(data).__name__}; expected keys such as checkpoint, data and run")
    for option in options:
        _override(data, option)
    return from_dict(kind, _floats(data), str(path))


def _override(data: dict[str, Any], option: str) -> None:
    key, separator, value = option.partition("=")
    if not separator:
        raise ConfigError(f"option {option!r} has no '='; expected e.g. run.lr=1e-5")
    *parents, last = key.split(".")
    group: Any = data
    for parent in parents:
        group = group.setdefault(parent, {}) if isinstance(group, dict) else group[_index(group, parent, option)]
        if not isinstance(group, (dict, list)):
            raise ConfigError(f"option {option!r}: {parent} is not a group of settings")
    group[last if isinstance(group, dict) else _index(group, last, option)] = parse_yaml(value, f"option {option!r}")


def _index(items: list[Any], key: str, option: str) -> int:
    if not key.isdecimal() or int(key) >= len(items):
        raise ConfigError(f"option {option!r}: {key} is no place in a list of {len(items)}; places count from 0")
    return int(key)


def _floats(value: Any) -> Any:
    """YAML 1.1 reads 1e-5, which has no point, as text."""
    if isinstance(value, dict):
        return {key: _floats(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_floats(item) for item in value]
    if isinstance(value, str) and "e" in value.lower():
        try:
            return float(value)
        except ValueError:
            return value
    return value
