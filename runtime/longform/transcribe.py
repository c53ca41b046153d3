"""`Engine.transcribe`: a recording of any length, read bit by bit, cut at pauses, answered in batches of windows."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice

from salmonrun.runtime.answer import GrowingText
from salmonrun.runtime.audio import SAMPLE_RATE
from salmonrun.runtime.longform.batch import BatchAnswerer, WindowAnswer
from salmonrun.runtime.longform.config import TranscribeConfig
from salmonrun.runtime.longform.reader import PcmReader
from salmonrun.runtime.longform.stitch import common_run, seam
from salmonrun.runtime.longform.told import ToldText
from salmonrun.runtime.longform.windows import Splitter, Window
from salmonrun.runtime.model import NOTHING_HEARD
from salmonrun.runtime.repetition import repeated
from salmonrun.runtime.search import Hypothesis
from salmonrun.runtime.segment import Segment
from salmonrun.runtime.vad import Vad, load_vad


@dataclass
class TranscriptInfo:
    """What is known of the recording. The lower fields grow while the segments are taken."""

    sample_rate: int  # Hz, of the recording; all samples are counted at 16 kHz
    channels: int  # of which `notes` say what is heard
    duration_s: float  # as the file's header says; when all of it was read, as it is
    vad: str  # what told speech from pauses
    config: TranscribeConfig  # window_s as it was used

    windows: int = 0
    heard_samples: int = 0  # read so far, at 16 kHz
    dropped_samples: int = 0  # of these, silence that no window has
    nothing: int = 0  # windows that the model heard nothing to transcribe in
    nothing_samples: int = 0  # of these windows
    rejected: int = 0  # windows whose answer is below the bundle's threshold, with `config.reject`
    rejected_samples: int = 0  # of these windows
    finished: bool = False  # whether all of the recording was transcribed
    notes: list[str] = field(default_factory=list)  # what was done to the audio, and why there is no text

    @property
    def dropped_s(self) -> float:
        """Seconds of silence that no window has."""
        return self.dropped_samples / SAMPLE_RATE


def transcribe(
    reader: PcmReader, answerer: BatchAnswerer, config: TranscribeConfig
) -> tuple[Iterator[Segment], TranscriptInfo]:
    """See `Engine.transcribe`."""
    items, info = transcribe_iter(reader, answerer, config)
    return (item for item in items if isinstance(item, Segment)), info


def transcribe_iter(
    reader: PcmReader, answerer: BatchAnswerer, config: TranscribeConfig
) -> tuple[Iterator[str | Segment], TranscriptInfo]:
    """See `Engine.transcribe_iter`."""
    longest = answerer.model.bundle.manifest.audio.max_s
    notes = reader.notes
    if config.window_s > longest:
        config = replace(config, window_s=longest)
        notes.append(f"windows of {longest:g} s, which is the longest this model hears")
    if config.reject:
        answerer.model.threshold()  # refuses, if there is none
    answerer.model.check_capacity(answerer.request, int(config.window_s * SAMPLE_RATE))
    vad = load_vad(config.vad)
    info = TranscriptInfo(reader.rate, reader.channels, reader.duration_s, vad.name, config, notes=notes)
    return _Transcription(reader, answerer, vad, info).items(), info


@dataclass
class _Answered:
    """A segment in the making."""

    answer: WindowAnswer
    token_ids: list[int]  # without those that the segment before has
    notes: list[str]

    @property
    def window(self) -> Window:
        """What it is about."""
        return self.answer.window


class _Transcription:
    """One pass over one recording: PCM, windows, answers, segments, each a generator over the one before."""

    def __init__(
        self,
        reader: PcmReader,
        answerer: BatchAnswerer,
        vad: Vad,
        info: TranscriptInfo,
    ) -> None:
        self._reader = reader
        self._answerer = answerer
        self._splitter = Splitter(vad.open(), info.config)
        self._info = info
        model, cuts = answerer.model, answerer.request.stop.cuts
        self._told = ToldText(lambda: GrowingText(model.tokenizer, cuts, model.bundle.manifest.prompt))
        self._covered = 0  # sample after the last that a window has
        self._complete = True

    def items(self) -> Iterator[str | Segment]:
        """Text as it becomes certain, and segments, each behind all of its text."""
        for item in self._segments():
            piece = self._told.segment(item) if isinstance(item, Segment) else item
            if piece:
                yield piece
            if isinstance(item, Segment):
                yield item

    def _segments(self) -> Iterator[str | Segment]:
        """Segments, each as soon as it is certain: one that overlaps the next waits for it.

        Where windows overlap, one segment ends and the next begins in the middle: there their samples meet. Their texts
        meet at a word that both windows have.
        """
        waiting: _Answered | None = None
        for answered in self._answers():
            if isinstance(answered, str):
                yield answered
                continue
            if self._drops(answered):  # its neighbours keep all that they say
                if waiting:
                    yield self._segment(waiting)
                waiting = None
                self._told.next()
                continue
            if waiting:
                self._join(waiting, answered)
                yield self._segment(waiting)
            waiting = answered
            if not answered.window.overlap_after:
                yield self._segment(answered)
                waiting = None
        if waiting:  # for a window that a cancellation kept away
            yield self._segment(waiting)
        self._conclude()
        self._note_left_out()

    def _answers(self) -> Iterator[str | _Answered]:
        windows = self._windows()
        while batch := list(islice(windows, self._info.config.batch_size)):
            if self._stopped():
                return
            place = 0
            for answer in self._answerer.answer(batch):
                if isinstance(answer, int):
                    if self._keeps_all(batch[place]):
                        yield self._told.token(answer)
                    continue
                place += 1
                hypothesis = answer.hypothesis
                if hypothesis.finish_reason == "cancelled":
                    self._complete = False
                    if not hypothesis.tokens:
                        continue
                yield _Answered(answer, hypothesis.tokens, [*answer.notes, *self._doubts(hypothesis)])

    def _keeps_all(self, window: Window) -> bool:
        """Whether its segment will have all tokens of its answer: neighbours share none, and it is not rejected."""
        return not (window.overlap or window.overlap_after or self._info.config.reject)

    def _windows(self) -> Iterator[Window]:
        for pcm in self._reader.blocks():
            if self._stopped():
                return
            yield from self._counted(self._splitter.push(pcm))
        yield from self._counted(self._splitter.finish())
        self._info.duration_s = self._info.heard_samples / SAMPLE_RATE

    def _counted(self, windows: list[Window]) -> Iterator[Window]:
        """Keep the books."""
        self._info.heard_samples = self._splitter.samples
        for window in windows:
            self._info.windows += 1
            self._info.dropped_samples += window.start + window.overlap - self._covered
            self._covered = window.end
            yield window

    def _doubts(self, hypothesis: Hypothesis) -> list[str]:
        limit = self._answerer.request.config.max_new_tokens
        cut = [f"cut after max_new_tokens={limit}"] if hypothesis.finish_reason == "length" else []
        return [note for note in (*cut, repeated(hypothesis.tokens)) if note]

    def _drops(self, answered: _Answered) -> bool:
        """Whether there will be no segment of it, which is counted."""
        model, info, (start, end) = self._answerer.model, self._info, _place(answered.window)
        if model.heard_nothing(self._answerer.text(answered.token_ids)):
            info.nothing, info.nothing_samples = info.nothing + 1, info.nothing_samples + end - start
            return True
        if info.config.reject and model.rejection(answered.answer.hypothesis.score):
            info.rejected, info.rejected_samples = info.rejected + 1, info.rejected_samples + end - start
            return True
        return False

    def _join(self, previous: _Answered, following: _Answered) -> None:
        """Leave each token of the overlap to one of two neighbours; both keep theirs if they have nothing in common."""
        stop = self._answerer.request.stop
        before, after = (stop.in_front_of_end(answered.token_ids) for answered in (previous, following))
        if not before or not after:
            return
        samples = len(previous.window.pcm) + len(following.window.pcm)
        tokens = len(previous.answer.hypothesis.tokens) + len(following.answer.hypothesis.tokens)
        overlap = following.window.overlap
        run = common_run(before, after, expected=tokens * overlap / samples)
        if run is None:
            start, end = (at / SAMPLE_RATE for at in (following.window.start, following.window.start + overlap))
            following.notes.append(f"not aligned with the segment before: {start:.2f} to {end:.2f} s may be said twice")
            return
        kept = seam(self._answerer.model.tokenizer, after, run)
        previous.token_ids = before[: run.previous + kept]
        following.token_ids = following.token_ids[run.following + kept :]

    def _segment(self, answered: _Answered) -> Segment:
        window, (start, end) = answered.window, _place(answered.window)
        text = self._answerer.text(answered.token_ids)
        if window.overlap:
            text = text.lstrip()
        return Segment(
            text=text,
            token_ids=answered.token_ids,
            start_sample=start,
            end_sample=end,
            window=(window.start, window.end),
            finish_reason=answered.answer.hypothesis.finish_reason,
            notes=tuple(answered.notes),
            score=answered.answer.hypothesis.score,
            low_confidence=self._answerer.model.low_confidence(answered.answer.hypothesis.score),
        )

    def _conclude(self) -> None:
        info = self._info
        info.finished = self._complete
        if not self._complete:
            info.notes.append("cancelled: not all of the recording was transcribed")
            return
        info.dropped_samples += info.heard_samples - self._covered
        if not info.windows:
            info.notes.append(f"no speech in {info.duration_s:.1f} s (vad {info.vad})")
        elif info.dropped_samples:
            info.notes.append(f"{info.dropped_s:.1f} s of silence dropped (vad {info.vad})")

    def _note_left_out(self) -> None:
        """Say which windows have no segment, and why."""
        info = self._info
        if info.nothing:
            info.notes.append(f"{info.nothing_samples / SAMPLE_RATE:.1f} s dropped, {NOTHING_HEARD}")
        if info.rejected:
            threshold = self._answerer.model.threshold().score
            seconds = info.rejected_samples / SAMPLE_RATE
            info.notes.append(f"{seconds:.1f} s rejected: {info.rejected} answers of a score below {threshold:.2f}")

    def _stopped(self) -> bool:
        """Whether to stop here, with something missing."""
        if not self._answerer.terms.cancelled:
            return False
        self._complete = False
        return True


def _place(window: Window) -> tuple[int, int]:
    """First sample of its segment, and the one after the last: what windows share is parted in the middle."""
    return (
        window.start + window.overlap // 2,
        window.end - window.overlap_after + window.overlap_after // 2,
    )
