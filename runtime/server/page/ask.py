"""A question about a recording, to one bundle or to two side by side."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

from salmonrun.runtime.config import GenerationConfig
from salmonrun.runtime.errors import AudioTooLongError, SalmonrunError
from salmonrun.runtime.heard import Heard, listen
from salmonrun.runtime.model import Model
from salmonrun.runtime.result import Result
from salmonrun.runtime.server.api_error import as_api_error
from salmonrun.runtime.server.job import Work
from salmonrun.runtime.server.metrics import Metrics
from salmonrun.runtime.server.page.kept import KeptRecordings
from salmonrun.runtime.server.page.running import View
from salmonrun.runtime.stopwatch import Stopwatch
from salmonrun.runtime.terms import NORMAL, CancelledEarlyError, Terms


@dataclass(frozen=True)
class Instruction:
    """What is asked: a task of the bundle, with a question where its prompt takes one, or a prompt of one's own."""

    prompt: str | None = None
    task: str | None = None
    question: str | None = None
    config: GenerationConfig = field(default_factory=GenerationConfig)

    @property
    def text(self) -> str:
        """For people."""
        if self.task is None:
            return self.prompt or ""
        return f"{self.task}: {self.question}" if self.question else self.task


@dataclass(frozen=True)
class Begun:
    """A bundle has heard the recording, now or before."""

    seconds: dict[str, float]  # that hearing it took, by stage; none if it was heard before


News = tuple[int, Begun | str | Result | SalmonrunError]  # which bundle's


@dataclass(frozen=True)
class Side:
    """One bundle's answer."""

    state: Literal["waiting", "answering", "done", "stopped", "failed"] = "waiting"
    text: str = ""
    hearing: dict[str, float] | None = None  # seconds by stage; empty: it was heard before; None: not yet
    result: Result | None = None
    error: str = ""

    def told(self, news: Begun | str | Result | SalmonrunError) -> "Side":
        """With what is known now."""
        match news:
            case Begun():
                return replace(self, state="answering", hearing=news.seconds)
            case str():
                return replace(self, text=self.text + news)
            case Result():
                state: Literal["stopped", "done"] = "stopped" if news.finish_reason == "cancelled" else "done"
                return replace(self, state=state, text=news.text, result=news)
        return replace(self, state="failed", error=_message(news))

    def over(self, state: Literal["stopped", "failed"], error: str = "") -> "Side":
        """Without an end of its own."""
        return self if self.result or self.error else replace(self, state=state, error=error)


@dataclass(frozen=True)
class Card(View):
    """A question and its answers, one for each bundle."""

    instruction: Instruction
    recording: str  # its name
    sides: tuple[Side, ...]
    queued_s: float = 0.0  # that it waited for its turn

    def told(self, item: News) -> Self:
        """With news of one bundle."""
        place, news = item
        sides = list(self.sides)
        sides[place] = sides[place].told(news)
        return replace(self, sides=tuple(sides))

    def ended(self, queued_s: float) -> Self:
        """With all answers."""
        return replace(self, queued_s=queued_s)

    def stopped(self) -> Self:
        """With what there was of them."""
        return replace(self, sides=tuple(side.over("stopped") for side in self.sides))

    def failed(self, message: str) -> Self:
        """With the reason why there is no more."""
        return replace(self, sides=tuple(side.over("failed", message) for side in self.sides))

    def note(self, metrics: Metrics, queued_s: float) -> dict[str, Any]:
        """An answer of each bundle."""
        results = [side.result for side in self.sides if side.result]
        for result in results:
            metrics.answered(result.timings, queued_s)
        audio_s = sum(result.timings.audio_s for result in results)
        return {"audio_s": round(audio_s, 3), "tokens": sum(result.timings.tokens for result in results)}


def _message(error: SalmonrunError) -> str:
    """An error's own, but for a remedy that the page has itself."""
    message = as_api_error(error).message
    if isinstance(error, AudioTooLongError):
        return f"{message.partition(':')[0]}: Long recordings, above, takes any length"
    return message


def answers(
    models: Sequence[Model], kept: KeptRecordings, visitor: str, path: str, instruction: Instruction
) -> Work[News]:
    """Ask one bundle after the other, so that the times of each are its own. What one refuses, another may answer."""

    def work(cancel: threading.Event) -> Iterator[News]:
        for place, model in enumerate(models):
            try:
                for news in _answer(model, kept, (visitor, place), path, instruction, cancel):
                    yield place, news
            except CancelledEarlyError:
                return
            except SalmonrunError as error:
                yield place, error

    return work


def _answer(
    model: Model,
    kept: KeptRecordings,
    key: tuple[str, int],
    path: str,
    instruction: Instruction,
    cancel: threading.Event,
) -> Iterator[Begun | str | Result]:
    asked = (instruction.prompt, instruction.task, instruction.question, instruction.config)
    terms = Terms.of(NORMAL, None, cancel)

    def hear() -> AbstractContextManager[Heard]:
        watch = Stopwatch()
        with open(path, "rb") as file:  # so that no error names a folder of the server
            audio = model.load_audio(file, None)
        watch.lap("audio")
        return listen(model, audio, terms, watch)

    prompt, task, question, config = asked
    model.request(task, prompt, question, config)  # refused before it is heard
    with kept.heard(*key, path, hear) as (heard, anew):
        yield Begun(heard.timings.stages if anew else {})
        result = yield from heard.asked(terms, *asked)
        yield result
