"""A bundle in memory: what every way of asking it needs."""

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from salmonrun.runtime.arrays import F32
from salmonrun.runtime.audio import Audio, AudioSource, load_audio
from salmonrun.runtime.bundle import Bundle, open_bundle
from salmonrun.runtime.channel import Channel
from salmonrun.runtime.config import GenerationConfig, Limits
from salmonrun.runtime.cores import thread_count
from salmonrun.runtime.cuda.memory import require_memory
from salmonrun.runtime.cuda.ready import require_gpu, resolve_device
from salmonrun.runtime.cut_text import cut_text
from salmonrun.runtime.decoder import Decoder, check_capacity
from salmonrun.runtime.decoders import choose
from salmonrun.runtime.device import is_gpu
from salmonrun.runtime.encoder import AudioEncoder
from salmonrun.runtime.errors import BundleError, ConfigError, PromptError
from salmonrun.runtime.exhausted import resources
from salmonrun.runtime.held_files import HeldFiles
from salmonrun.runtime.loading import Loading
from salmonrun.runtime.manifest import ConfidenceThreshold
from salmonrun.runtime.prompt import PromptIds, choose_prompt, end_texts, prompt_ids
from salmonrun.runtime.request import Request
from salmonrun.runtime.rounds import Rounds
from salmonrun.runtime.search import StopRules
from salmonrun.runtime.signed import Verify
from salmonrun.runtime.stopwatch import Stopwatch
from salmonrun.runtime.terms import Terms
from salmonrun.runtime.tokenizer import Tokenizer
from salmonrun.runtime.turns import Turns

DEFAULT_TASK = "asr"
NOTHING_HEARD = "no speech: the model heard nothing to transcribe"


