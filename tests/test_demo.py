"""The checkpoint that comes with the project, exported as `make demo` does it, and what it says of its recordings."""

import json
from pathlib import Path

import pytest

from runtime import Engine

DEMO = Path(__file__).parents[1] / "demo"
ENTRIES = json.loads((DEMO / "recordings" / "annotation.json").read_text())["annotation"]


@pytest.mark.parametrize(
    "entry", ENTRIES, ids=lambda entry: f"{Path(entry['path']).stem}-{entry['Q'] or entry['task']}"
)
def test_the_demo_answers_right(demo_engine: Engine, entry: dict[str, str]) -> None:
    result = demo_engine.generate(DEMO / "recordings" / entry["path"], task=entry["task"], question=entry["Q"] or None)
    assert result.text == entry["text"]


def test_the_checkpoint_is_small() -> None:
    assert sum(path.stat().st_size for path in (DEMO / "checkpoint").iterdir()) <= 12_000_000


def test_the_recordings_are_held_out() -> None:
    from training.synthesis.texts import is_held_out

    spoken = [entry["text"] for entry in ENTRIES if entry["task"] == "asr"]
    assert len(spoken) == 6
    assert all(is_held_out(text) for text in spoken)
