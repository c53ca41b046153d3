"""Manifests of which anything was changed, and every hash is right."""

import copy
from pathlib import Path
from typing import Any

import numpy as np

from tests.fuzz.bundle_runs import KINDS, ask, fresh, make_bundles, put
from tests.fuzz.drafts import Rng
from tests.fuzz.mutations import other_number
from tests.helpers.damage import manifest_data

prepare = make_bundles

TEXTS = (
    "",
    "{}",
    "{} {}",
    "{0}",
    "<SpeechHere>",
    "\ud800",
    "\x00",
    "a\nb",
    "x" * 3000,
    "../up",
    "/etc/passwd",
    "llm",
    "é",
)
HALF = 0.5


def run(seed: int, index: int, folder: Path, material: Path) -> str:
    """The case of this number."""
    rng = np.random.default_rng((seed, index))
    bundle = fresh(material / KINDS[index % len(KINDS)], folder)
    manifest = manifest_data(bundle)
    for _ in range(int(rng.integers(1, 4))):
        change(rng, manifest)
    put(bundle, {}, manifest)
    return ask(bundle)


def change(rng: Rng, manifest: dict[str, Any]) -> None:
    """One place of it; half of the time not among hashes and provenance, which few read."""
    places = [(where, holder, key) for where, holder, key in walk(manifest)]
    if rng.random() < HALF:
        places = [place for place in places if place[0] not in ("files", "provenance", "graphs")]
    if not places:
        return
    _, holder, key = places[int(rng.integers(len(places)))]
    kind = rng.random()
    if kind < 0.05:
        del holder[key]
    elif kind < 0.1:
        holder[key] = copy.deepcopy(places[int(rng.integers(len(places)))][1])
    elif kind < 0.15 and isinstance(holder, dict):
        holder[str(rng.choice(["extra", "kind", "", "\ud800"]))] = holder[key]
    elif isinstance(holder[key], str) and rng.random() < 0.8:
        holder[key] = other_text(rng, holder[key])
    else:
        holder[key] = other_number(rng, holder[key])


def walk(value: Any, top: str = "") -> list[tuple[str, Any, Any]]:
    """Every place: the manifest's own key that it is under, what holds it, and its key there."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    places = []
    for key in keys:
        under = top or str(key)
        places += [(under, value, key), *walk(value[key], under)]
    return places


def other_text(rng: Rng, text: str) -> str:
    """A part of it, more of it, or another one."""
    kind, at = int(rng.integers(4)), int(rng.integers(len(text) + 1))
    other = TEXTS[int(rng.integers(len(TEXTS)))]
    return (text[:at], text[:at] + other + text[at:], other, text.upper())[kind]
