"""How long a step of the LLM takes, by batch and kernels, and what a bundle takes of a GPU's memory."""

import time
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.models import folder, loaded
from benchmarks.gpu.plan import Plan
from salmonrun.runtime import GenerationConfig
from salmonrun.runtime.bundle import open_bundle
from salmonrun.runtime.cores import usable_cores
from salmonrun.runtime.decoder import Chunk, prefill
from salmonrun.runtime.decoders.torch_decoder.attention import Attention, sdpa
from salmonrun.runtime.decoders.torch_decoder.decoder import TorchDecoder
from salmonrun.runtime.latency.recording import Recording
from salmonrun.runtime.report import resident_bytes

BATCHES = (1, 4, 16)
PROMPT = 128  # positions before the steps
STEPS = 200  # that are timed, at most
MIB = 2**20
# What is compared with what is chosen. A kernel that is to be set beside another is one more row.
WAYS: dict[str, dict[str, Any]] = {
    "as chosen": {},
    "without CUDA graphs": {"captured": False},
    "sdpa": {"attention": Attention("sdpa", False, sdpa)},
}
# A CPU only interprets them.
ON_GPU: dict[str, dict[str, Any]] = {"kernels in Triton": {"kernels": "triton"}}


def decoder_steps(plan: Plan, bundle: str) -> dict[str, Any]:
    """Milliseconds of a step (median) in every way that this machine has, each once, by its kernels."""
    opened, found = open_bundle(folder(plan, bundle), verify=False), dict[str, Any]()
    for way, settings in (WAYS | (ON_GPU if plan.on_gpu else {})).items():
        decoder = TorchDecoder.load(opened, plan.device, usable_cores(), **settings)
        kernels = decoder.describe().kernels
        if kernels not in [other["kernels"] for other in found.values()]:
            times = {str(batch): _median_ms(decoder, batch, plan.seconds / 4) for batch in BATCHES}
            found[way] = {"kernels": kernels, "ms": times}
    return found


def memory(plan: Plan, bundle: str) -> dict[str, Any]:
    """MiB that a bundle takes: of the GPU, whoever asked for them; on a CPU of the process."""
    begin = _taken(plan)
    with loaded(plan, bundle, plan.device) as engine:
        weights = _taken(plan) - begin
        recording = Recording.load(None).cut(min(30.0, engine.bundle.manifest.audio.max_s))
        config = GenerationConfig(max_new_tokens=32, stop_token_ids=(), stop_repetition=False)
        engine.generate(recording, prompt="?", config=config, sample_rate=16_000)
        return {
            "loaded_mib": weights,
            "answered_mib": _taken(plan) - begin,
            "cache_mib": engine.report().cache_bytes / MIB,
            "bundle_mib": engine.report().bundle_bytes / MIB,
        }


def _median_ms(decoder: TorchDecoder, batch: int, seconds: float) -> float:
    """Of steps whose likeliest tokens are asked for, as greedy search does; each ends when they are on the host."""
    times: list[float] = []
    with decoder.open(batch, PROMPT + STEPS + 3) as slots:
        for slot in slots:
            prefill(decoder, slot, decoder.embed([token % 256 for token in range(PROMPT)]))
        chunks = [Chunk(slot, [7], likeliest=True) for slot in slots]
        for _ in range(3):  # makes the graph, and loads kernels
            decoder.forward(chunks)
        end = time.perf_counter() + seconds
        while len(times) < STEPS and (len(times) < 5 or time.perf_counter() < end):
            started = time.perf_counter()
            decoder.forward(chunks)
            times.append(time.perf_counter() - started)
    return 1000 * float(np.median(times))


def _taken(plan: Plan) -> float:
    if not plan.on_gpu:
        return (resident_bytes() or 0) / MIB
    free, all_of_it = torch.cuda.mem_get_info(plan.device)
    return float(all_of_it - free) / MIB
