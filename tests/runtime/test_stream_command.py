"""`salmonrun stream`: against `Engine.stream`, from files and pipes, paced and interrupted."""

import argparse
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from salmonrun.runtime import EndpointConfig, Engine, GenerationConfig, Result, Segment, Stream, StreamConfig, Update
from salmonrun.runtime.__main__ import main
from salmonrun.runtime.bundle import open_bundle
from salmonrun.runtime.commands import stream as command
from salmonrun.runtime.errors import AudioError, ConfigError
from salmonrun.runtime.manifest import MANIFEST, manifest_bytes
from salmonrun.runtime.transcript import one_line

# Few tokens: longer answers of the tiny model count as degenerate, of which nothing is stable before the end.
OPTIONS = ["--vad", "energy", "--hypotheses", "2", "--hold-back", "2", "--max-new-tokens", "8"]
GENERATION = GenerationConfig(max_new_tokens=8)
CONFIG = StreamConfig(hypotheses=2, hold_back=2, endpoint=EndpointConfig(vad="energy"))

Events = list[dict[str, Any]]


@pytest.fixture(scope="module")
def talkative(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle without a stop token: every answer has text."""
    folder = Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("talkative") / "bundle"))
    manifest = open_bundle(folder).manifest
    prompt = replace(manifest.prompt, stop_token_ids=())
    (folder / MANIFEST).write_bytes(manifest_bytes(replace(manifest, prompt=prompt)))
    return folder


@pytest.fixture(scope="module")
def engine(talkative: Path) -> Engine:
    return Engine.load(talkative)


@pytest.fixture(scope="module")
def talk(speech: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two utterances, the second of which the recording's end cuts short."""
    pcm, rate = soundfile.read(speech, dtype="int16")
    path = tmp_path_factory.mktemp("talk") / "talk.wav"
    soundfile.write(path, np.concatenate([pcm, np.zeros(3 * rate // 2, np.int16), pcm]), rate)
    return path


@pytest.fixture(scope="module")
def raw(talk: Path) -> bytes:
    """The same as raw samples."""
    return bytes(soundfile.read(talk, dtype="int16")[0].astype("<i2").tobytes())


@pytest.fixture(scope="module")
def heard(engine: Engine, talk: Path) -> tuple[list[Update], Result, tuple[Segment, ...]]:
    """What the engine says of it, given it at once."""
    pcm, rate = soundfile.read(talk, dtype="int16")
    with engine.stream(config=CONFIG, generation=GENERATION, sample_rate=rate) as stream:
        updates = stream.push(pcm)
        return updates, stream.finish(), stream.segments


class Pipe(io.BytesIO):
    """Standard input of which so many bytes come at once, in turn; it can be interrupted after some of them."""

    def __init__(self, data: bytes, sizes: tuple[int, ...] = (1 << 20,), interrupted_at: int | None = None) -> None:
        super().__init__(data)
        self.sizes, self.reads, self.interrupted_at = sizes, 0, interrupted_at

    def read1(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        if self.interrupted_at is not None and self.tell() >= self.interrupted_at:
            raise KeyboardInterrupt
        return super().read1(min(size or 0, self.sizes[self.reads % len(self.sizes)]))


def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object, pipe: Pipe | None = None
) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    if pipe is not None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(pipe))
    code = main(["stream", *map(str, arguments)])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def events_of(out: str) -> Events:
    return [json.loads(line) for line in out.splitlines()]


def untimed(events: Events) -> Events:
    """Without what a clock says."""
    return [{k: v for k, v in e.items() if k not in ("latency_s", "lag_s", "timings")} for e in events]


def lines_of(segments: tuple[Segment, ...]) -> list[str]:
    return [f"[{s.start:.2f} - {s.end:.2f}] {' '.join(one_line(s.text).split())}" for s in segments]


# Against the engine


def test_the_recording_tells_things_apart(heard: tuple[list[Update], Result, tuple[Segment, ...]]) -> None:
    updates, result, segments = heard
    assert len(segments) == 2
    assert [bool(update.segment) for update in updates].count(True) == 1  # the other one ends with the audio
    assert sum(bool(update.delta) for update in updates) >= 2
    assert any(update.partial for update in updates)
    assert result.text == "\n".join(segment.text for segment in segments)
    assert len(result.text) > len(updates[-1].stable) > 0


def test_json_says_what_the_engine_does(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    talkative: Path,
    talk: Path,
    heard: tuple[list[Update], Result, tuple[Segment, ...]],
) -> None:
    updates, result, segments = heard
    code, out, err = run(capsys, monkeypatch, talkative, talk, "--json", *OPTIONS)
    assert (code, err) == (0, "")
    events = events_of(out)
    expected: Events = []
    for update in updates:
        fields = asdict(update)
        segment = fields.pop("segment")
        expected.append({"event": "update", **fields})
        if segment and update.segment:
            expected.append({"event": "utterance", **segment, "start": update.segment.start, "end": update.segment.end})
    last = segments[-1]
    expected.append({"event": "utterance", **asdict(last), "start": last.start, "end": last.end})
    delta = result.text[len(updates[-1].stable) :]
    expected.append({"event": "result", **asdict(result), "delta": delta, "policy": "agreement"})
    assert untimed(events) == untimed(json.loads(json.dumps(expected)))
    assert set(events[-1]["timings"]) == set(asdict(result.timings))
    assert "".join(event.get("delta", "") for event in events) == events[-1]["text"] == result.text


def test_lines_are_utterances(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    talkative: Path,
    talk: Path,
    heard: tuple[list[Update], Result, tuple[Segment, ...]],
) -> None:
    updates, result, segments = heard
    code, out, err = run(capsys, monkeypatch, talkative, talk, *OPTIONS)
    assert code == 0
    assert out.splitlines() == lines_of(segments)
    assert "\x1b" not in out
    assert len(err.splitlines()) == 1
    for part in ("4.1 s of audio, policy agreement, 2 utterances", f"{len(updates)} updates in", *result.notes):
        assert part in err


def test_options_reach_the_stream(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, talkative: Path, talk: Path
) -> None:
    seen: list[dict[str, Any]] = []
    stream = Engine.stream

    def spy(self: Engine, **keywords: Any) -> Any:
        seen.append(keywords)
        return stream(self, **keywords)

    monkeypatch.setattr(Engine, "stream", spy)
    options = "--policy agreement --update-s 1.5 --hypotheses 3 --hold-back 0 --max-lag-s 7 --no-endpoints"
    code, *_ = run(
        capsys, monkeypatch, talkative, talk, *options.split(), "--task", "qa", "--question", "Who?", *OPTIONS[-2:]
    )
    assert code == 0
    run(capsys, monkeypatch, talkative, talk, "--prompt", "<SpeechHere> Hm?", *OPTIONS[-2:])
    run(capsys, monkeypatch, talkative, talk, "--block-s", 0.32, "--lookback-s", 3.2)
    config = StreamConfig("agreement", 1.5, hypotheses=3, hold_back=0, endpoint=None, max_lag_s=7)
    assert seen[0]["config"] == config
    assert (seen[0]["task"], seen[0]["question"], seen[0]["prompt"]) == ("qa", "Who?", None)
    assert (seen[0]["generation"], seen[0]["sample_rate"]) == (GENERATION, 16000)
    assert (seen[1]["config"], seen[1]["prompt"]) == (StreamConfig(), "<SpeechHere> Hm?")
    assert (seen[2]["config"], seen[2]["generation"]) == (
        StreamConfig(block_s=0.32, lookback_s=3.2),
        GenerationConfig(),
    )


def test_what_was_done_to_a_file_is_noted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, talkative: Path, tmp_path: Path
) -> None:
    soundfile.write(tmp_path / "silence.wav", np.zeros((4000, 2)), 8000)
    code, out, err = run(capsys, monkeypatch, talkative, tmp_path / "silence.wav", *OPTIONS)
    assert (code, out) == (0, "")
    for part in ("channel 0 of 2", "8000 Hz resampled", "no speech in 0.5 s (vad energy)", "0 utterances, 0 updates"):
        assert part in err


def test_a_file_that_is_cut_off_is_noted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, talkative: Path, tmp_path: Path
) -> None:
    soundfile.write(path := tmp_path / "cut.wav", np.zeros(32_000), 16000)
    path.write_bytes(path.read_bytes()[: 44 + 16_000])
    code, _, err = run(capsys, monkeypatch, talkative, path, *OPTIONS)
    assert code == 0
    assert "the file ends after 0.50 s; its header says 2.00 s" in err


# Standard input


@pytest.mark.parametrize("sizes", [(1,), (1, 777, 3), (1 << 20,)], ids=str)
def test_a_pipe_says_what_the_file_does(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    talkative: Path,
    talk: Path,
    raw: bytes,
    sizes: tuple[int, ...],
) -> None:
    if sizes == (1,):
        raw = raw[:40001]
        talk = talk.with_name("start.wav")
        soundfile.write(talk, np.frombuffer(raw[:-1], "<i2"), 16000)
    _, expected, _ = run(capsys, monkeypatch, talkative, talk, "--json", *OPTIONS)
    code, out, err = run(capsys, monkeypatch, talkative, "-", "--json", *OPTIONS, pipe=Pipe(raw, sizes))
    assert (code, err) == (0, "")
    events, file_events = untimed(events_of(out)), untimed(events_of(expected))
    if sizes == (1,):
        assert events[-1]["notes"].pop(0) == "the last byte, half a sample, was left out"
    assert events == file_events


def test_a_pipe_of_another_process(talkative: Path, raw: bytes, engine: Engine) -> None:
    """With writes that part samples, at another rate, the last one half of a sample."""
    with subprocess.Popen(
        [sys.executable, "-m", "salmonrun", "stream", talkative, "-", "--json", "--rate", "8000", *OPTIONS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        first = 0
        for size in (1, 2, 9999, 4, 30001, len(raw)):
            process.stdin.write(raw[first : first + size])
            process.stdin.flush()
            first += size
        process.stdin.write(b"\0")
        process.stdin.close()
        events, err = events_of(process.stdout.read().decode()), process.stderr.read()
    assert (process.returncode, err) == (0, b"")
    with engine.stream(config=CONFIG, generation=GENERATION, sample_rate=8000) as stream:
        updates = stream.push(np.frombuffer(raw, "<i2").astype(np.int16))
        result = stream.finish()
    assert [event["delta"] for event in events if event["event"] == "update"] == [u.delta for u in updates]
    assert (events[-1]["text"], events[-1]["token_ids"]) == (result.text, result.token_ids)
    assert events[-1]["notes"] == ["the last byte, half a sample, was left out", *result.notes]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "standard input ended before the first sample"),
        (b"\1", "standard input ended before the first sample"),
        (b"RIFF....WAVE", "begins with b'RIFF'"),
        (b"fLaC....", "begins with b'fLaC'"),
        (b"ID3\4....", "begins with b'ID3"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("size", [1, 100])
def test_no_raw_pcm(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    talkative: Path,
    data: bytes,
    message: str,
    size: int,
) -> None:
    code, out, err = run(capsys, monkeypatch, talkative, "-", *OPTIONS, pipe=Pipe(data, (size,)))
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert message in err
    assert "ffmpeg -i INPUT -f s16le" in err


def test_a_terminal_is_no_source(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, talkative: Path
) -> None:
    pipe = Pipe(b"")
    pipe.isatty = lambda: True  # type: ignore[method-assign]
    code, out, err = run(capsys, monkeypatch, talkative, "-", pipe=pipe)
    assert (code, out) == (1, "")
    assert "standard input is a terminal" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--policy", "block"], "this bundle's encoders hear whole recordings"),
        (["--task", "translate"], "unknown task 'translate'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_unusable_options(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    talkative: Path,
    talk: Path,
    options: list[str],
    message: str,
) -> None:
    code, out, err = run(capsys, monkeypatch, talkative, talk, *options)
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert message in err


def test_an_unusable_rate_of_a_pipe(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, talkative: Path, raw: bytes
) -> None:
    code, _, err = run(capsys, monkeypatch, talkative, "-", "--rate", "0", pipe=Pipe(raw))
    assert code == 1
    assert "sample_rate is 0" in err


def parse(options: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(["bundle", "a.wav", *options.split()])


def test_endpoint_settings_reach_the_stream() -> None:
    arguments = parse("--pause-s 0.7 --silence-s 0.9 --longest-s 12 --margin-s 0.25 --vad energy")
    assert command._config(arguments).endpoint == EndpointConfig(0.9, 0.7, 12, 0.25, "energy")
    assert command._config(parse("")).endpoint == EndpointConfig()


def test_endpoint_settings_without_endpoints_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"--pause-s with --no-endpoints, .* leave out one of them"):
        command._config(parse("--no-endpoints --pause-s 1"))


def test_endpoints_or_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["stream", "bundle", "a.wav", "--vad", "energy", "--no-endpoints"])
    assert stopped.value.code == 2
    assert "not allowed with" in capsys.readouterr().err


# Interruption


@pytest.mark.parametrize("as_json", [True, False])
def test_an_interruption_shows_what_is_stable(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    talkative: Path,
    engine: Engine,
    raw: bytes,
    as_json: bool,
) -> None:
    """In the middle of the second utterance, of which some text is stable by then."""
    config = replace(CONFIG, hypotheses=1, hold_back=0)
    with engine.stream(config=config, generation=GENERATION) as stream:
        updates, segments = stream.push(np.frombuffer(raw, "<i2").astype(np.int16)), stream.segments
    text = segments[0].text
    last = next(update for update in updates if update.stable.startswith(text + "\n"))
    samples = round(last.audio_s * 16000)
    pipe = Pipe(raw, (1000,), interrupted_at=2 * samples)
    options = [*OPTIONS, "--hypotheses", 1, "--hold-back", 0, *(["--json"] if as_json else [])]
    code, out, err = run(capsys, monkeypatch, talkative, "-", *options, pipe=pipe)
    assert code == 130
    assert err.splitlines()[-1] == "interrupted"
    if not as_json:
        rest = one_line(last.stable.removeprefix(text))
        assert out.splitlines() == [*lines_of(segments), f"[...] {rest}"]
        assert "ended by cancelled" in err
        return
    events = events_of(out)
    assert [event["event"] for event in events].count("utterance") == 1
    assert events[-1]["event"] == "result"
    assert events[-1]["finish_reason"] == "cancelled"
    assert "".join(event.get("delta", "") for event in events) == events[-1]["text"] == last.stable


def test_an_error_leaves_what_was_stable(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, talkative: Path, raw: bytes
) -> None:
    def broken(*_: object) -> Iterator[np.ndarray[Any, Any]]:
        yield np.frombuffer(raw, "<i2")[:40000].astype(np.int16)
        raise AudioError("sample 40000 is nan")

    monkeypatch.setattr(command, "_pieces", lambda *_, **__: broken())
    code, out, err = run(capsys, monkeypatch, talkative, "-", "--no-endpoints", *OPTIONS[2:], pipe=Pipe(raw))
    assert (code, err) == (1, "error: sample 40000 is nan\n")
    assert out.startswith("[...] ")
    assert len(out.splitlines()) == 1


# Pace


@pytest.mark.parametrize(("options", "longest"), [([], 1600), (["--max-lag-s", "5"], 16000)], ids=["chunks", "whole"])
def test_what_is_pushed_at_once(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    talkative: Path,
    talk: Path,
    options: list[str],
    longest: int,
) -> None:
    """A stream that may leave out updates must see how much it has not heard yet."""
    sizes: list[int] = []
    push = Stream.push

    def spy(self: Stream, pcm: np.ndarray[Any, Any]) -> list[Update]:
        sizes.append(len(pcm))
        return push(self, pcm)

    monkeypatch.setattr(Stream, "push", spy)
    code, *_ = run(capsys, monkeypatch, talkative, talk, *OPTIONS, *options)
    assert code == 0
    assert max(sizes) == longest
    assert sum(sizes) == soundfile.info(talk).frames


def test_the_pace_is_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, talkative: Path, speech: Path
) -> None:
    paced: list[int] = []

    def fake(pieces: Iterator[np.ndarray[Any, Any]], rate: int) -> Iterator[np.ndarray[Any, Any]]:
        paced.append(rate)
        yield from pieces

    monkeypatch.setattr(command, "at_own_speed", fake)
    for pace, expected in ((), []), (("--pace", "realtime"), [16000]):
        run(capsys, monkeypatch, talkative, speech, *pace, *OPTIONS)
        assert paced == expected
