"""One prompt about recordings of any length: what `salmonrun transcribe` asks, whoever looks on."""

import threading
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from salmonrun.runtime.commands.source import open_whole
from salmonrun.runtime.config import GenerationConfig
from salmonrun.runtime.errors import AudioTooLongError, SalmonrunError
from salmonrun.runtime.longform.config import TranscribeConfig
from salmonrun.runtime.transcript import Transcript, of_error, of_result, of_segments

if TYPE_CHECKING:
    from salmonrun.runtime import Engine, Segment


class Watcher(Protocol):
    """Is told how far a long recording is."""

    def part(self, file: str, duration_s: float, segment: "Segment | None") -> None:
        """A part of it was answered about; None: it begins, and there will be parts."""


@dataclass(frozen=True)
class Transcriber:
    """Answers about recordings; any number of threads may ask at once."""

    engine: "Engine"
    asked: dict[str, Any]  # task, prompt, question, channel, strict: as `Engine.generate` takes them
    config: GenerationConfig
    reject: bool  # leave out what the bundle's threshold says is not credible

    def check(self) -> None:
        """What is wrong with the question is said once, and not for every recording.

        Raises:
            SalmonrunError: it cannot be asked of this bundle.
        """
        prompt = {name: self.asked[name] for name in ("task", "prompt", "question")}
        self.engine.model.request(**prompt, config=self.config)
        if self.reject:
            self.engine.model.threshold()

    def transcribe(self, file: str, watcher: Watcher, cancel: threading.Event | None = None) -> Transcript:
        """The answer about a recording, or as much of it as there was before an error or `cancel`."""
        started = time.perf_counter()
        try:
            recording = open_whole(file)
            try:
                result = self.engine.generate(recording, **self.asked, config=self.config, cancel=cancel)
            except AudioTooLongError:
                return self._in_parts(file, recording, watcher, cancel)
        except SalmonrunError as error:
            return of_error(file, time.perf_counter() - started, error)
        if self.reject and (why := self.engine.model.rejection(result.score)):
            result = replace(result, text="", notes=(*result.notes, why))
        return of_result(file, result)

    def _in_parts(
        self, file: str, recording: str | bytes, watcher: Watcher, cancel: threading.Event | None
    ) -> Transcript:
        """Of a long recording, what there is of it if it cannot be read to its end."""
        started = time.perf_counter()
        cut = TranscribeConfig(reject=self.reject)
        segments, info = self.engine.transcribe(
            recording, **self.asked, generation=self.config, config=cut, cancel=cancel
        )
        answered: list[Segment] = []
        failure = None
        try:
            watcher.part(file, info.duration_s, None)
            for segment in segments:
                answered.append(segment)
                watcher.part(file, info.duration_s, segment)
        except SalmonrunError as error:
            failure = error
        return of_segments(file, answered, info, time.perf_counter() - started, failure)
