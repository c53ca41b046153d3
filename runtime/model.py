"""A bundle in memory: what every way of asking it needs."""

from salmonrun.runtime.audio import Audio, AudioSource, load_audio
from salmonrun.runtime.bundle import Bundle
from salmonrun.runtime.config import GenerationConfig, Limits
from salmonrun.runtime.decoders.onnx_decoder import OnnxDecoder
from salmonrun.runtime.encoder import AudioEncoder
from salmonrun.runtime.errors import ConfigError, PromptError
from salmonrun.runtime.prompt import PromptIds, choose_prompt, prompt_ids
from salmonrun.runtime.tokenizer import Tokenizer


class Model:
    """Graphs, tokenizer, prompts and limits. It does not change."""

    def __init__(self, bundle: Bundle, encoder: AudioEncoder, decoder: OnnxDecoder, limits: Limits) -> None:
        self.bundle = bundle
        self.tokenizer = Tokenizer(bundle.path("tokenizer.json"))
        self.encoder = encoder
        self.decoder = decoder
        self.limits = limits

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks this bundle has prompts for."""
        return tuple(self.bundle.manifest.prompt.tasks)

    def load_audio(self, source: AudioSource | Audio, sample_rate: int | None) -> Audio:
        """Read audio by this bundle's policy; see `salmonrun.runtime.audio.load_audio`."""
        window = self.bundle.manifest.audio
        return load_audio(source, sample_rate, min_s=window.min_s, max_s=window.max_s)

    def prompt_ids(self, task: str | None, prompt: str | None, question: str | None) -> PromptIds:
        """Token ids of a task's or an own prompt, in front of the audio and behind it.

        Raises:
            PromptError: no such task, not exactly one of task and prompt, or too long.
        """
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

    def check(self, config: GenerationConfig) -> GenerationConfig:
        """The same settings, if this engine accepts them.

        Raises:
            ConfigError: it does not.
        """
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

    def stop_ids(self, config: GenerationConfig) -> tuple[int, ...]:
        """Tokens that end an answer."""
        own = self.bundle.manifest.prompt.stop_token_ids
        return own if config.stop_token_ids is None else config.stop_token_ids

    def positions(self, ids: PromptIds, samples: int, config: GenerationConfig) -> int:
        """Positions of a slot that a prompt about so many samples and its answer need at most."""
        return len(ids.before) + self.encoder.count(samples) + len(ids.after) + config.max_new_tokens

    def silence(self, audio: Audio) -> str:
        """Why this recording counts as silence; empty if it does not."""
        floor = self.limits.silence_dbfs
        if floor is None or audio.peak_dbfs >= floor:
            return ""
        return f"silence: the peak is {audio.peak_dbfs:.0f} dBFS, below {floor:g} dBFS, so nothing was decoded"
