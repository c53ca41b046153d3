"""docs/front-door.md: each row is answered as it says."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from salmonrun.runtime import Engine, GenerationConfig, Limits, SalmonrunError, StreamConfig, TranscribeConfig
from salmonrun.runtime import errors as tree
from tests.helpers.pages import ROOT

ROWS = re.findall(r"^\| `(.+?)` \| `(\w+)` \| `(.+)` \|$", (ROOT / "docs" / "front-door.md").read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def names(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the rows speak of; the folder of `bundle` and `talk.wav` is the one to be in."""
    folder = tmp_path_factory.mktemp("bad-input")
    shutil.copytree(demo_bundle, folder / "bundle")
    shutil.copyfile(ROOT / "demo" / "recordings" / "shopping.flac", folder / "talk.wav")
    closed = Engine.load(demo_bundle, verify=False)
    closed.close()
    settings = {kind.__name__: kind for kind in (GenerationConfig, Limits, StreamConfig, TranscribeConfig)}
    return {
        **settings,
        "Engine": Engine,
        "engine": Engine.load(demo_bundle, verify=False),
        "closed": closed,
        "silence": np.zeros(16000, np.float32),
        "hour": np.zeros(3600 * 16000, np.float32),
        "folder": folder,
    }


def test_there_are_rows() -> None:
    lines = (ROOT / "docs" / "front-door.md").read_text().splitlines()
    assert len(ROWS) == sum(line.startswith("| `") for line in lines) > 20


@pytest.mark.parametrize(("given", "error", "message"), ROWS, ids=[given for given, _, _ in ROWS])
def test_it_is_answered_so(
    names: dict[str, Any], monkeypatch: pytest.MonkeyPatch, given: str, error: str, message: str
) -> None:
    monkeypatch.chdir(names["folder"])
    with pytest.raises(SalmonrunError) as caught:
        eval(given, names)
    assert type(caught.value) is getattr(tree, error)
    pattern = ".*".join(map(re.escape, message.split("...")))
    assert re.fullmatch(pattern, str(caught.value), re.DOTALL), str(caught.value)
