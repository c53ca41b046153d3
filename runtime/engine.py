"""The engine: a bundle in memory that turns recordings into text. `Engine.generate` is the data path."""

import os
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np

from runtime.answer import Answer, answer
from runtime.audio import Audio, AudioSource, load_audio
from runtime.bundle import Bundle, open_bundle
from runtime.config import GenerationConfig, Limits
from runtime.encoder import AudioEncoder, Encoded
from runtime.errors import ClosedError, ConfigError, PromptError
from runtime.kv_cache import Slot
from runtime.onnx_decoder import OnnxDecoder
from runtime.prompt import SPEECH_MARK, PromptIds, choose_prompt, prompt_ids
from runtime.report import Report, describe
from runtime.search import FinishReason
from runtime.session import resolve_device, usable_cores
from runtime.tokenizer import Tokenizer


@dataclass(frozen=True)
class Timings:
    """Wall-clock seconds of one request, each read after its work was done."""

    features_s: float = 0.0  # log-mel and filter bank
    encode_s: float = 0.0  # Whisper, BEATs, Q-Former
    prefill_s: float = 0.0  # prompt through the LLM
    ttft_s: float = 0.0  # from the call to the first token; with beams to the end of the prefill
    tpot_s: float = 0.0  # mean of the further tokens
    total_s: float = 0.0
    audio_s: float = 0.0  # length of the recording


@dataclass(frozen=True)
class Result:
    """An answer."""

    text: str
    token_ids: list[int]  # as generated, a final stop token included
    finish_reason: FinishReason
    timings: Timings
    notes: tuple[str, ...] = ()  # what was done to the audio, and why a text is empty


