"""A recording of any length on the page, segment by segment."""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

from salmonrun.runtime.engine import Engine
from salmonrun.runtime.longform.transcribe import TranscriptInfo
from salmonrun.runtime.segment import Segment
from salmonrun.runtime.server.job import Work
from salmonrun.runtime.server.metrics import Metrics
from salmonrun.runtime.server.page.ask import Instruction
from salmonrun.runtime.server.page.running import View
from salmonrun.runtime.server.transcriptions import check_length
from salmonrun.runtime.transcript import Transcript, of_segments


@dataclass(frozen=True)
class Talk(View):
    """What is known of a recording."""

    recording: str  # its name
    state: Literal["waiting", "running", "done", "stopped", "failed"] = "waiting"
    info: TranscriptInfo | None = None
    segments: tuple[Segment, ...] = ()
    growing: str = ""  # text that no segment has yet
    error: str = ""
    begun_at: float = field(default_factory=time.perf_counter)
    took_s: float = 0.0

    @property
    def transcript(self) -> Transcript:
        """For files.

        Raises:
            ValueError: nothing is known yet.
        """
        if self.info is None:
            raise ValueError("there is no transcript before the recording was opened")
        return of_segments(self.recording, self.segments, self.info, self.took_s, None)

    def told(self, item: TranscriptInfo | str | Segment) -> Self:
        """With more text, or a segment that has all of its own."""
        match item:
            case TranscriptInfo():
                return replace(self, state="running", info=item, begun_at=time.perf_counter())
            case str():
                return replace(self, growing=self.growing + item)
        return replace(self, segments=(*self.segments, item), growing="")

    def ended(self, queued_s: float) -> Self:  # noqa: ARG002
        """With all segments."""
        return replace(self, state="done", growing="", took_s=time.perf_counter() - self.begun_at)

    def stopped(self) -> Self:
        """With those that there were."""
        return replace(self, state="stopped", growing="")

    def failed(self, message: str) -> Self:
        """With the reason why there are no more."""
        return replace(self, state="failed", growing="", error=message)

    def note(self, metrics: Metrics, queued_s: float) -> dict[str, Any]:
        """As of a transcription."""
        assert self.info
        tokens = sum(len(segment.token_ids) for segment in self.segments)
        metrics.queue_time.observe(queued_s)
        metrics.tokens.inc(tokens)
        metrics.audio.inc(self.info.duration_s)
        metrics.factor.observe(self.took_s / self.info.duration_s)
        return {"audio_s": round(self.info.duration_s, 3), "tokens": tokens}


def segments(
    engine: Engine, path: str, instruction: Instruction, max_audio_s: float
) -> Work[TranscriptInfo | str | Segment]:
    """What is known of the recording at first, then text and segments."""

    def work(cancel: threading.Event) -> Iterator[TranscriptInfo | str | Segment]:
        with open(path, "rb") as file:  # so that no error names a folder of the server
            items, info = engine.transcribe_iter(
                file,
                task=instruction.task,
                prompt=instruction.prompt,
                question=instruction.question,
                generation=instruction.config,
                cancel=cancel,
            )
            check_length(info, max_audio_s)
            yield info
            yield from items

    return work
