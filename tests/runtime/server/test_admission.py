"""Which streams are let in, by a clock that the tests set; and what they send."""

import io
import time
from collections.abc import Iterator

import numpy as np
import pytest
import soundfile

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from salmonrun.runtime import Engine
from salmonrun.runtime.errors import ConfigError
from salmonrun.runtime.server.admission import Pace, StreamAdmission, capacity
from salmonrun.runtime.server.api_error import ApiError
from salmonrun.runtime.server.config import ServerConfig
from salmonrun.runtime.server.realtime.audio import audio_format
from salmonrun.runtime.server.realtime_factor import SECONDS, STREAMS, real_time_factor


def test_audio_that_is_heard_at_once_is_not_late() -> None:
    pace = Pace()
    for now in np.arange(0, 10, 0.1):
        pace.arrived(0.1, now)
        assert pace.heard(0.1, now + 0.02) == pytest.approx(0.02)
        assert pace.lag_s(now + 50) == 0


def test_audio_that_waits_is_late_by_its_age() -> None:
    pace = Pace()
    for now in np.arange(0, 3, 0.1):
        pace.arrived(0.1, now)
    assert pace.lag_s(3.0) == pytest.approx(3.0)
    assert pace.heard(1.0, 3.0) == pytest.approx(3.0)
    assert pace.lag_s(3.0) == pytest.approx(2.0)
    pace.heard(2.0, 3.0)
    assert pace.lag_s(100.0) == 0


def test_a_file_that_comes_at_once_is_due_as_it_was_spoken() -> None:
    pace = Pace()
    pace.arrived(60.0, 0.0)
    pace.heard(30.0, 10.0)
    assert pace.lag_s(10.0) == 0
    assert pace.lag_s(35.0) == pytest.approx(5.0)


def test_a_client_that_pauses_is_not_late() -> None:
    pace = Pace()
    pace.arrived(1.0, 0.0)
    pace.heard(1.0, 0.5)
    pace.arrived(1.0, 100.0)
    assert pace.lag_s(100.2) == pytest.approx(0.2)


@pytest.mark.parametrize(("factor", "streams"), [(0.05, 16), (0.39, 2), (0.79, 1), (0.81, 0), (3.0, 0)])
def test_capacity(factor: float, streams: int) -> None:
    """So many that they take 80 % of real time together; none, if one alone would not keep up."""
    assert capacity(factor) == streams


def test_no_more_than_keep_up_and_none_while_one_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    streams = StreamAdmission(2)
    first = streams.enter()
    first.arrived(5.0, now)
    now = 2.0
    with pytest.raises(ApiError, match=r"a live stream is 2\.0 s behind real time") as refused:
        streams.enter()
    assert (refused.value.status, refused.value.headers) == (429, {"Retry-After": "10"})
    first.heard(5.0, now)
    second = streams.enter()
    with pytest.raises(ApiError, match="2 live streams are open, of 2 that keep up with real time"):
        streams.enter()
    streams.leave(second)
    assert streams.enter()


def test_what_is_measured(demo_engine: Engine) -> None:
    """Work of all streams, for each second of one of them."""
    clock: Iterator[float] = iter([100.0, 100.0 + 4 * STREAMS])
    assert real_time_factor(demo_engine, lambda: next(clock)) == pytest.approx(4 / SECONDS)


@pytest.mark.parametrize(("kind", "subtype"), [("audio/pcmu", "ULAW"), ("audio/pcma", "ALAW")])
def test_g711_is_what_libsndfile_reads(kind: str, subtype: str) -> None:
    data = bytes(range(256))
    expected, _ = soundfile.read(
        io.BytesIO(data), dtype="int16", format="RAW", subtype=subtype, samplerate=8000, channels=1
    )
    assert audio_format(kind, None).decode(data).tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("port", 70_000, "port is 70000; expected 0 "),
        ("max_running", 0, "max_running is 0; it must be above 0"),
        ("max_waiting", -1, "max_waiting is -1; it must not be negative"),
        ("max_streams", -1, "max_streams is -1"),
        ("timeout_s", "1", "timeout_s is '1'; expected a finite number"),
        ("api_keys", ("",), "api_keys has an empty value"),
    ],
)
def test_settings_that_are_none(field: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ServerConfig(**{field: value})  # type: ignore[arg-type]
