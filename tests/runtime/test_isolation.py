"""Recordings that are decoded in processes of their own: the same samples, and no end of it is the engine's."""

import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from salmonrun.runtime import Engine, audio_file
from salmonrun.runtime.audio import load_audio
from salmonrun.runtime.audio_file import open_audio_file
from salmonrun.runtime.config import Limits
from salmonrun.runtime.errors import AudioError
from salmonrun.runtime.isolation import client
from salmonrun.runtime.isolation.client import decoding_server
from salmonrun.runtime.longform.reader import PcmReader
from tests.fuzz import audio
from tests.helpers.processes import children
from tests.helpers.waiting import until

ISOLATED = Limits(isolate_decoding=True)
ENGINE = """
import sys, time
from salmonrun.runtime.audio import load_audio
from salmonrun.runtime.config import Limits
from salmonrun.runtime.isolation.client import decoding_server
load_audio(sys.argv[1], limits=Limits(isolate_decoding=True))
print(decoding_server()._process.pid, flush=True)
time.sleep(600)
"""


def read(source: bytes | Path, limits: Limits) -> tuple[bytes, tuple[str, ...]] | str:
    """The samples and the notes of a recording, or why there are none."""
    try:
        heard = load_audio(source, limits=limits)
    except AudioError as error:
        return f"{type(error).__name__}: {error}"
    return heard.pcm.tobytes(), heard.notes


@pytest.mark.parametrize("index", range(0, len(audio.KINDS), 3))
def test_the_same_samples_or_the_same_words(index: int, tmp_path: Path) -> None:
    """Of every third container and codec, of stereo and of mono, whole and damaged, by bytes and by path."""
    (tmp_path / "whole").write_bytes(audio.whole(index, 1))
    damaged = audio.mutant(np.random.default_rng((0, index)), index)
    for source in (tmp_path / "whole", audio.whole(index, 0), damaged):
        assert read(source, ISOLATED) == read(source, Limits())


def test_in_pieces_and_from_the_middle(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "long.flac", np.random.default_rng(0).normal(0, 0.1, (3_000_000, 2)), 48_000)
    whole, isolated = (load_audio(tmp_path / "long.flac", limits=limits) for limits in (Limits(), ISOLATED))
    assert np.array_equal(whole.pcm, isolated.pcm)
    reader = PcmReader(tmp_path / "long.flac", limits=ISOLATED)
    for _ in range(2):
        first = next(reader.blocks())  # and the rest is not asked for
        assert np.array_equal(first, whole.pcm[: len(first)])
    assert np.array_equal(np.concatenate(list(reader.blocks())), whole.pcm)


@pytest.fixture
def decoder(speech: Path) -> Iterator[tuple[int, Iterator[object]]]:
    """A process that decodes, and a recording that is read of it a second at a time."""
    load_audio(speech, limits=ISOLATED)
    process = decoding_server()._process
    assert process
    until(lambda: children(process.pid) == [])
    content = io.BytesIO()
    soundfile.write(content, np.zeros(80_000), 16_000, format="WAV")
    with open_audio_file(content.getvalue(), limits=ISOLATED) as file:
        blocks = file.blocks(16_000)
        next(blocks)
        (pid,) = children(process.pid)
        yield pid, blocks


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
def test_a_crash_is_an_audio_error(decoder: tuple[int, Iterator[object]], number: signal.Signals, speech: Path) -> None:
    pid, blocks = decoder
    os.kill(pid, number)
    message = rf"cannot be read after 1\.00 s \(the decoder crashed with {number.name}\); its header says 5\.00 s"
    with pytest.raises(AudioError, match=message):
        next(blocks)
    assert read(speech, ISOLATED) == read(speech, Limits())


