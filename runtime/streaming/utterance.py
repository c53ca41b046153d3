"""One utterance of a stream: its audio in the LLM's KV, and an answer that grows with it."""

import threading

import numpy as np

from salmonrun.runtime.audio import F32, SAMPLE_RATE, Audio
from salmonrun.runtime.config import Block, GenerationConfig
from salmonrun.runtime.decoders.kv_cache import Slot
from salmonrun.runtime.heard import Heard, listen
from salmonrun.runtime.model import Model
from salmonrun.runtime.prompt import PromptIds
from salmonrun.runtime.repetition import repeated
from salmonrun.runtime.result import Result
from salmonrun.runtime.search import FinishReason, StopRules, decode_drafted
from salmonrun.runtime.streaming.agreement import LocalAgreement
from salmonrun.runtime.streaming.block_encoder import BlockEncoder


class Utterance:
    """The audio from a first sample on, and what the model answers about it.

    The slot holds the text in front of the audio, then the audio embeddings. An update adds to them (in blocks) or
    replaces them (a growing window), appends the rest of the prompt and the answer, and rolls that back.

    Args:
        slot: for the longest utterance; it may hold what an utterance before this one has left.
        buffer: for the samples of the longest utterance.
    """

    def __init__(
        self,
        model: Model,
        slot: Slot,
        buffer: F32,
        ids: PromptIds,
        config: GenerationConfig,
        block: Block | None,
        agreement: LocalAgreement,
        cancelled: threading.Event,
    ) -> None:
        self._model = model
        self._slot = slot
        self._buffer = buffer
        self.length = 0  # samples heard
        self._ids = ids
        self._config = config
        self._blocks = BlockEncoder(model.encoder, block) if block else None
        self._agreement = agreement
        self._cancelled = cancelled
        self._stop = StopRules(frozenset(model.stop_ids(config)), config.stop_strings, model.tokenizer.decode)
        self._embeds = np.zeros((0, model.bundle.manifest.llm.dim), np.float32)  # of the audio that the slot has
        self.tokens: list[int] = []  # the latest hypothesis, without a stop token
        self._encoded = 0  # samples of the audio that the slot has
        decoder = model.decoder
        kept = min(decoder.length(slot), len(ids.before))  # an utterance before this one has left the same prefix
        decoder.truncate(slot, kept)
        if kept < len(ids.before):
            decoder.prefill(slot, decoder.embed(ids.before[kept:]))

    @property
    def pcm(self) -> F32:
        """The samples heard so far."""
        return self._buffer[: self.length]

    @property
    def room(self) -> int:
        """Samples that can still be heard."""
        return len(self._buffer) - self.length

    def hear(self, pcm: F32) -> None:
        """Append samples [N]."""
        self._buffer[self.length : self.length + len(pcm)] = pcm
        self.length += len(pcm)

    def encode_block(self) -> None:
        """Encode the block that has become complete, if one has: the less is left to do when an answer is wanted."""
        if self._blocks and self._blocks.complete(self.length) and not self.silence(self.pcm):
            self._encode(self.pcm, final=False)

    def update(self) -> list[int]:
        """Answer about the utterance so far; the tokens that become certain."""
        if self.silence(self.pcm):
            return []
        self._encode(self.pcm, final=False)
        if not len(self._embeds):
            return []
        self.tokens, _ = self._answer()
        if repeated(self.tokens):  # nothing of this is certain
            return []
        return self._agreement.add(self.tokens)

    def end(self, wanted: int) -> int:
        """The sample to end at, as near to `wanted` as can be: blocks that are encoded stay."""
        return max(wanted, self._encoded if self._blocks else 0)

    def finish(self, end: int) -> tuple[list[int], FinishReason]:
        """The whole answer, without a stop token, now that the utterance is over and has `end` samples."""
        pcm = self.pcm[:end]
        if self.silence(pcm):
            return [], "stop"
        self._encode(pcm, final=True)
        self.tokens, reason = self._answer()
        return self.tokens, reason

    def silence(self, pcm: F32) -> str:
        """Why some of its audio counts as silence; empty if it does not."""
        return self._model.silence(self._padded(pcm))

    @property
    def certain(self) -> list[int]:
        """Tokens that every further answer begins with."""
        return self._agreement.certain

    def ask(
        self, more: F32, prompt: str | None, task: str | None, question: str | None, config: GenerationConfig
    ) -> Result:
        """Answer another prompt about the utterance so far and `more` samples; nothing of the utterance changes."""
        audio = self._padded(np.concatenate([self.pcm, more])[: len(self._buffer)])
        if self._blocks is None:
            with listen(self._model, audio) as heard:
                return heard.ask(prompt, task=task, question=question, config=config)
        decoder = self._model.decoder
        rest = self._blocks.fork().finish(audio.pcm)
        embeds = np.concatenate([self._embeds, *rest])
        with decoder.open(1, len(self._ids.before) + len(embeds)) as (slot,):
            decoder.fork(self._slot, slot, decoder.length(self._slot))
            for piece in rest:
                decoder.prefill(slot, piece)
            heard = Heard(self._model, audio, embeds, self._ids.before, slot)
            return heard.ask(prompt, task=task, question=question, config=config)

    def _encode(self, pcm: F32, final: bool) -> None:
        """Bring the slot's audio embeddings up to date."""
        decoder = self._model.decoder
        if self._blocks is None:
            if final and len(pcm) == self._encoded:
                return
            self._embeds = self._model.encoder.encode(self._padded(pcm))
            decoder.truncate(self._slot, len(self._ids.before))
            decoder.prefill(self._slot, self._embeds)
        else:
            new = self._blocks.finish(self._padded(pcm).pcm) if final else self._blocks.encode(pcm)
            for piece in new:
                decoder.prefill(self._slot, piece)
            self._embeds = np.concatenate([self._embeds, *new])
        self._encoded = len(pcm)

    def _answer(self) -> tuple[list[int], FinishReason]:
        """The greedy answer to the audio in the slot that begins with what is certain; the slot is left as it was."""
        decoder, audio_end = self._model.decoder, self._model.decoder.length(self._slot)
        certain = self.certain
        try:
            tokens, reason = decode_drafted(
                decoder,
                self._slot,
                self._ids.after,
                certain,
                self.tokens[len(certain) :],
                self._config,
                self._stop,
                self._cancelled.is_set,
            )
        finally:
            decoder.truncate(self._slot, audio_end)
        ended = tokens and tokens[-1] in self._stop.token_ids
        return (tokens[:-1] if ended else tokens), reason

    def _padded(self, pcm: F32) -> Audio:
        """As the model hears recordings: not shorter than the shortest one."""
        return self._model.load_audio(Audio(pcm, SAMPLE_RATE, 1, len(pcm) / SAMPLE_RATE), None)
