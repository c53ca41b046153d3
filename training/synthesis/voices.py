"""Who says it: text-to-speech programs, each a command line that turns text into a WAV file."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtime.audio import F32, load_audio
from runtime.errors import MissingExtraError


@dataclass(frozen=True)
class Voice:
    """One speaker of one program."""

    engine: str  # "espeak-ng" or "flite"
    name: str

    @property
    def label(self) -> str:
        """Names the speaker in annotations."""
        return f"{self.engine}:{self.name}"


ESPEAK_ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029")
ESPEAK_SPEAKERS: tuple[str, ...] = (
    *("f1", "f2", "f3", "f4", "m1", "m2", "m3", "m5", "m7", "m8"),
    *("adam", "Alex", "Andy", "Annie", "belinda", "boris", "ed", "Gene", "john", "Lee", "linda", "Marco", "Mario"),
    *("max", "michel", "pablo", "rob", "shelby"),
)
HELD_OUT_SPEAKERS = ("f5", "m4", "m6", "Denis", "Alicia", "travis", "victor", "steph")
FLITE_VOICES = ("kal16", "awb", "rms")
HELD_OUT_FLITE = ("slt",)


def voices(held_out: bool) -> list[Voice]:
    """Speakers of the training or of the held-out set; the two never share one."""
    speakers = HELD_OUT_SPEAKERS if held_out else ESPEAK_SPEAKERS
    espeak = [Voice("espeak-ng", f"{accent}+{speaker}") for speaker in speakers for accent in ESPEAK_ACCENTS]
    flite = [Voice("flite", name) for name in (HELD_OUT_FLITE if held_out else FLITE_VOICES)]
    # flite's few voices are spoken as often as a quarter of espeak-ng's many.
    return espeak + flite * max(1, len(espeak) // (4 * len(flite)))


def require_engines() -> None:
    """Check that the programs are there.

    Raises:
        MissingExtraError: names the Debian package to install.
    """
    for program in ("espeak-ng", "flite"):
        if shutil.which(program) is None:
            raise MissingExtraError(f"{program} is not installed; on Debian and Ubuntu: apt-get install {program}")


def speak(text: str, voice: Voice, rng: np.random.Generator, scratch: Path) -> F32:
    """Say a text at a random rate and pitch: PCM [N] at 16 kHz. `scratch` is overwritten."""
    if voice.engine == "espeak-ng":
        rate, pitch = rng.integers(120, 191), rng.integers(30, 71)
        command = ["espeak-ng", "-v", voice.name, "-s", str(rate), "-p", str(pitch), "-w", str(scratch), text]
    else:
        stretch, pitch = rng.uniform(0.85, 1.25), rng.integers(85, 190)
        features = [f"duration_stretch={stretch:.2f}", f"int_f0_target_mean={pitch}"]
        settings = [item for feature in features for item in ("--setf", feature)]
        command = ["flite", "-voice", voice.name, *settings, "-t", text, "-o", str(scratch)]
    subprocess.run(command, check=True, capture_output=True)
    return load_audio(scratch, min_s=0.1).pcm
