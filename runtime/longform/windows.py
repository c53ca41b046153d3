"""Audio that goes on and on, cut at its pauses into windows of bounded length, exact to the sample."""

from dataclasses import dataclass

import numpy as np

from salmonrun.runtime.audio import F32, SAMPLE_RATE
from salmonrun.runtime.longform.config import TranscribeConfig
from salmonrun.runtime.pauses import before, behind
from salmonrun.runtime.vad import LATE_MOST, VAD_HOP, VoiceDetector

SHORTEST_PAUSE = 3 * VAD_HOP  # samples (96 ms); what is shorter may be the closure of a plosive within a word


@dataclass(frozen=True, eq=False)
class Window:
    """A piece of the recording with speech in it."""

    start: int  # sample of the recording, at 16 kHz
    pcm: F32  # [N]
    overlap: int = 0  # samples at its beginning that are the end of the window before, too
    overlap_after: int = 0  # samples at its end that are the beginning of the window after, too

    @property
    def end(self) -> int:
        """Sample after the last."""
        return self.start + len(self.pcm)


class Splitter:
    """Turns PCM into windows. What it decides does not depend on how the PCM is cut into pieces.

    A window begins a moment before speech and ends a moment after it, at a pause of `part_pause_s`. Where speech goes
    on for longer than `window_s`, it is cut in the middle of the longest pause in the window's last half. Where there
    is none, the window is full and the next one begins `overlap_s` before its end. What no window has is silence.
    """

    def __init__(self, detector: VoiceDetector, config: TranscribeConfig) -> None:
        self._detector = detector
        self._longest = int(config.window_s * SAMPLE_RATE)
        self._overlap = round(config.overlap_s * SAMPLE_RATE)
        self._part = round(config.part_pause_s * SAMPLE_RATE)
        self._earliest = before(LATE_MOST * VAD_HOP)
        self._behind = behind(config.part_pause_s)
        self._pcm = np.zeros(0, np.float32)  # what may still be needed
        self._first = 0  # sample of the recording that _pcm begins with
        self._heard = 0  # samples the detector has decided about
        self._end = 0  # of the window before
        self._start: int | None = None  # of the window that is being made; None in silence
        self._shared = 0  # its overlap
        self._speech_end = 0  # sample after the last hop of speech
        self._pauses: list[tuple[int, int]] = []  # within the window: first sample, sample after the last

    @property
    def samples(self) -> int:
        """Samples pushed so far."""
        return self._first + len(self._pcm)

    def push(self, pcm: F32) -> list[Window]:
        """Append samples [N]; the windows that are complete with them."""
        self._pcm = np.concatenate([self._pcm, pcm])
        windows: list[Window] = []
        while self._heard + VAD_HOP <= self.samples:
            windows += self._hear(self._slice(self._heard, self._heard + VAD_HOP))
        self._forget(self._heard - self._earliest if self._start is None else self._start)
        return windows

    def finish(self) -> list[Window]:
        """The windows that end with the recording."""
        rest = self._slice(self._heard, self.samples)
        windows = self._hear(rest) if len(rest) else []
        return windows if self._start is None else [*windows, self._close(self._start)]

    def _hear(self, hop: F32) -> list[Window]:
        """Decide about the next hop [at most VAD_HOP], which may complete a window."""
        speech = self._detector.is_speech(np.pad(hop, (0, VAD_HOP - len(hop))))
        begin, self._heard = self._heard, self._heard + len(hop)
        if not speech:
            if self._start is None or self._heard - self._speech_end < self._part:
                return []
            return [self._close(self._start)]
        windows = []
        if self._start is None:
            kept = before(self._detector.late * VAD_HOP)
            self._start = max(self._end, begin - kept)  # margins do not meet in a pause
        elif begin > self._speech_end:
            self._pauses.append((self._speech_end, begin))
        if self._heard - self._start > self._longest:
            windows.append(self._cut(self._start))
        self._speech_end = self._heard
        return windows

    def _close(self, start: int) -> Window:
        """The window that begins at `start` and ends with its speech."""
        end = min(self._speech_end + self._behind, start + self._longest, self.samples)
        window = Window(start, self._slice(start, end), self._shared)
        self._start, self._end, self._shared, self._pauses = None, end, 0, []
        return window

    def _cut(self, start: int) -> Window:
        """The window that begins at `start` and has to end before its speech does."""
        latest, half = start + self._longest, start + self._longest // 2
        pauses = [
            (end - begin, (begin + end) // 2)
            for begin, end in self._pauses
            if end - begin >= SHORTEST_PAUSE and (begin + end) // 2 >= half
        ]
        cut = min(max(pauses)[1], latest) if pauses else latest  # the later one of equal pauses
        shared = 0 if pauses else self._overlap
        window = Window(start, self._slice(start, cut), self._shared, shared)
        self._start, self._shared = cut - shared, shared
        self._pauses = [pause for pause in self._pauses if pause[1] > self._start]
        return window

    def _slice(self, start: int, end: int) -> F32:
        return self._pcm[start - self._first : end - self._first].copy()

    def _forget(self, before: int) -> None:
        """Drop the samples in front of `before`."""
        self._pcm = self._pcm[max(0, before - self._first) :]
        self._first = max(self._first, before)
