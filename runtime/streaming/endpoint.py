"""Where utterances begin and end: voice detection and Kaldi's endpoint rules."""

from collections import deque

from salmonrun.runtime.audio import F32, SAMPLE_RATE
from salmonrun.runtime.pauses import before, behind
from salmonrun.runtime.streaming.config import EndpointConfig
from salmonrun.runtime.vad import LATE_MOST, VAD_HOP, VoiceDetector

SHORT_PAUSE_S = 0.1  # at which an utterance that has become too long is parted


class Endpointer:
    """Hears a stream hop by hop. Without a config all is speech, and nothing but the window's length ends it."""

    def __init__(self, config: EndpointConfig | None, detector: VoiceDetector | None) -> None:
        self._config = config
        self._detector = detector
        self.margin = round(config.margin_s * SAMPLE_RATE / VAD_HOP) * VAD_HOP if config else 0  # samples, in front
        self.behind = _behind(config) if config else 0  # samples, whole hops
        self._before: deque[F32] = deque(maxlen=self._kept(LATE_MOST))
        self.silent = 0  # samples since the last speech

    def hear(self, hop: F32) -> bool:
        """Whether a hop holds speech."""
        speech = self._detector is None or self._detector.is_speech(hop)
        self.silent = 0 if speech else self.silent + VAD_HOP
        return speech

    def keep(self, hop: F32) -> None:
        """Remember a hop outside of utterances: speech is detected a little after it has begun."""
        self._before.append(hop)

    def take_kept(self) -> list[F32]:
        """The hops in front of an utterance that begins: more of them where its beginning was noticed late."""
        late = self._detector.late if self._detector else 0
        kept = list(self._before)[max(0, len(self._before) - self._kept(late)) :]
        self._before.clear()
        return kept

    def over(self, length: int, said: bool) -> bool:
        """Whether an utterance of `length` samples ends, given that something was understood or not."""
        if self._config is None:
            return False
        silent_s = self.silent / SAMPLE_RATE
        if silent_s >= (self._config.pause_s if said else self._config.silence_s):
            return True
        return length / SAMPLE_RATE >= self._config.longest_s and silent_s >= SHORT_PAUSE_S

    def _kept(self, late: int) -> int:
        """Hops."""
        return round(before(late * VAD_HOP, self._config.margin_s) / VAD_HOP) if self._config else 0


def _behind(config: EndpointConfig) -> int:
    return behind(min(config.pause_s, config.silence_s), config.margin_s) // VAD_HOP * VAD_HOP
