"""From audio to events: a stream of the engine, told in items of the Realtime protocol.

With server VAD an item is an utterance; without, it is what the client commits.
"""

from collections.abc import Sequence

from salmonrun.runtime.audio import SAMPLE_RATE
from salmonrun.runtime.engine import Engine
from salmonrun.runtime.segment import BETWEEN_UTTERANCES, Segment
from salmonrun.runtime.server.api_error import ApiError
from salmonrun.runtime.server.realtime import events
from salmonrun.runtime.server.realtime.audio import I16
from salmonrun.runtime.server.realtime.events import Event, event, new_id
from salmonrun.runtime.server.realtime.session import Session
from salmonrun.runtime.streaming.stream import Stream, Update


class _Item:
    def __init__(self, start: int, spoken: bool) -> None:
        self.id = new_id("item")
        self.start = start  # sample of the session, at 16 kHz
        self.spoken = spoken  # whether it is an utterance that was detected
        self.text = ""


class Turns:
    """One session's audio. Its methods take their time, and are called one after the other; `cancel` at any time."""

    def __init__(self, engine: Engine, session: Session) -> None:
        self._engine = engine
        self.session = session
        self._stream: Stream | None = None
        self._before = 0  # samples at 16 kHz that streams before this one have heard
        self._samples = 0  # that this one was given, at the session's rate
        self._told = 0  # its segments that became items
        self._item: _Item | None = None
        self._previous: str | None = None
        self._cancelled = False
        self.left_out = 0  # updates, since the stream was late
        self.tokens = 0

    @property
    def pending(self) -> bool:
        """Whether an item is being heard."""
        return self._item is not None

    @property
    def seconds(self) -> float:
        """Of audio, since the session began."""
        return self._heard() / SAMPLE_RATE

    def hear(self, pcm: I16) -> list[Event]:
        """More audio [N]."""
        if not len(pcm):
            return []
        stream = self._opened()
        self._samples += len(pcm)
        updates = stream.push(pcm)
        told: list[Event] = []
        if self.session.turn_detection is None and self._item is None:
            told += self._begin(0, spoken=False)
        for index, update in enumerate(updates):
            if self._item is None:
                told += self._begin(_start(updates[index:], stream))
            told += self._tell(update)
        since = stream.speaking_since
        if self._item is None and since is not None:
            told += self._begin(since)
        return told

    def commit(self) -> list[Event]:
        """The end of what has come: all of its text.

        Raises:
            ApiError: nothing has come.
        """
        if self._stream is None:
            raise ApiError(400, "input_audio_buffer_commit_empty", "the buffer is empty: append audio first")
        stream = self._stream
        result = stream.finish()
        told: list[Event] = []
        end = self._heard()
        if self.session.turn_detection is None:
            item = self._item
            assert item
            self.tokens += len(result.token_ids)
            told += self._grow(result.text[len(item.text) :])
            told += self._end(end)
        else:
            segments = stream.segments[self._told :]
            for segment in segments:
                told += [] if self._item else self._begin(segment.start_sample)
                told += self._finish(segment)
            if not segments:  # silence
                told += [*self._begin(end - self._before, spoken=False), *self._end(end)]
        self._close()
        return told

    def clear(self) -> list[Event]:
        """Forget what was not committed."""
        told = [event("input_audio_buffer.cleared")]
        if self._item:
            told.insert(0, event("conversation.item.deleted", item_id=self._item.id))
            self._item = None
        self._close()
        return told

    def update(self, session: Session) -> None:
        """Agree on something else.

        Raises:
            ApiError: in the middle of an item.
        """
        same_audio = session.format == self.session.format and session.turn_detection == self.session.turn_detection
        if not (same_audio and session.prompt == self.session.prompt):
            if self._item:
                what = "format, turn_detection and prompt cannot change while an item is heard: commit or clear first"
                raise ApiError(400, "session_in_use", what, "session")
            self._close()
        self.session = session

    def fail(self, problem: ApiError) -> list[Event]:
        """The engine could not go on: the item has no end, the next one begins anew."""
        told = [events.failed(self._item.id, problem)] if self._item else [events.error(problem)]
        self._item = None
        self._close()
        return told

    def cancel(self) -> None:
        """From any thread: stop within one token."""
        self._cancelled = True
        if stream := self._stream:
            stream.cancel()

    def close(self) -> None:
        """Give the stream's memory back."""
        self._close()

    def _opened(self) -> Stream:
        if self._stream is None:
            config, session = self.session.stream_config(), self.session
            self._stream = self._engine.stream(prompt=session.prompt, config=config, sample_rate=session.format.rate)
            if self._cancelled:
                self._stream.cancel()
        return self._stream

    def _close(self) -> None:
        self._before = self._heard()
        self._samples = self._told = 0
        if self._stream:
            self._stream.close()
            self._stream = None

    def _heard(self) -> int:
        """Samples of the session so far, at 16 kHz."""
        return self._before + self._samples * SAMPLE_RATE // self.session.format.rate

    def _tell(self, update: Update) -> list[Event]:
        assert self._item
        self.left_out += update.left_out
        told = self._grow(update.delta)
        if update.segment and self.session.turn_detection:
            self._told += 1
            return told + self._finish(update.segment)
        if self.session.partial:
            heard = self._before + round(update.audio_s * SAMPLE_RATE)
            told.append(events.partial(self._item.id, update.partial, _ms(heard)))
        return told

    def _begin(self, start: int, spoken: bool = True) -> list[Event]:
        self._item = item = _Item(self._before + start, spoken)
        told = [events.added(item.id, self._previous)]
        if spoken:
            started = event("input_audio_buffer.speech_started", item_id=item.id, audio_start_ms=_ms(item.start))
            told.insert(0, started)
        return told

    def _grow(self, text: str) -> list[Event]:
        """With text that will not change. What parts utterances is in no item, where each is one."""
        assert self._item
        if self.session.turn_detection and not self._item.text and self._told:
            text = text.removeprefix(BETWEEN_UTTERANCES)
        self._item.text += text
        return [events.delta(self._item.id, text)] if text else []

    def _finish(self, segment: Segment) -> list[Event]:
        assert self._item
        self.tokens += len(segment.token_ids)
        rest = segment.text[len(self._item.text) :]
        self._item.text += rest
        told = [events.delta(self._item.id, rest)] if rest else []
        return told + self._end(self._before + segment.end_sample)

    def _end(self, end: int) -> list[Event]:
        """The item is complete; `end` is the session's sample."""
        assert self._item
        item, previous = self._item, self._previous
        told = []
        if item.spoken:
            told.append(event("input_audio_buffer.speech_stopped", item_id=item.id, audio_end_ms=_ms(end)))
        told.append(event("input_audio_buffer.committed", item_id=item.id, previous_item_id=previous))
        told.append(events.done(item.id, previous, item.text))
        told.append(events.completed(item.id, item.text, max(0, end - item.start) / SAMPLE_RATE))
        self._item, self._previous = None, item.id
        return told


def _start(updates: Sequence[Update], stream: Stream) -> int:
    """First sample of the utterance that the first of some updates is about: that of the next one to end, or open."""
    ended = [update.segment.start_sample for update in updates if update.segment]
    return ended[0] if ended else stream.speaking_since or 0


def _ms(sample: int) -> int:
    return sample * 1000 // SAMPLE_RATE
