"""The LLM families whose graphs can be built, and what the graph needs to know of a config.

What a layer of a family has (biases, norms of queries and keys, experts) is read from the names of its tensors, which
must be exactly those of transformers' model of the family. What no name tells stands in FAMILIES.
"""

from dataclasses import dataclass
from typing import Any, Literal

from transformers import PreTrainedConfig

from salmonrun.runtime.errors import ConfigError
from salmonrun.runtime.manifest import ExpertSpec
from salmonrun.training.model.llm import llm_config


@dataclass(frozen=True)
class Family:
    """What the tensors' names do not tell."""

    # Which layers see no more than `sliding_window` positions, if the config has one.
    window: Literal["none", "all", "layer types"] = "none"
    # Whether the weights of the experts chosen sum to one; None: as the config's norm_topk_prob says.
    normalised_experts: bool | None = None


FAMILIES = {
    "llama": Family(),  # 2 and 3, Vicuna, SmolLM2, DeepSeek-R1-Distill-Llama
    "mistral": Family(window="all"),
    "qwen2": Family(window="layer types"),  # 2.5 and DeepSeek-R1-Distill-Qwen, too
    "qwen3": Family(window="layer types"),
    "mixtral": Family(window="all", normalised_experts=True),
    "qwen2_moe": Family(window="layer types"),
    "qwen3_moe": Family(window="all"),
}


@dataclass(frozen=True)
class LlmShape:
    """What of an LLM's config the graph needs."""

    config: PreTrainedConfig
    layers: int
    dim: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    eps: float
    tied: bool
    windows: tuple[int | None, ...]  # of each layer: positions it sees, its own included; None: all
    experts: ExpertSpec | None

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "LlmShape":
        """Read the config of a supported family as transformers does.

        Raises:
            ConfigError: another family, or a variant the graph does not have.
            CheckpointError: transformers does not take the config.
        """
        name = config.get("model_type")
        if name not in FAMILIES:
            raise ConfigError(f"LLM family {name!r} cannot be exported; supported: {', '.join(FAMILIES)}")
        family, read = FAMILIES[name], llm_config(config)
        if read.hidden_act != "silu":
            raise ConfigError(f"llm.hidden_act is {read.hidden_act!r}; only 'silu' is supported")
        head_dim = int(getattr(read, "head_dim", None) or read.hidden_size // read.num_attention_heads)
        if head_dim % 16:
            raise ConfigError(f"head_dim is {head_dim}; the attention kernel needs a multiple of 16")
        return cls(
            config=read,
            layers=read.num_hidden_layers,
            dim=read.hidden_size,
            heads=read.num_attention_heads,
            kv_heads=read.num_key_value_heads,
            head_dim=head_dim,
            vocab_size=read.vocab_size,
            eps=read.rms_norm_eps,
            tied=bool(read.tie_word_embeddings),
            windows=_windows(family, read),
            experts=_experts(family, read),
        )


def _experts(family: Family, config: PreTrainedConfig) -> ExpertSpec | None:
    if not hasattr(config, "num_experts_per_tok"):
        return None
    normalised = family.normalised_experts
    return ExpertSpec(config.num_experts_per_tok, config.norm_topk_prob if normalised is None else normalised)


def _windows(family: Family, config: PreTrainedConfig) -> tuple[int | None, ...]:
    window = None if family.window == "none" else config.sliding_window or None
    if family.window != "layer types":
        return (window,) * config.num_hidden_layers
    unknown = set(config.layer_types) - {"full_attention", "sliding_attention"}
    if unknown:
        raise ConfigError(f"llm.layer_types has {sorted(unknown)}; supported: full_attention, sliding_attention")
    return tuple(window if kind == "sliding_attention" else None for kind in config.layer_types)
