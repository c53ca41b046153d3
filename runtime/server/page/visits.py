"""What visitors of the page do: each has at most one work under way, and recordings that were heard for it."""

import os
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from salmonrun.runtime.errors import AudioError, SalmonrunError
from salmonrun.runtime.server.api_error import ApiError
from salmonrun.runtime.server.job import Work
from salmonrun.runtime.server.page import markup, uploads
from salmonrun.runtime.server.page.ask import Card, Instruction, Side, answers
from salmonrun.runtime.server.page.kept import KeptRecordings
from salmonrun.runtime.server.page.running import Running, V
from salmonrun.runtime.server.page.talk import Talk, segments
from salmonrun.runtime.server.service import Service
from salmonrun.runtime.transcript import FORMATS

MOST_CARDS = 12  # that a visitor sees


class Visits:
    """Of one server.

    Args:
        service: whose engine, queue and limits they use.
        folder: for files.
    """

    def __init__(self, service: Service, folder: Path) -> None:
        self.engines = [service.engine, *([service.beside] if service.beside else [])]
        self.kept = KeptRecordings()
        self._service = service
        self._folder = folder
        self._running: dict[str, Running[Any]] = {}
        self._bundles = markup.bundles([engine.report() for engine in self.engines])

    def cards(self, shown: Sequence[Card]) -> str:
        """Questions and answers, as HTML."""
        return markup.cards(shown, self._bundles)

    async def ask(
        self, visitor: str, path: str | None, instruction: Instruction, before: Sequence[Card]
    ) -> AsyncIterator[list[Card]]:
        """All that the visitor sees, the new card first, as its answers grow.

        Args:
            visitor: whose other work is stopped.
            path: of the recording; None: there is none.
            instruction: of each bundle.
            before: cards of the visitor.
        """
        rest = list(before)[: MOST_CARDS - 1]
        card = Card(instruction, os.path.basename(path or ""), tuple(Side() for _ in self.engines))
        try:
            models = [self._service.engine.model, *(engine.model for engine in self.engines[1:])]
            work = answers(models, self.kept, visitor, _used(path), instruction)
        except (ApiError, SalmonrunError) as error:
            yield [card.failed(str(error)), *rest]
            return
        async for grown in self._run(visitor, card, work):
            yield [grown, *rest]

    async def transcribe(
        self, visitor: str, path: str | None, instruction: Instruction
    ) -> AsyncIterator[tuple[Talk, list[str]]]:
        """A recording of any length, as its segments come, and in the end files of them."""
        begun = Talk(os.path.basename(path or ""))
        try:
            work = segments(self._service.engine, _used(path), instruction, self._service.config.max_audio_s)
        except (ApiError, SalmonrunError) as error:
            yield begun.failed(str(error)), []
            return
        talk = begun
        async for grown in self._run(visitor, begun, work):
            talk = grown
            yield talk, []
        if talk.segments:
            yield talk, self._written(talk)

    def stop(self, visitor: str) -> None:
        """What is under way for it."""
        if running := self._running.get(visitor):
            running.stop()

    async def leave(self, visitor: str) -> None:
        """It has closed the page."""
        self.stop(visitor)
        await self._service.in_thread(lambda: self.kept.leave(visitor))

    def sweep(self) -> None:
        """Free what nobody needs any more."""
        self.kept.sweep()
        uploads.sweep(self._folder)

    async def _run(self, visitor: str, view: V, work: Work[Any]) -> AsyncIterator[V]:
        self.stop(visitor)
        running = self._running[visitor] = Running(self._service, view, work)
        try:
            async for grown in running.views():
                yield grown
        finally:
            running.stop()
            if self._running.get(visitor) is running:
                del self._running[visitor]

    def _written(self, talk: Talk) -> list[str]:
        folder, stem = Path(tempfile.mkdtemp(dir=self._folder)), Path(talk.recording).stem
        paths = [folder / f"{stem}.{kind}" for kind in ("txt", "srt", "vtt")]
        for path in paths:
            path.write_text(FORMATS[path.suffix[1:]](talk.transcript), "utf-8")
        return [str(path) for path in paths]


def _used(path: str | None) -> str:
    """The path of a recording that is there.

    Raises:
        AudioError: it is not.
    """
    if path is None:
        raise AudioError("there is no recording yet: upload a file, or record one with the microphone")
    try:
        uploads.used(path)
    except FileNotFoundError as error:
        raise AudioError("this recording was deleted, since it was not used for long: give it again") from error
    return path
