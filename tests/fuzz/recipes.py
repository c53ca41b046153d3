"""Recipes, annotations and answers of which bytes, words and values were changed."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from salmonrun.runtime.errors import SalmonrunError
from salmonrun.training.data.annotation import read_annotation
from salmonrun.training.evaluation.answers import Answered, read_answers, resume_answers
from salmonrun.training.finetuning.recipe import load_recipe
from tests.fuzz.drafts import Rng

RECIPES = Path(__file__).parents[2] / "recipes"
WORDS = (
    *(b"[" * 5000, b"{a: " * 3000, b"&a [*a]", b"*a", b"<<: *a", b"!!python/name:os.system"),
    *(b"\xff", b"\x00", b"9" * 5000, b"!!binary x", b"2026-13-45", b"0x", b"1e999", b".inf", b".nan"),
    *(b"~", b"- ", b": ", b"\n", b"\t", b"? ", b"'", b'"', b"null", b"{}", b"[]", b"-1", b"0", b"true"),
    *(b"../" * 30, b"\\u0000", b"\\ud800"),
)


def prepare(folder: Path) -> None:
    """The recipes that come with the project, an annotation and a file of answers."""
    for recipe in RECIPES.glob("*.yaml"):
        (folder / recipe.name).write_bytes(recipe.read_bytes())
    entries = [{"path": "a.wav", "text": "one", "task": "asr", "Q": "?", "expand_wav": ["b.wav"]}] * 3
    (folder / "annotation.json").write_text(json.dumps({"annotation": entries}))
    resume_answers(folder / "answers.jsonl", {"beams": 1})
    rows = [vars(Answered("a.json", i, "0.wav", "asr", "", "one", "won", 1.0, 0.1, -0.5)) for i in range(3)]
    with (folder / "answers.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


READERS: dict[str, Callable[[Path], object]] = {".yaml": load_recipe, ".json": read_annotation, ".jsonl": read_answers}


def run(seed: int, index: int, folder: Path, material: Path) -> str:
    """The case of this number."""
    rng = np.random.default_rng((seed, index))
    files = sorted(material.iterdir())
    source = files[index % len(files)]
    content = bytearray(source.read_bytes())
    for _ in range(int(rng.integers(1, 4))):
        change(rng, content)
    case = folder / source.name
    case.write_bytes(content)
    try:
        READERS[source.suffix](case)
    except SalmonrunError:
        return "refused"
    return "ran"


def change(rng: Rng, content: bytearray) -> None:
    """A byte, a stretch that is repeated, moved or gone, a word."""
    begin, end = sorted(int(n) for n in rng.integers(0, len(content) + 1, 2))
    end = min(end, begin + 60)
    kind = int(rng.integers(4))
    if kind == 0 and begin < len(content):
        content[begin] = int(rng.integers(256))
    elif kind == 1:
        content[begin:begin] = content[begin:end] * int(rng.integers(1, 30))
    elif kind == 2:
        del content[begin:end]
    else:
        content[begin : end if rng.random() < 0.5 else begin] = WORDS[int(rng.integers(len(WORDS)))]
