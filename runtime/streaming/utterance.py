"""One utterance of a stream: its audio in the LLM's KV, and an answer that grows with it."""

import threading
from dataclasses import replace
from typing import Any

import numpy as np

from salmonrun.runtime.arrays import F32
from salmonrun.runtime.audio import SAMPLE_RATE, Audio
from salmonrun.runtime.config import Block, GenerationConfig
from salmonrun.runtime.decoder import Chunk
from salmonrun.runtime.heard import Heard, listen
from salmonrun.runtime.model import NOTHING_HEARD, Model
from salmonrun.runtime.repetition import repeated
from salmonrun.runtime.request import Request
from salmonrun.runtime.result import Result, Timings, drain
from salmonrun.runtime.search import Hypothesis, decode_drafted
from salmonrun.runtime.streaming.agreement import LocalAgreement
from salmonrun.runtime.streaming.block_encoder import BlockEncoder
from salmonrun.runtime.terms import LIVE


class Utterance:
    """The audio from a first sample on, and what the model answers about it.

    The slot holds the text in front of the audio, then the audio embeddings. An update adds to them (in blocks) or
    replaces them (a growing window). They go through the LLM together with the rest of the prompt and the draft of the
    answer, in one pass; what is behind the audio then is forgotten with the next one.

    Args:
        slot: for the longest utterance; it may hold what an utterance before this one has left.
        buffer: for the samples of the longest utterance.
        reject: whether answers below the bundle's threshold are not credible.
    """

    def __init__(
        self,
        model: Model,
        slot: Any,
        buffer: F32,
        request: Request,
        block: Block | None,
        agreement: LocalAgreement,
        reject: bool,
        cancelled: threading.Event,
    ) -> None:
        self._model = model
        self._slot = slot
        self._buffer = buffer
        self.length = 0  # samples taken
        self._request = request
        self._blocks = BlockEncoder(model.encoder, block) if block else None
        self._agreement = agreement
        self._reject = reject
        self._terms = replace(LIVE, cancel=cancelled)
        self._embeds = np.zeros((0, model.bundle.manifest.llm.dim), np.float32)  # of the audio encoded so far
        self._hypothesis = Hypothesis([], "stop", [])  # the latest
        self._says_nothing = False  # whether that says that there is nothing to be transcribed
        self._encoded = 0  # samples of that audio
        # Positions of text and audio that the slot has; one before this has left the same text.
        self._kept = min(model.decoder.length(slot), len(request.prompt.before))

    @property
    def tokens(self) -> list[int]:
        """What the latest hypothesis says, without a stop token: what is certain, if it says that there is nothing."""
        return self.certain if self._says_nothing else self._answered

    @property
    def _answered(self) -> list[int]:
        return self._request.stop.in_front_of_end(self._hypothesis.tokens)

    @property
    def pcm(self) -> F32:
        """The samples taken so far."""
        return self._buffer[: self.length]

    @property
    def room(self) -> int:
        """Samples that can still be taken."""
        return len(self._buffer) - self.length

    def append(self, pcm: F32) -> None:
        """Take samples [N]."""
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
        self._answer()
        if repeated(self._answered) or self.dropped():  # nothing of this is certain
            return []
        return self._agreement.add(self._answered)

    def end(self, wanted: int) -> int:
        """The sample to end at, as near to `wanted` as can be: blocks that are encoded stay."""
        return max(wanted, self._encoded if self._blocks else 0)

    def finish(self, end: int) -> Hypothesis:
        """The whole answer, now that the utterance is over and has `end` samples."""
        pcm = self.pcm[:end]
        if self.silence(pcm):
            return Hypothesis([], "stop", [])
        self._encode(pcm, final=True)
        self._answer()
        return self._hypothesis

    def dropped(self) -> str:
        """Why the text of the latest hypothesis is not to be believed; empty if it is."""
        if self._says_nothing:
            return NOTHING_HEARD
        return self._model.rejection(self._hypothesis.score) if self._reject else ""

    def silence(self, pcm: F32) -> str:
        """Why some of its audio counts as silence; empty if it does not."""
        return self._model.silence(self._padded(pcm))

    @property
    def certain(self) -> list[int]:
        """Tokens that every further answer begins with."""
        return self._agreement.certain

    @property
    def certain_logprobs(self) -> list[float]:
        """Of these tokens, each as the hypothesis found it with which it became certain."""
        return self._hypothesis.logprobs[: len(self.certain)]

    def ask(
        self, more: F32, prompt: str | None, task: str | None, question: str | None, config: GenerationConfig | None
    ) -> Result:
        """Answer another prompt about the utterance so far and `more` samples; nothing of the utterance changes."""
        model, before = self._model, self._request.prompt.before
        audio = self._padded(np.concatenate([self.pcm, more])[: len(self._buffer)])
        if self._blocks is None:
            with listen(model, audio, LIVE) as heard:
                return drain(heard.asked(LIVE, prompt, task, question, config))
        with model.encoding.turn(LIVE, "encoding"):
            embeds = np.concatenate([self._embeds, *self._blocks.fork().finish(audio.pcm)])
        new = np.concatenate([model.decoder.embed(before), embeds])[self._kept :]
        lease = model.rounds.open(1, self._kept + len(new), LIVE, stays=True)
        with lease as (slot,):
            if len(new):
                model.rounds.append(Chunk(slot, new, wanted=0, keep=self._kept, source=self._slot), LIVE)
            else:
                model.decoder.fork(self._slot, slot, self._kept)
            heard = Heard(model, audio, embeds, before, lease, Timings(audio.source_s))
            return drain(heard.asked(LIVE, prompt, task, question, config))

    def _encode(self, pcm: F32, final: bool) -> None:
        """Bring the audio embeddings up to date."""
        if self._blocks is None:
            if final and len(pcm) == self._encoded:
                return
            self._embeds = self._model.encode(self._padded(pcm), LIVE)
            self._kept = min(self._kept, len(self._request.prompt.before))
        else:
            with self._model.encoding.turn(LIVE, "encoding"):
                new = self._blocks.finish(self._padded(pcm).pcm) if final else self._blocks.encode(pcm)
            self._embeds = np.concatenate([self._embeds, *new])
        self._encoded = len(pcm)

    def _answer(self) -> None:
        """Make the greedy answer to the audio so far, that begins with what is certain, the latest hypothesis."""
        self._hypothesis = self._decoded()
        self._says_nothing = self._model.heard_nothing(self._model.text(self._answered))

    def _decoded(self) -> Hypothesis:
        model, request = self._model, self._request
        certain, draft = self.certain, self._answered[len(self.certain) :]
        if len(certain) == request.config.max_new_tokens:
            return Hypothesis(list(certain), "length", self.certain_logprobs)
        text = model.decoder.embed([*request.prompt.after, *certain, *draft])
        audio = np.concatenate([model.decoder.embed(request.prompt.before), self._embeds])
        start = len(audio) + len(request.prompt.after)
        prompt = Chunk(self._slot, np.concatenate([audio[self._kept :], text]), 1 + len(draft), keep=self._kept)
        search = decode_drafted(prompt, start, certain, self.certain_logprobs, draft, request.config, request.stop)
        (answer,) = model.rounds.run([search], self._terms)
        self._kept = min(len(audio), model.decoder.length(self._slot))
        return answer

    def _padded(self, pcm: F32) -> Audio:
        """As the model hears recordings: not shorter than the shortest one."""
        return self._model.load_audio(Audio(pcm, SAMPLE_RATE, 1, len(pcm) / SAMPLE_RATE), None)