class Engine:
    """A loaded bundle. It does not change: one engine serves any number of threads."""

    def __init__(self, bundle: Bundle, encoder: AudioEncoder, decoder: OnnxDecoder, limits: Limits) -> None:
        self.bundle = bundle
        self.tokenizer = Tokenizer(bundle.path("tokenizer.json"))
        self.encoder = encoder
        self.decoder = decoder
        self.limits = limits

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        device: Literal["auto", "cpu", "cuda"] = "auto",
        decoder: Literal["auto", "onnx"] = "auto",
        threads: int | None = None,
        verify: bool = True,
        limits: Limits | None = None,
    ) -> "Engine":
        """Open, check and load a bundle.

        Args:
            path: the bundle's folder.
            device: "auto" takes what the bundle was exported for, if it is there.
            decoder: what runs the LLM; "auto" takes the fastest there is.
            threads: for each graph; None for all cores this process may use.
            verify: hash every file first.
            limits: what to refuse.

        Raises:
            BundleError: the bundle is damaged, of a newer format, or cannot be loaded.
            DeviceError: the device is not there; nothing falls back in silence.
        """
        if decoder not in ("auto", "onnx"):
            raise ConfigError(f"decoder is {decoder!r}; expected 'auto' or 'onnx'")
        if threads is not None and threads < 1:
            raise ConfigError(f"threads is {threads}; it must be at least 1, or None for all cores")
        bundle = open_bundle(path, verify)
        where = resolve_device(device, bundle.manifest.target)
        count = threads or usable_cores()
        encoder, llm = AudioEncoder(bundle, where, count), OnnxDecoder(bundle, where, count)
        return cls(bundle, encoder, llm, limits or Limits())

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks this bundle has prompts for."""
        return tuple(self.bundle.manifest.prompt.tasks)

    def generate(
        self,
        audio: AudioSource | Audio,
        *,
        task: str | None = None,
        prompt: str | None = None,
        question: str | None = None,
        config: GenerationConfig | None = None,
        sample_rate: int | None = None,
        cancel: threading.Event | None = None,
    ) -> Result:
        """Answer a prompt about a recording.

        Args:
            audio: path, bytes of a file, or a 1-D float or int16 array with `sample_rate`.
            task: one of `tasks`; its prompt is the bundle's.
            prompt: an instruction of your own, instead of `task`.
            question: fills the {} of a task's prompt.
            config: how tokens are chosen; greedy if left out.
            sample_rate: of an array, in Hz.
            cancel: set it from another thread to stop: within one token while decoding, before that at the next stage.

        Raises:
            AudioError: unusable or too long audio.
            PromptError: no such task, or not exactly one of task and prompt.
            CapacityError: prompt and answer do not fit the KV cache.
        """
        return _drain(
            self.generate_iter(
                audio,
                task=task,
                prompt=prompt,
                question=question,
                config=config,
                sample_rate=sample_rate,
                cancel=cancel,
            )
        )

    def generate_iter(
        self,
        audio: AudioSource | Audio,
        *,
        task: str | None = None,
        prompt: str | None = None,
        question: str | None = None,
        config: GenerationConfig | None = None,
        sample_rate: int | None = None,
        cancel: threading.Event | None = None,
    ) -> Generator[str, None, Result]:
        """Like `generate`, but yields pieces of text as they are decoded, and returns the Result.

        Bad input is refused here, before the first piece is asked for. Closing the generator frees its memory. Beam
        search yields its text at the end.
        """
        started = time.perf_counter()
        config = self._check(config or GenerationConfig())
        ids = self._prompt_ids(task, prompt, question)
        heard = self._load_audio(audio, sample_rate)
        positions = len(ids.before) + self.encoder.count(len(heard.pcm)) + len(ids.after) + config.max_new_tokens
        self.decoder.check_capacity(positions)
        return self._answer(heard, ids, config, cancel, started)

    @contextmanager
    def listen(self, audio: AudioSource | Audio, *, sample_rate: int | None = None) -> Iterator["Heard"]:
        """Encode a recording once, keep its KV, and answer many prompts about it: see `Heard.ask`."""
        heard = self._load_audio(audio, sample_rate)
        encoded = self.encoder.encode(heard)
        opening = self._prompt_ids(None, SPEECH_MARK, None).before  # as in every prompt with nothing before the audio
        with self.decoder.open(1, len(opening) + len(encoded.audio_embeds)) as (slot,):
            self.decoder.prefill(slot, np.concatenate([self.decoder.embed(opening), encoded.audio_embeds]))
            yield Heard(self, heard, encoded, opening, slot)

    def report(self) -> Report:
        """What really runs: providers, decoder, precision, threads, memory."""
        return describe(self.bundle, self.encoder, self.decoder)

    def _answer(
        self, heard: Audio, ids: PromptIds, config: GenerationConfig, cancel: threading.Event | None, started: float
    ) -> Generator[str, None, Result]:
        """The data path behind the features: encoders, prompt, LLM, search, text."""
        if note := self._silence(heard):
            return _empty_result(heard, "stop", note, started)
        if cancel and cancel.is_set():
            return _empty_result(heard, "cancelled", "cancelled before encoding", started)
        encoded = self.encoder.encode(heard)
        if cancel and cancel.is_set():
            return _empty_result(heard, "cancelled", "cancelled before decoding", started)
        embed = self.decoder.embed
        inputs_embeds = np.concatenate([embed(ids.before), encoded.audio_embeds, embed(ids.after)])
        with self.decoder.open(config.num_beams, len(inputs_embeds) + config.max_new_tokens) as slots:
            stops = self._stop_ids(config)
            said = yield from answer(self.decoder, self.tokenizer, slots, inputs_embeds, config, stops, cancel)
        return _result(said, heard, encoded, started)

    def _load_audio(self, source: AudioSource | Audio, sample_rate: int | None) -> Audio:
        window = self.bundle.manifest.audio
        return load_audio(source, sample_rate, min_s=window.min_s, max_s=window.max_s)

    def _prompt_ids(self, task: str | None, prompt: str | None, question: str | None) -> PromptIds:
        text = choose_prompt(self.bundle.manifest.prompt, task, prompt, question)
        if len(text) > self.limits.max_prompt_chars:
            raise PromptError(
                f"the prompt has {len(text)} characters, the limit is {self.limits.max_prompt_chars}: "
                "shorten it, or load the engine with Limits(max_prompt_chars=...)"
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise PromptError(f"the prompt is not valid Unicode ({error.reason}); pass UTF-8 text") from error
        return prompt_ids(self.bundle.manifest.prompt, self.tokenizer, text)

    def _check(self, config: GenerationConfig) -> GenerationConfig:
        if config.num_beams > self.limits.max_beams:
            raise ConfigError(
                f"num_beams is {config.num_beams}, the limit is {self.limits.max_beams}: "
                "lower it, or load the engine with Limits(max_beams=...)"
            )
        vocab_size = self.bundle.manifest.llm.vocab_size
        unknown = [token for token in config.stop_token_ids or () if token >= vocab_size]
        if unknown:
            raise ConfigError(f"stop_token_ids has {unknown[0]}; this model's tokens are 0 to {vocab_size - 1}")
        return config

    def _stop_ids(self, config: GenerationConfig) -> tuple[int, ...]:
        own = self.bundle.manifest.prompt.stop_token_ids
        return own if config.stop_token_ids is None else config.stop_token_ids

    def _silence(self, audio: Audio) -> str:
        """Why this recording counts as silence; empty if it does not."""
        floor = self.limits.silence_dbfs
        if floor is None or audio.peak_dbfs >= floor:
            return ""
        return f"silence: the peak is {audio.peak_dbfs:.0f} dBFS, below {floor:g} dBFS, so nothing was decoded"


class Heard:
    """A recording that was encoded once. Ask as often as you like, from several threads if you like."""

    def __init__(self, engine: Engine, audio: Audio, encoded: Encoded, opening: tuple[int, ...], slot: Slot) -> None:
        self._engine = engine
        self._audio = audio
        self._encoded = encoded
        self._opening = opening  # ids before the audio that the slot has
        self._slot = slot  # KV of opening and audio

    def ask(
        self,
        prompt: str | None = None,
        *,
        task: str | None = None,
        question: str | None = None,
        config: GenerationConfig | None = None,
        cancel: threading.Event | None = None,
    ) -> Result:
        """Answer a prompt about the recording, as `Engine.generate` would; only the prompt's text is computed."""
        return _drain(self.ask_iter(prompt, task=task, question=question, config=config, cancel=cancel))

    def ask_iter(
        self,
        prompt: str | None = None,
        *,
        task: str | None = None,
        question: str | None = None,
        config: GenerationConfig | None = None,
        cancel: threading.Event | None = None,
    ) -> Generator[str, None, Result]:
        """Like `ask`, but yields pieces of text as they are decoded. Bad input is refused here."""
        started = time.perf_counter()
        self._check_open()
        config = self._engine._check(config or GenerationConfig())
        return self._answer(self._engine._prompt_ids(task, prompt, question), config, cancel, started)

    def _check_open(self) -> None:
        if self._slot.cache.released:
            raise ClosedError("this recording is closed: ask inside the `with engine.listen(...)` block")

    def _answer(
        self, ids: PromptIds, config: GenerationConfig, cancel: threading.Event | None, started: float
    ) -> Generator[str, None, Result]:
        engine, decoder = self._engine, self._engine.decoder
        self._check_open()
        if note := engine._silence(self._audio):
            return _empty_result(self._audio, "stop", note, started)
        shared = ids.before == self._opening
        embeds = decoder.embed(ids.after)
        if not shared:  # text in front of the audio: its KV cannot be reused, its embeddings can
            embeds = np.concatenate([decoder.embed(ids.before), self._encoded.audio_embeds, embeds])
        kept = self._slot.length if shared else 0
        with decoder.open(config.num_beams, kept + len(embeds) + config.max_new_tokens) as slots:
            decoder.fork(self._slot, slots[0], kept)
            stops = engine._stop_ids(config)
            said = yield from answer(decoder, engine.tokenizer, slots, embeds, config, stops, cancel)
        return _result(said, self._audio, None, started)


def _result(said: Answer, audio: Audio, encoded: Encoded | None, started: float) -> Result:
    timings = Timings(
        features_s=encoded.features_s if encoded else 0.0,
        encode_s=encoded.encode_s if encoded else 0.0,
        prefill_s=said.prefill_s,
        ttft_s=said.first_token_at - started,
        tpot_s=said.tpot_s,
        total_s=time.perf_counter() - started,
        audio_s=audio.source_s,
    )
    return Result(said.text, said.token_ids, said.finish_reason, timings, audio.notes)


def _empty_result(audio: Audio, reason: FinishReason, note: str, started: float) -> Result:
    timings = Timings(total_s=time.perf_counter() - started, audio_s=audio.source_s)
    return Result("", [], reason, timings, (*audio.notes, note))


def _drain(pieces: Generator[str, None, Result]) -> Result:
    """Run a generator for its return value."""
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            result: Result = end.value
            return result