class Model:
    """Encoders and whose turn they are, decoder and its rounds, tokenizer, prompts and limits. It does not change."""

    def __init__(
        self,
        bundle: Bundle,
        encoder: AudioEncoder,
        decoder: Decoder[Any],
        limits: Limits,
        files: HeldFiles | None = None,
    ) -> None:
        self.bundle = bundle
        self._files = files  # that weights are mapped from; None: from none
        self.tokenizer = _tokenizer(bundle)
        self._ends = end_texts(bundle.manifest.prompt, self.tokenizer)
        self.encoder = encoder
        self.decoder = decoder
        self.rounds = Rounds(decoder)
        self.encoding = Turns()
        self.limits = limits

    @classmethod
    def load(cls, path: str | os.PathLike[str], verify: Verify, asked: Loading) -> "Model":
        """Open, check and load a bundle; see `Engine.load`."""
        asked.check()
        with resources(f"{os.fspath(path)} cannot be loaded"):
            bundle = replace(open_bundle(path, verify), private=asked.copy)
            return cls.of(bundle, asked, HeldFiles(bundle.model_files))

    @classmethod
    def of(cls, bundle: Bundle, asked: Loading, files: HeldFiles | None = None) -> "Model":
        """Load a bundle that was opened and checked; `files` are the held ones of what it is loaded from."""
        threads, limits = thread_count(asked.threads), asked.limits or Limits()
        device = resolve_device(asked.device, bundle.manifest.target)
        if is_gpu(device):
            require_memory(bundle, device, require_gpu(device), limits)
        decoder = choose(bundle, asked.decoder, device, threads, limits, asked.kv_cache, asked.release_weights)
        encoder = AudioEncoder(bundle, device, threads, asked.encoder, asked.release_weights, limits)
        if files:
            files.check()  # what has been loaded is what was there in the beginning
        return cls(bundle, encoder, decoder, limits, None if bundle.private else files)

    def check_files(self) -> None:
        """See `Engine.check_files`."""
        if self._files:
            self._files.check()

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks this bundle has prompts for."""
        return tuple(self.bundle.manifest.prompt.tasks)

    def load_audio(
        self, source: AudioSource | Audio, sample_rate: int | None, channel: Channel = "first", strict: bool = False
    ) -> Audio:
        """Read audio by this bundle's policy; see `runtime.audio.load_audio`."""
        window = self.bundle.manifest.audio
        return load_audio(
            source,
            sample_rate,
            min_s=window.min_s,
            max_s=window.max_s,
            channel=channel,
            strict=strict,
            limits=self.limits,
        )

    def request(
        self,
        task: str | None = None,
        prompt: str | None = None,
        question: str | None = None,
        config: GenerationConfig | None = None,
    ) -> Request:
        """A task's or an own prompt, and how it is answered; if neither is given, the task `DEFAULT_TASK`.

        Raises:
            ConfigError: settings that this model or its limits do not allow.
            PromptError: no such task, task and prompt, neither and no default, or too long.
        """
        if task is None and prompt is None and DEFAULT_TASK in self.tasks:
            task = DEFAULT_TASK
        config = self._checked(config or GenerationConfig())
        own = self.bundle.manifest.prompt.stop_token_ids
        stop_ids = own if config.stop_token_ids is None else config.stop_token_ids
        nothing = self.tokenizer.encode(self.bundle.manifest.prompt.nothing)
        cuts = (*config.stop_strings, *self._ends)
        # Behind it nothing changes the text any more, but of beams it could be another one that wins.
        ends_there = config.stop_token_ids is None and config.num_beams == 1
        stop = StopRules(
            frozenset(stop_ids),
            cuts if ends_there else config.stop_strings,
            self.tokenizer.decode,
            nothing[0] if nothing else None,
            cuts,
        )
        return Request(self._prompt_ids(task, prompt, question), config, stop)

    def check_capacity(self, request: Request, samples: int) -> None:
        """Refuse a request about so many samples that no slot can hold.

        Raises:
            CapacityError: prompt and answer are longer than the KV cache.
        """
        check_capacity(self.decoder.max_length, self.positions(request, samples))

    def positions(self, request: Request, samples: int) -> int:
        """Positions of a slot that a prompt about so many samples and its answer need at most."""
        prompt = len(request.prompt.before) + len(request.prompt.after)
        return prompt + self.encoder.count(samples) + request.config.max_new_tokens

    def encode(self, audio: Audio, terms: Terms, watch: Stopwatch | None = None) -> F32:
        """Embed one recording, when it is its turn: [N, dim of the LLM].

        Raises:
            CancelledEarlyError: cancelled before.
            DeadlineError: the deadline passed before.
        """
        with self.encoding.turn(terms, "encoding") as waited:
            if watch and waited:
                watch.lap("wait")
            return self.encoder.encode(audio, watch)

    def inputs_embeds(self, prompt: PromptIds, audio_embeds: F32) -> F32:
        """The prompt around the audio [N, dim]: [P, dim]."""
        embed = self.decoder.embed
        return np.concatenate([embed(prompt.before), audio_embeds, embed(prompt.after)])

    def silence(self, audio: Audio) -> str:
        """Why this recording counts as silence; empty if it does not."""
        floor = self.limits.silence_dbfs
        if floor is None or audio.peak_dbfs >= floor:
            return ""
        return f"silence: the peak is {audio.peak_dbfs:.0f} dBFS, below {floor:g} dBFS, so nothing was decoded"

    def text(self, token_ids: Sequence[int]) -> str:
        """The text of an answer's tokens, without one that ends it."""
        return cut_text(self.tokenizer.decode(token_ids), self._ends)

    def heard_nothing(self, text: str) -> bool:
        """Whether an answer's text says, as the model was trained to, that there is nothing to be transcribed."""
        return self.bundle.manifest.prompt.says_nothing(text)

    def low_confidence(self, score: float | None) -> bool | None:
        """Whether an answer of this score is below the bundle's threshold; None: there is no threshold, or no score."""
        threshold = self.bundle.manifest.confidence
        return None if threshold is None or score is None else score < threshold.score

    def rejection(self, score: float | None) -> str:
        """Why an answer of this score is rejected; empty if it is not.

        Raises:
            ConfigError: the bundle has no threshold.
        """
        threshold = self.threshold().score
        if score is None or score >= threshold:
            return ""
        return f"rejected: its score is {score:.2f}, below the bundle's {threshold:.2f}"

    def threshold(self) -> ConfidenceThreshold:
        """What answers are rejected by.

        Raises:
            ConfigError: the bundle has no threshold.
        """
        threshold = self.bundle.manifest.confidence
        if threshold is None:
            raise ConfigError(
                f"reject is asked for, but {self.bundle.folder} has no confidence threshold: export it again with "
                "--calibration-speech ANNOTATION, at least 50 recordings"
            )
        return threshold

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

    def _checked(self, config: GenerationConfig) -> GenerationConfig:
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


def _tokenizer(bundle: Bundle) -> Tokenizer:
    """The bundle's, none of whose ids is beyond the table of embeddings.

    Raises:
        BundleError: it cannot be read, or belongs to another LLM.
    """
    path, rows = bundle.path("tokenizer.json"), bundle.manifest.llm.vocab_size
    tokenizer = Tokenizer(path)
    if tokenizer.largest_id >= rows:
        raise BundleError(
            f"{path} has token {tokenizer.largest_id}, the LLM {rows} tokens: they do not belong together"
        )
    return tokenizer
