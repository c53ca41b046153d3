"""A distillation as YAML: a recipe of fine-tuning, and what the student takes from which teacher."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from salmonrun.runtime.errors import ConfigError
from salmonrun.training.finetuning.recipe import Recipe, read_recipe
from salmonrun.training.pruning.layers import Part


@dataclass(frozen=True)
class DistillConfig:
    """The teacher, and the weight of each term beside run.answer_weight's cross-entropy of the annotated answers."""

    teacher: str  # folder of a checkpoint with the student's tokenizer
    logits: float = 1.0  # weight of the divergence between the distributions of each token of the answers
    hidden: float = 0.0  # weight of the relative squared error of hidden states
    hidden_parts: tuple[Part, ...] = ("llm",)  # whose: of an encoder at all frames, of the LLM where answers are
    qformer: float = 0.0  # weight of the relative squared error of the audio embeddings
    temperature: float = 1.0  # of both distributions; the divergence is multiplied by its square (Hinton et al. 2015)
    forward: float = 1.0  # share of KL(teacher || student); the rest is KL(student || teacher), which seeks modes
    skew: float = 0.0  # share of the first distribution in what it is compared with (DistiLLM, Ko et al. 2024: 0.1)
    top_k: int | None = None  # tell apart the teacher's k most likely tokens, and take the rest as one; None: all
    cache: str | None = None  # folder that keeps those k of every token, so that the teacher runs once

    def __post_init__(self) -> None:
        for name in ("logits", "hidden", "qformer"):
            if getattr(self, name) < 0:
                raise ConfigError(f"distill.{name} is {getattr(self, name)}; it must be at least 0")
        if not (self.logits or self.hidden or self.qformer):
            raise ConfigError("distill.logits, hidden and qformer are all 0; nothing is learned from the teacher")
        if not self.temperature > 0:
            raise ConfigError(f"distill.temperature is {self.temperature}; it must be above 0")
        if not 0 <= self.forward <= 1:
            raise ConfigError(f"distill.forward is {self.forward}; expected a share from 0 to 1")
        if not 0 <= self.skew < 1:
            raise ConfigError(f"distill.skew is {self.skew}; expected a share from 0 to below 1")
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"distill.top_k is {self.top_k}; it must be at least 1")
        if self.hidden and not self.hidden_parts:
            raise ConfigError("distill.hidden has a weight, and hidden_parts is empty; name parts, such as [llm]")
        self._check_cache()

    def _check_cache(self) -> None:
        if self.cache is None:
            return
        if self.top_k is None:
            raise ConfigError("distill.cache keeps the k most likely tokens: say how many (distill.top_k=64)")
        if self.hidden or self.qformer or not self.logits:
            raise ConfigError(
                "distill.cache keeps logits; for hidden states and audio embeddings the teacher has to run: leave "
                "out cache, or set distill.hidden and distill.qformer to 0"
            )


@dataclass(frozen=True)
class DistillRecipe(Recipe):
    """A run of fine-tuning with a teacher; `checkpoint` is the student."""

    distill: DistillConfig = field(kw_only=True)

    @property
    def trains_answers(self) -> bool:
        """Whether the LLM runs: all that is learned from a teacher needs it, but for the audio embeddings."""
        return bool(self.run.answer_weight or self.distill.logits or self.distill.hidden)

    def __post_init__(self) -> None:
        if not self.trains_answers:
            raise ConfigError(
                "distill.qformer alone trains no LLM: give run.answer_weight or distill.logits a weight, however small"
            )
        if self.augment.changes_waveform and (self.distill.qformer or self.distill.hidden):
            raise ConfigError(
                "the teacher hears recordings as they are, so augment would move the frames that distill.hidden and "
                "distill.qformer compare: leave out all but mask_p, or set these to 0"
            )
        super().__post_init__()


def load_distill_recipe(path: str | Path, options: Sequence[str] = ()) -> DistillRecipe:
    """Read a YAML recipe and apply overrides such as "distill.temperature=2".

    Raises:
        ConfigError: not YAML, an unknown or missing key, or a value of the wrong type.
    """
    return read_recipe(DistillRecipe, path, options)