def test_computing_has_an_end(tmp_path: Path) -> None:
    """Half a million samples are no hang, but they take longer than this."""
    soundfile.write(tmp_path / "a.ogg", np.random.default_rng(0).normal(0, 0.1, 500_000), 48_000, subtype="VORBIS")
    limits = Limits(isolate_decoding=True, max_decoding_s=1e-6)
    with pytest.raises(AudioError, match=r"no samples after 1e-06 s of computing"):
        load_audio(tmp_path / "a.ogg", limits=limits)
    assert len(load_audio(tmp_path / "a.ogg", limits=ISOLATED).pcm) == -(-500_000 // 3)


def test_a_decoder_that_waits_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, speech: Path) -> None:
    load_audio(speech, limits=ISOLATED)
    process = decoding_server()._process
    assert process
    monkeypatch.setattr(client, "_PATIENCE", 0.0)
    os.kill(process.pid, signal.SIGSTOP)
    try:
        with pytest.raises(AudioError, match=r"the decoder has not answered for 0\.5 s"):
            load_audio(speech, limits=Limits(isolate_decoding=True, max_decoding_s=0.05))
    finally:
        os.kill(process.pid, signal.SIGCONT)
    monkeypatch.undo()
    load_audio(speech, limits=ISOLATED)


def test_memory_has_an_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of a decoder that may have no more than it begins with, the first block is refused."""
    soundfile.write(tmp_path / "a.wav", np.zeros(2**20), 16_000)
    monkeypatch.setattr(client, "_MEMORY", -8 * audio_file._LARGEST_ISOLATED_BLOCK)
    with pytest.raises(AudioError, match=r"cannot be read after 0\.00 s \(Unable to allocate 8\.00 MiB"):
        load_audio(tmp_path / "a.wav", limits=ISOLATED)
    monkeypatch.undo()
    assert len(load_audio(tmp_path / "a.wav", limits=ISOLATED).pcm) == 2**20


def test_who_forks_may_be_killed(speech: Path) -> None:
    load_audio(speech, limits=ISOLATED)
    process = decoding_server()._process
    assert process
    process.kill()
    process.wait()
    assert read(speech, ISOLATED) == read(speech, Limits())
    assert decoding_server()._process is not process


def test_threads_have_decoders_of_their_own(speech: Path) -> None:
    expected, found = read(speech, Limits()), []
    threads = [threading.Thread(target=lambda: found.append(read(speech, ISOLATED))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 8
    process = decoding_server()._process
    assert process
    until(lambda: children(process.pid) == [])  # and none is left
    assert len(os.listdir(f"/proc/{process.pid}/fd")) < 10


def test_it_ends_with_the_engine_however_that_ends(speech: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ENGINE, speech], stdout=subprocess.PIPE, text=True) as engine:
        assert engine.stdout
        pid = int(engine.stdout.readline())
        assert os.path.exists(f"/proc/{pid}")
        engine.kill()
    until(lambda: not os.path.exists(f"/proc/{pid}") or " Z " in Path(f"/proc/{pid}/stat").read_text())


def test_nothing_is_printed_by_decoders(tmp_path: Path) -> None:
    """Checksums of SDS, for one, libsndfile puts on standard output, where an answer belongs."""
    content = bytearray(audio.whole(audio.KINDS.index(("SDS", "PCM_16")), 1))
    content[120:121] = b"ab"
    (tmp_path / "a.sds").write_bytes(content)
    code = "import sys; from salmonrun.runtime import Limits, load_audio; load_audio(sys.argv[1], limits=Limits({}))"
    for limits, printed in ("", True), ("isolate_decoding=True", False):
        command = [sys.executable, "-c", code.format(limits), str(tmp_path / "a.sds")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ("Error" in done.stdout) is printed, done


def test_an_engine_decodes_as_its_limits_say(tiny_bundle: Path, speech: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, isolated = Engine.load(tiny_bundle), Engine.load(tiny_bundle, limits=ISOLATED)
    before = plain.generate(speech).text, [one.text for one in plain.transcribe(speech)[0]]
    monkeypatch.setattr(soundfile, "SoundFile", None)  # of this process, that nobody may use now
    with pytest.raises(AudioError):
        plain.generate(speech)
    assert (isolated.generate(speech).text, [one.text for one in isolated.transcribe(speech)[0]]) == before
