"""How long a model takes in PyTorch, measured as `salmonrun latency` measures a bundle."""

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from salmonrun.runtime.config import GenerationConfig
from salmonrun.runtime.features import fbank
from salmonrun.runtime.prompt import choose_prompt
from salmonrun.training.model.features import collate
from salmonrun.training.model.salmonn import SalmonnModel


@dataclass(frozen=True)
class Work:
    """A question of the latency command: what is to be timed."""

    audio: str  # path of a recording
    protocol: Literal["reference", "request"]
    task: str | None
    prompt: str | None
    tokens: int
    beams: int


@torch.inference_mode()
def take_time(model: SalmonnModel, work: Work) -> dict[str, list[float]]:
    """Seconds of one repetition, by metric; see runtime.latency.reference and runtime.latency.request."""
    if work.protocol == "reference":
        return _reference(model, work)
    started = time.perf_counter()
    audio = model.load_audio(work.audio)
    embeds = _prompt(model, model.encode(audio), work)
    if work.beams > 1:
        seconds = _beams(model, embeds, work, started)
    else:
        token_s = [at - started for _, at in greedy(model, embeds, work.tokens)]
        seconds = {"ttft": token_s[:1], "tpot": np.diff(token_s).tolist(), "total": token_s[-1:]}
    return {**seconds, "rtf": [seconds["total"][0] / audio.source_s]}


def _reference(model: SalmonnModel, work: Work) -> dict[str, list[float]]:
    """The log-mel spectrogram is made before the clock starts, the filter bank after: as published."""
    audio = model.load_audio(work.audio)
    features = model.features(audio)
    started = time.perf_counter()
    if model.config.audio_encoder is not None:
        fbank(audio.pcm, model.config.audio_encoder.fbank)
    (audio_embeds,) = model.fuse(model.states(collate([features])))
    first, second = (at - started for _, at in greedy(model, _prompt(model, audio_embeds, work), 2))
    return {"ttft": [first], "tpot": [second - first], "latency": [second]}


def _prompt(model: SalmonnModel, audio_embeds: Tensor, work: Work) -> Tensor:
    return model.embed_prompt(audio_embeds, choose_prompt(model.prompts, work.task, work.prompt, None))


def greedy(model: SalmonnModel, embeds: Tensor, tokens: int) -> list[tuple[int, float]]:
    """So many tokens behind the prompt [1, P, llm_dim], whatever they are, and when each was known."""
    output: Any = model.llm(inputs_embeds=embeds, use_cache=True, logits_to_keep=1)
    timed: list[tuple[int, float]] = []
    while True:
        token = output.logits[:, -1:].argmax(-1)
        timed.append((int(token), time.perf_counter()))
        if len(timed) == tokens:
            return timed
        output = model.llm(input_ids=token, past_key_values=output.past_key_values, use_cache=True)


def _beams(model: SalmonnModel, embeds: Tensor, work: Work, started: float) -> dict[str, list[float]]:
    """transformers' own beam search. It does not tell when it has the first token: the LLM's first pass does."""
    passes: list[float] = []
    watch = model.llm.register_forward_hook(lambda *_: passes.append(time.perf_counter()))
    try:
        answer = GenerationConfig(work.tokens, num_beams=work.beams, stop_token_ids=(), stop_repetition=False)
        model.generate_from(embeds, answer)
    finally:
        watch.remove()
    ended = time.perf_counter()
    tpot = (ended - passes[0]) / (work.tokens - 1)
    return {"ttft": [passes[0] - started], "tpot": [tpot], "total": [ended - started]}


def forget_peak() -> None:
    """Have Linux count the peak anew, as for a loaded bundle; where it may not, loading counts for both."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # proc(5)


def memory_mb() -> dict[str, float]:
    """Resident memory of this process in MiB: now, and the most since `forget_peak` (Linux)."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return {name: int(status[key].split()[0]) / 1024 for name, key in (("steady_mb", "VmRSS"), ("peak_mb", "VmHWM"))}
