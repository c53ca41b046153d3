"""`python -m tests.kill_storm`: what it would find, and a few kills of it."""

import random
import shutil
from functools import partial
from pathlib import Path

import pytest

from tests.kill_storm import Victim, checkpoint_digest, half_made, storm


def test_what_opens_beside_the_output_is_found(tiny_bundle: Path, tmp_path: Path) -> None:
    assert half_made(tmp_path, tmp_path / "out") == []
    shutil.copytree(tiny_bundle, tmp_path / ".out.abcdefgh")
    assert half_made(tmp_path, tmp_path / "out") == [".out.abcdefgh opens"]
    (tmp_path / ".out.abcdefgh" / "bundle.json").unlink()
    shutil.copytree(tiny_bundle, tmp_path / "out")
    assert half_made(tmp_path, tmp_path / "out") == []
    next((tmp_path / "out").glob("*.onnx")).write_bytes(b"")
    assert half_made(tmp_path, tmp_path / "out") == ["out does not open"]


@pytest.mark.tools
@pytest.mark.timeout(300)
def test_a_few_kills(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def arguments(out: Path, preset: str) -> list[str | Path]:
        return ["init", out, "--preset", preset]

    victim = Victim("init", partial(arguments, preset="tiny"), checkpoint_digest, "checkpoint")
    assert storm(victim, tmp_path / "init", 4, random.Random(0)) == 0
    assert "init: the same as undisturbed, leftovers []" in capsys.readouterr().out
