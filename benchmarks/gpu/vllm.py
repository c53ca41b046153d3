"""The same steps by vLLM, where it is installed: an LLM of the same shape, of random weights."""

import importlib
import importlib.util
import time
from typing import Any

from benchmarks.gpu.plan import Plan
from benchmarks.gpu.steps import BATCHES, PROMPT, STEPS
from benchmarks.peers.models import make_model
from benchmarks.peers.shapes import SHAPES

ROUNDS = 3


def steps(plan: Plan) -> dict[str, Any]:
    """Milliseconds of a step in bfloat16: what further tokens take, the prompt's own time left out."""
    if importlib.util.find_spec("vllm") is None:
        return {"missing": "vLLM is not installed: it was not compared"}
    vllm = importlib.import_module("vllm")
    shape = SHAPES["Llama-3.2-1B" if plan.on_gpu else "tiny-llama"]
    llm = vllm.LLM(
        model=str(make_model(plan.out / "vllm" / shape.name, shape)),
        dtype="bfloat16",
        skip_tokenizer_init=True,
        enable_prefix_caching=False,
        max_model_len=PROMPT + STEPS + 1,
        max_num_seqs=max(BATCHES),
        gpu_memory_utilization=0.5,
    )
    return {"version": vllm.__version__, "ms": {str(batch): _step_ms(vllm, llm, batch) for batch in BATCHES}}


def _step_ms(vllm: Any, llm: Any, batch: int) -> float:
    """The shortest of a few rounds: with all steps, and with the first one alone."""
    _seconds(vllm, llm, batch, STEPS)
    whole = min(_seconds(vllm, llm, batch, STEPS) for _ in range(ROUNDS))
    first = min(_seconds(vllm, llm, batch, 1) for _ in range(ROUNDS))
    return 1000 * (whole - first) / (STEPS - 1)


def _seconds(vllm: Any, llm: Any, batch: int, tokens: int) -> float:
    settings = vllm.SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False)
    prompts = [{"prompt_token_ids": [(row + token) % 256 for token in range(PROMPT)]} for row in range(batch)]
    started = time.perf_counter()
    llm.generate(prompts, settings, use_tqdm=False)
    return time.perf_counter() - started
