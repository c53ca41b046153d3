"""Low-rank adapters (Hu et al. 2021, eq. 3: W + alpha / r * B @ A): trained by peft, stored under our names, merged."""

from collections.abc import Callable

from torch import Tensor, nn

from salmonrun.runtime.errors import CheckpointError
from salmonrun.training.model.config import LoraConfig
from salmonrun.training.tensors import LazyTensors, load_strict


def add_lora(module: nn.Module, config: LoraConfig, what: str) -> None:
    """Put peft's adapters on the module's target layers, in place; in float32, whatever the layers have.

    Args:
        module: an LLM or a Whisper encoder.
        config: rank, scale and targets.
        what: names the adapters in errors: "lora" or "whisper_lora".

    Raises:
        CheckpointError: no layer has a target's name, or it is not a linear one.
    """
    import peft  # here, since it imports bitsandbytes where that is installed: seconds, for whoever has no adapters

    adapters = peft.LoraConfig(
        r=config.r, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=list(config.targets)
    )
    for target in config.targets:
        layers = [layer for name, layer in module.named_modules() if name.split(".")[-1] == target]
        if not layers or not all(isinstance(layer, nn.Linear) for layer in layers):
            linear = {name.split(".")[-1] for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}
            raise CheckpointError(f"{what}.targets has {target!r}; linear layers here are {', '.join(sorted(linear))}")
    try:
        peft.inject_adapter_in_model(adapters, module)
    except ValueError as error:
        raise CheckpointError(f"{what}.targets {config.targets} do not fit this model: {error}") from error
    for parameter in lora_parameters(module).values():
        parameter.data = parameter.data.float()


def lora_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Adapter parameters under our names: `model.layers.0.self_attn.q_proj.A` [r, in] and `.B` [out, r]."""
    adapters: dict[str, nn.Parameter] = {}
    for name, parameter in module.named_parameters():
        for matrix in ("A", "B"):
            suffix = f".lora_{matrix}.default.weight"
            if name.endswith(suffix):
                adapters[f"{name.removesuffix(suffix)}.{matrix}"] = parameter
    return adapters


def base_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The module's own parameters under the names of its files, adapters left out."""
    return {
        name.replace(".base_layer.", "."): parameter
        for name, parameter in module.named_parameters()
        if ".lora_" not in name
    }


def load_lora(module: nn.Module, tensors: LazyTensors, what: str) -> None:
    """Fill the adapters strictly from tensors under our names; `what` is as for add_lora."""
    load_strict(dict(lora_parameters(module)), tensors, f"{what} (see {what}.r and {what}.targets in the config)")


def merged_weights(tensors: LazyTensors, lora: LazyTensors, config: LoraConfig | None) -> LazyTensors:
    """The tensors with the adapters added in float32. Read one by one.

    Raises:
        CheckpointError: an adapter's layer has no weights of its own: an output layer that is tied to the embeddings.
    """
    merged = dict(tensors)
    if config is None:
        return merged
    for name in {name.rsplit(".", 1)[0] for name in lora}:
        if f"{name}.weight" not in tensors:
            raise CheckpointError(f"the adapters of {name} cannot be merged: there is no {name}.weight to add them to")
        merged[f"{name}.weight"] = _merge(tensors[f"{name}.weight"], lora[f"{name}.A"], lora[f"{name}.B"], config.scale)
    return merged


def _merge(
    weight: Callable[[], Tensor], a: Callable[[], Tensor], b: Callable[[], Tensor], scale: float
) -> Callable[[], Tensor]:
    return lambda: weight().float() + scale * (b().float() @ a().float())
