"""Recordings of people and of music in Debian's packages: fetched where apt-get is at hand, never committed.

| package | what | licence |
|---|---|---|
| asterisk-core-sounds-{en,es,fr,it,ru}-wav | prompts of telephone exchanges, 4 speakers | CC BY-SA 3.0 |
| asterisk-moh-opsound-wav | music for those who wait | CC BY-SA |
| pocketsphinx-testdata | LibriVox (public domain), cards, numbers | BSD |
| codec2-examples | voices over radio, quiet and noisy | LGPL 2.1 |
"""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr

from benchmarks.hearing.speech import EDGE_S
from salmonrun.runtime.audio import F32, SAMPLE_RATE
from salmonrun.training.data.acoustics import trim

LANGUAGES = ("en", "es", "fr", "it", "ru")
MUSIC = "asterisk-moh-opsound-wav"
PACKAGES = (
    *(f"asterisk-core-sounds-{language}-wav" for language in LANGUAGES),
    MUSIC,
    "pocketsphinx-testdata",
    "codec2-examples",
)
PROMPTS = 12  # of a telephone speaker
PROMPT_S = (1.2, 6.0)
NOT_SPOKEN = ("silence", "tone", "beep", "monkeys")
RADIO = ("cq_ref", "g3plx", "hts1a", "hts2a", "kristoff", "mmt1", "ve9qrp_10s", "vk5qi", "big_dog", "forig", "morig")
RADIO_HZ = 8000
SHORTEST_BYTES = 30_000  # of a read sentence


def fetch(folder: Path) -> bool:
    """Unpack what is not there yet; whether all of it is at hand."""
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        return all((folder / package).is_dir() for package in PACKAGES)
    folder.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES:
        if (folder / package).is_dir():
            continue
        if subprocess.run(["apt-get", "download", "-q", package], cwd=folder, capture_output=True).returncode:
            return False
        (archive,) = folder.glob(f"{package}_*.deb")
        subprocess.run(["dpkg-deb", "-x", str(archive), str(folder / package)], check=True)
        archive.unlink()
    return True


def people(folder: Path, seed: int) -> dict[str, F32]:
    """Sentences of a few seconds by name, without silence around them: PCM [N] at 16 kHz."""
    return {name: trim(pcm, EDGE_S) for name, pcm in _recordings(folder, np.random.default_rng(seed))}


def music(folder: Path) -> list[F32]:
    """Whole pieces: PCM [N] at 16 kHz."""
    return [_load(path) for path in sorted((folder / MUSIC).rglob("*.wav"))]


def _recordings(folder: Path, rng: np.random.Generator) -> Iterator[tuple[str, F32]]:
    for language in LANGUAGES:
        paths = sorted((folder / f"asterisk-core-sounds-{language}-wav").rglob("*.wav"))
        spoken = [path for path in paths if not any(word in str(path) for word in NOT_SPOKEN)]
        fitting = [path for path in spoken if PROMPT_S[0] < soundfile.info(path).duration < PROMPT_S[1]]
        for index in sorted(rng.permutation(len(fitting))[:PROMPTS]):
            yield f"{language}/{fitting[index].stem}", _load(fitting[index])
    for path in sorted((folder / "pocketsphinx-testdata").rglob("*")):
        if path.suffix in (".wav", ".raw") and path.stat().st_size > SHORTEST_BYTES:
            yield f"read/{path.stem}", _load(path, SAMPLE_RATE)[: round(PROMPT_S[1] * SAMPLE_RATE)]
    for name in RADIO:
        (path,) = (folder / "codec2-examples").rglob(f"{name}.raw")
        yield f"radio/{name}", _load(path, RADIO_HZ)[: round(PROMPT_S[1] * SAMPLE_RATE)]


def _load(path: Path, raw_hz: int = SAMPLE_RATE) -> F32:
    """At 16 kHz. Files without a header are 16-bit PCM."""
    if path.suffix == ".raw":
        pcm, rate = np.frombuffer(path.read_bytes(), "<i2").astype(np.float32) / 2**15, raw_hz
    else:
        pcm, rate = soundfile.read(path, dtype="float32", always_2d=True)
        pcm = pcm[:, 0]
    return np.asarray(soxr.resample(pcm, rate, SAMPLE_RATE), np.float32)
