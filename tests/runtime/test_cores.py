"""Whether others use the cores, as Linux says it."""

from pathlib import Path

import pytest

from salmonrun.runtime import cores


@pytest.fixture
def pressure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    path = tmp_path / "cpu"
    monkeypatch.setattr(cores, "PRESSURE", path)
    return path


def test_a_busy_machine_is_named(pressure: Path) -> None:
    pressure.write_text(
        "some avg10=43.40 avg60=1.00 avg300=0.00 total=7\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"
    )
    assert cores.waiting_share() == pytest.approx(0.434)
    assert cores.busy_note().startswith("the machine is busy: in 43% of the last 10 s")


def test_an_idle_machine_is_not(pressure: Path) -> None:
    pressure.write_text("some avg10=9.90 avg60=99.00 avg300=99.00 total=7\n")
    assert cores.busy_note() == ""


def test_a_system_that_does_not_say(pressure: Path) -> None:
    assert cores.waiting_share() is None
    pressure.write_text("")
    assert cores.waiting_share() is None
    assert cores.busy_note() == ""
