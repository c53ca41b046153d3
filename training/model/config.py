"""What a checkpoint is made of: frozen dataclasses, read strictly from its config.json."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from salmonrun.runtime.config import AudioConfig, BlockConfig, Distillation, PromptConfig, Pruning
from salmonrun.runtime.errors import CheckpointError, ConfigError
from salmonrun.runtime.file_kind import explained
from salmonrun.runtime.schema import OPTIONAL, from_dict, to_dict
from salmonrun.training.model.encoders import AudioEncoderConfig
from salmonrun.training.model.features import FRAMES_PER_S, FrontEnd
from salmonrun.training.model.sizes import MAX_LAYERS, MAX_SIZE
from salmonrun.training.model.sizes import LoraConfig as LoraConfig
from salmonrun.training.model.sizes import QFormerConfig as QFormerConfig
from salmonrun.training.model.sizes import WhisperConfig as WhisperConfig

FORMAT_VERSION = 1
# Of an LLM's config.json.
LLM_SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "num_experts", "num_local_experts", "moe_intermediate_size"),
)


@dataclass(frozen=True)
class PartSource:
    """Where the weights of a pretrained part are, what their bytes must be, and what is not taken as it is there."""

    path: str  # a file or folder; in a config.json relative to its folder, or absolute
    sha256: dict[str, str]  # file name -> hash; for a single file the key is its name; empty until it is pinned
    hub: str | None = None  # where to get it if `path` is not there: org/name@commit or org/name/file@commit
    left_out_layers: tuple[int, ...] = ()  # numbered as in the files; what is left is numbered anew
    adapter: "PartSource | None" = None  # PEFT folder, merged before layers are left out (LLM only)


@dataclass(frozen=True)
class Sources:
    """Parts that a checkpoint refers to. None: the part is stored in model.safetensors, or there is none."""

    whisper: PartSource | None = None
    audio_encoder: PartSource | None = None
    llm: PartSource | None = None

    def of(self, part: str) -> PartSource:
        """Where a part is that is surely referred to."""
        source: PartSource | None = getattr(self, part)
        assert source is not None, f"{part} is not referred to"
        return source

    def items(self) -> list[tuple[str, PartSource]]:
        """The parts that are referred to, by name."""
        return [(part, source) for part in SOURCED if (source := getattr(self, part)) is not None]

    def map(self, change: Callable[[PartSource], PartSource]) -> "Sources":
        """The same parts, each source changed."""
        return Sources(**{part: change(source) for part, source in self.items()})


SOURCED = tuple(part.name for part in fields(Sources))  # the parts that need not be stored


@dataclass(frozen=True)
class ModelConfig:
    """A whole audio language model."""

    whisper: WhisperConfig
    audio_encoder: AudioEncoderConfig | None  # beside Whisper; None: Whisper is the only encoder
    qformer: QFormerConfig
    llm: dict[str, Any]  # the LLM's config.json, as transformers writes it
    prompt: PromptConfig
    audio: AudioConfig = field(default_factory=AudioConfig)
    lora: LoraConfig | None = None  # on the LLM
    whisper_lora: LoraConfig | None = None  # on Whisper's encoder
    streaming: BlockConfig | None = None  # encoders that were trained on blocks, too
    sources: Sources = field(default_factory=Sources)
    name: str = "salmonn"
    format_version: int = FORMAT_VERSION
    pruning: tuple[Pruning, ...] = field(default=(), metadata=OPTIONAL)  # its lineage, the oldest step first
    distillation: tuple[Distillation, ...] = field(default=(), metadata=OPTIONAL)  # its teachers, the first one first

    def __post_init__(self) -> None:
        if self.format_version > FORMAT_VERSION:
            raise ConfigError(f"format_version {self.format_version} is newer than {FORMAT_VERSION}; update salmonrun")
        if self.audio.n_mels != self.whisper.n_mels:
            raise ConfigError(f"audio.n_mels {self.audio.n_mels} and whisper.n_mels {self.whisper.n_mels} differ")
        frames = round(self.audio.max_s * FRAMES_PER_S)
        if frames > self.whisper.max_frames:
            raise ConfigError(f"audio.max_s takes {frames} frames, whisper.max_frames is {self.whisper.max_frames}")
        if self.qformer.window.frames > frames:
            raise ConfigError(f"a Q-Former window of {self.qformer.window.frames} frames does not fit into {frames}")
        if self.streaming:
            self.streaming.check(self.audio, self.qformer.window)
        if self.audio_encoder:
            self._check_audio_encoder(self.audio_encoder)
        for key in ("model_type", "hidden_size", "vocab_size"):
            if self.llm.get(key) is None:
                raise ConfigError(f"llm has no {key!r}; it must be the LLM's config.json")
        self._check_llm()

    def _check_llm(self) -> None:
        """Sizes that transformers would lay out whatever they are."""
        for key, value in self.llm.items():
            most = MAX_LAYERS if key == "num_hidden_layers" else MAX_SIZE
            if key in LLM_SIZES and value is not None and (type(value) is not int or not 1 <= value <= most):
                raise ConfigError(f"llm.{key} is {value!r}; expected 1 to {most}")

    def _check_audio_encoder(self, encoder: AudioEncoderConfig) -> None:
        if self.streaming and not encoder.block_causal:
            raise ConfigError(f"streaming needs encoders that can hear in blocks, which {encoder.kind!r} cannot")
        if self.audio.max_s > encoder.longest_s:
            raise ConfigError(
                f"audio.max_s is {self.audio.max_s:g}, but the audio encoder has positions for {encoder.longest_s:g} s "
                "only: lower it (--max-s), or take one with more"
            )

    @property
    def front_end(self) -> FrontEnd:
        """What comes before the encoders."""
        return FrontEnd(self.audio, self.qformer.window, self.audio_encoder.fbank if self.audio_encoder else None)

    def left_out_layers(self, part: str) -> tuple[int, ...]:
        """The layers that a part goes without, as they are numbered in the whole part."""
        steps = [step for step in self.pruning if step.part == part]
        if steps:
            return steps[-1].left_out
        source: PartSource | None = getattr(self.sources, part)
        return source.left_out_layers if source else ()

    @property
    def llm_dim(self) -> int:
        """Width of the LLM's input embeddings."""
        return int(self.llm["hidden_size"])


def load_config(folder: str | Path) -> ModelConfig:
    """Read a checkpoint's config.json.

    Raises:
        CheckpointError: there is none, it is not JSON, or a key is unknown, missing or of the wrong type.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; a checkpoint folder has config.json and model.safetensors")
    try:
        return from_dict(ModelConfig, json.loads(path.read_text(encoding="utf-8")), str(path))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, or nested without end
        raise CheckpointError(f"{path}: {explained(path, error)}") from error


def save_config(config: ModelConfig, folder: str | Path) -> None:
    """Write config.json into the checkpoint folder."""
    (Path(folder) / "config.json").write_text(json.dumps(to_dict(config), indent=2, ensure_ascii=False) + "\n")
