"""The names in SALMONN and Nota files and ours, and what such files hold that is not needed."""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from salmonrun.runtime.errors import CheckpointError
from salmonrun.training.tensors import LazyTensors, account_for

# Published name -> ours. `{i}` is a layer.
QFORMER_NAMES = (
    (r"ln_speech\.(weight|bias)", r"qformer.ln_speech.\1"),
    (r"ln_audio\.(weight|bias)", r"qformer.ln_audio.\1"),
    (r"speech_query_tokens", r"qformer.query_tokens"),
    (r"speech_llama_proj\.(weight|bias)", r"qformer.proj.\1"),
    (r"speech_Qformer\.bert\.embeddings\.LayerNorm\.(weight|bias)", r"qformer.embed_norm.\1"),
    (
        r"speech_Qformer\.bert\.encoder\.layer\.(\d+)\.attention\.self\.(\w+)\.(\w+)",
        r"qformer.layers.\1.self_attn.\2.\3",
    ),
    (
        r"speech_Qformer\.bert\.encoder\.layer\.(\d+)\.crossattention\.self\.(\w+)\.(\w+)",
        r"qformer.layers.\1.cross_attn.\2.\3",
    ),
    (
        r"speech_Qformer\.bert\.encoder\.layer\.(\d+)\.attention\.output\.dense\.(\w+)",
        r"qformer.layers.\1.self_attn.out.\2",
    ),
    (
        r"speech_Qformer\.bert\.encoder\.layer\.(\d+)\.attention\.output\.LayerNorm\.(\w+)",
        r"qformer.layers.\1.self_attn.norm.\2",
    ),
    (
        r"speech_Qformer\.bert\.encoder\.layer\.(\d+)\.crossattention\.output\.dense\.(\w+)",
        r"qformer.layers.\1.cross_attn.out.\2",
    ),
    (
        r"speech_Qformer\.bert\.encoder\.layer\.(\d+)\.crossattention\.output\.LayerNorm\.(\w+)",
        r"qformer.layers.\1.cross_attn.norm.\2",
    ),
    (r"speech_Qformer\.bert\.encoder\.layer\.(\d+)\.intermediate_query\.dense\.(\w+)", r"qformer.layers.\1.fc1.\2"),
    (r"speech_Qformer\.bert\.encoder\.layer\.(\d+)\.output_query\.dense\.(\w+)", r"qformer.layers.\1.fc2.\2"),
    (r"speech_Qformer\.bert\.encoder\.layer\.(\d+)\.output_query\.LayerNorm\.(\w+)", r"qformer.layers.\1.norm.\2"),
)
# An LLM in AutoAWQ's wrapper has one `model` more (NOTA-09).
LORA_NAMES = (
    (
        r"llama_model\.base_model\.model\.(?:model\.)?(model\.layers\.\d+\.[\w.]+)\.lora_([AB])\.default\.weight",
        r"lora.\1.\2",
    ),
    (
        r"speech_encoder\.base_model\.model\.(layers\.\d+\.[\w.]+)\.lora_([AB])\.default\.weight",
        r"whisper_lora.\1.\2",
    ),
)
LM_HEAD_NAME = r"llama_model\.(?:base_model\.model\.)?(?:model\.)?lm_head\.weight"
LEFTOVERS = (
    (r"beats\.encoder\.layers\.\d+\.self_attn\.relative_attention_bias\.weight", "copy of BEATs' shared bias table"),
    (r"speech_Qformer\.bert\.embeddings\.position_ids", "unused buffer of BERT"),
    (r"llama_model\..*rotary_emb\.inv_freq", "rotary frequencies, which follow from the config"),
    (
        r"llama_model\..*\.weight\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.bitsandbytes__\w+)",
        "scales of the frozen LLM, which was held in 4 bits while it was trained on (QLoRA)",
    ),
    (
        r"llama_model\..*\.(SCB|weight_format)",
        "scales of the frozen LLM, which was held in 8 bits while it was trained on",
    ),
    (r"llama_model\..*\.(qweight|qzeros|scales)", "4-bit weights (AWQ) of the frozen LLM, which is given apart"),
    (LM_HEAD_NAME, "tied output layer of the frozen LLM"),
)
RUN_STATE = {
    "optimizer": "state of the optimizer that trained it",
    "scaler": "state of the loss scaling that trained it",
    "epoch": "how long it was trained",
}
USED = ("model", "config", "pruned_layers", "whisper_prune")


def rename_salmonn(state: LazyTensors, where: Path) -> tuple[LazyTensors, dict[str, str]]:
    """A .pth's tensors under our names (`qformer.*`, `lora.*`, `whisper_lora.*`), and its leftovers with the reason.

    Raises:
        CheckpointError: a key is neither used nor a known leftover.
    """
    renamed, leftovers = account_for(state, (*QFORMER_NAMES, *LORA_NAMES), LEFTOVERS, str(where))
    if query := renamed.get("qformer.query_tokens"):
        renamed["qformer.query_tokens"] = _squeeze(query, where)
    return renamed, leftovers


def run_state(entries: set[str], where: Path) -> dict[str, str]:
    """What stands beside the model in a .pth and is not needed, with the reason.

    Raises:
        CheckpointError: an entry is neither used nor known.
    """
    unknown = sorted(entries - set(RUN_STATE) - set(USED))
    if unknown:
        raise CheckpointError(f"{where} has entries that are not known: {', '.join(unknown)}")
    return {name: reason for name, reason in RUN_STATE.items() if name in entries}


def _squeeze(get: Callable[[], Tensor], where: Path) -> Callable[[], Tensor]:
    shape = get().shape
    if len(shape) != 3 or shape[0] != 1:
        raise CheckpointError(f"{where}: speech_query_tokens is {list(shape)}; expected [1, queries, width]")
    return lambda: get().squeeze(0)
