"""`salmonrun stream --microphone`: what is missing is named before any work, and what is recorded is heard."""

import importlib.util
import json
import queue
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

from salmonrun.runtime.__main__ import main
from salmonrun.runtime.commands.microphone import open_microphone
from salmonrun.runtime.errors import AudioError

RATE = 16000
COMMAND = ["stream", "no-bundle", "--microphone"]
WITHOUT = "import sys; sys.modules['sounddevice'] = None; from salmonrun.__main__ import main; sys.exit(main({}))"


def test_sounddevice_is_missing() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT.format(COMMAND)], capture_output=True, text=True, check=False)
    expected = "error: --microphone needs sounddevice, which is not installed: pip install 'salmonrun[microphone]'\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", expected)


@pytest.mark.skipif(not importlib.util.find_spec("sounddevice"), reason="sounddevice is not installed")
def test_portaudio_or_a_microphone_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    """The real module, on a machine without the one or the other."""
    try:
        import sounddevice

        sounddevice.check_input_settings(channels=1, dtype="int16", samplerate=RATE)
    except OSError:
        expected = "error: --microphone needs PortAudio ("
    except (sounddevice.PortAudioError, ValueError):
        expected = f"error: no microphone records at {RATE} Hz ("
    else:
        pytest.skip("there is a microphone")
    assert main(COMMAND) == 1
    assert capsys.readouterr().err.startswith(expected)


class Recorder:
    """Stands in for sounddevice where there is no microphone: a thread hands over a recording, as PortAudio's does."""

    def __init__(self, pcm: np.ndarray[Any, np.dtype[np.int16]], overflow_at: int | None = None) -> None:
        self.pcm = pcm
        self.overflow_at = overflow_at
        self.PortAudioError = RuntimeError  # sounddevice's name
        self.asked: dict[str, Any] = {}
        self.open = False

    def check_input_settings(self, **settings: Any) -> None:
        self.asked = settings

    def RawInputStream(  # noqa: N802  # sounddevice's name
        self, samplerate: int, blocksize: int, *, channels: int, dtype: str, callback: Any
    ) -> "Recorder":
        assert (channels, dtype) == (1, "int16")
        self.asked |= {"rate": samplerate, "block": blocksize}
        self.callback = callback
        return self

    def __enter__(self) -> "Recorder":
        self.open = True
        self.thread = threading.Thread(target=self._record)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.open = False
        self.thread.join()

    def _record(self) -> None:
        block = self.asked["block"]
        for first in range(0, len(self.pcm), block):
            status = SimpleNamespace(input_overflow=first // block == self.overflow_at)
            self.callback(memoryview(self.pcm[first : first + block].tobytes()), block, None, status)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch, speech: Path) -> Recorder:
    recorder = Recorder(soundfile.read(speech, dtype="int16")[0])
    monkeypatch.setitem(sys.modules, "sounddevice", recorder)
    return recorder


def test_what_is_recorded(recorder: Recorder) -> None:
    recorder.overflow_at = 3
    source = open_microphone(RATE)
    assert recorder.asked == {"channels": 1, "dtype": "int16", "samplerate": RATE}
    assert not recorder.open  # nothing is recorded before somebody listens
    heard: list[Any] = []
    pieces = source.pieces
    while sum(map(len, heard)) < len(recorder.pcm):
        heard.append(next(pieces))
        assert recorder.open
    assert np.array_equal(np.concatenate(heard), recorder.pcm)
    assert source.notes == ["the microphone lost samples: this machine was too busy to take them"]
    pieces.close()  # type: ignore[attr-defined]  # it is a generator
    assert not recorder.open


def test_ctrl_c_ends_it(
    capsys: pytest.CaptureFixture[str], recorder: Recorder, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After all that is there was heard; what is stable by then is shown, and the microphone let go of."""
    monkeypatch.setattr("salmonrun.runtime.commands.microphone.SimpleQueue", Ending)
    code = main(["stream", str(tiny_bundle), "--microphone", "--no-endpoints", "--max-new-tokens", "8", "--json"])
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert code == 130
    assert [event["event"] for event in events][-1] == "result"
    assert events[-1]["finish_reason"] == "cancelled"
    assert events[-1]["timings"]["audio_s"] == pytest.approx(len(recorder.pcm) / RATE)
    assert {event["event"] for event in events} >= {"update", "result"}
    assert not recorder.open


class Ending:
    """A queue where Ctrl-C is pressed when it has been empty for a while."""

    def __init__(self) -> None:
        self._queue: queue.Queue[bytes] = queue.Queue()
        self.put, self.empty = self._queue.put, self._queue.empty

    @classmethod
    def __class_getitem__(cls, _: Any) -> type["Ending"]:
        return cls

    def get(self) -> bytes:
        try:
            return self._queue.get(timeout=1)
        except queue.Empty:
            raise KeyboardInterrupt from None


def test_no_microphone_records_so(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> None:
        raise recorder.PortAudioError("Invalid sample rate")

    monkeypatch.setattr(recorder, "check_input_settings", refuse)
    with pytest.raises(AudioError, match=r"no microphone records at 8000 Hz \(Invalid sample rate\); connect one"):
        open_microphone(8000)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to hear: expected FILE, - for standard input, or --microphone"),
        (["a.wav", "--microphone"], "--microphone with FILE 'a.wav': only one can be heard"),
        (["--microphone", "--pace", "realtime"], "--pace realtime with --microphone, which has no other pace"),
    ],
)
def test_what_cannot_be_meant(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["stream", "no-bundle", *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_an_absurd_rate(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*COMMAND, "--rate", "3"]) == 1
    assert "error: --rate is 3; expected 1000 to 768000 Hz" in capsys.readouterr().err
