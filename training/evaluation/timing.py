"""How long a model takes in PyTorch, measured as `python -m runtime latency` measures a bundle."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from runtime.config import GenerationConfig
from runtime.features import fbank
from runtime.prompt import choose_prompt
from training.features import collate
from training.model import SalmonnModel


@dataclass(frozen=True)
class Work:
    """One measurement."""

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
        found = _beams(model, embeds, work, started)
    else:
        token_s = [at - started for at in _greedy(model, embeds, work.tokens)]
        found = {"ttft": token_s[:1], "tpot": np.diff(token_s).tolist(), "total": token_s[-1:]}
    return {**found, "rtf": [found["total"][0] / audio.source_s]}


def _reference(model: SalmonnModel, work: Work) -> dict[str, list[float]]:
    """The log-mel spectrogram is made before the clock starts, the filter bank after: as published."""
    audio = model.load_audio(work.audio)
    features = model.features(audio)
    started = time.perf_counter()
    if model.config.audio_encoder is not None:
        fbank(audio.pcm, model.config.audio_encoder.fbank)
    (audio_embeds,) = model.fuse(model.encode_states(collate([features])))
    first, second = (at - started for at in _greedy(model, _prompt(model, audio_embeds, work), 2))
    return {"ttft": [first], "tpot": [second - first], "latency": [second]}


def _prompt(model: SalmonnModel, audio_embeds: Tensor, work: Work) -> Tensor:
    return model.embed_prompt(audio_embeds, choose_prompt(model.prompts, work.task, work.prompt, None))


def _greedy(model: SalmonnModel, embeds: Tensor, tokens: int) -> list[float]:
    """When each of so many tokens was known."""
    output: Any = model.llm(inputs_embeds=embeds, use_cache=True, logits_to_keep=1)
    token = output.logits[:, -1:].argmax(-1)
    times = [time.perf_counter()]
    while len(times) < tokens:
        output = model.llm(input_ids=token, past_key_values=output.past_key_values, use_cache=True)
        token = output.logits[:, -1:].argmax(-1)
        times.append(time.perf_counter())
    return times


def _beams(model: SalmonnModel, embeds: Tensor, work: Work, started: float) -> dict[str, list[float]]:
    """transformers' own beam search; its first token is not seen, so a prefill of its own says when that would be."""
    encoded = time.perf_counter()
    model.llm(inputs_embeds=embeds, logits_to_keep=1)
    prefill = time.perf_counter() - encoded
    begun = time.perf_counter()
    model.generate_from(embeds, GenerationConfig(work.tokens, num_beams=work.beams, stop_token_ids=()))
    searched = time.perf_counter() - begun
    ttft = encoded - started + prefill
    tpot = (searched - prefill) / (work.tokens - 1)
    return {"ttft": [ttft], "tpot": [tpot], "total": [encoded - started + searched]}


def memory_mb() -> dict[str, float]:
    """Resident memory of this process in MiB: now, and the most since it began (Linux)."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return {name: int(status[key].split()[0]) / 1024 for name, key in (("steady_mb", "VmRSS"), ("peak_mb", "VmHWM"))}
