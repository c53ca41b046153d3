"""Text-to-speech engines that are programs: a command line turns text into a WAV file."""

import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from salmonrun.runtime.audio import F32, load_audio
from salmonrun.runtime.errors import ConfigError, MissingExtraError
from salmonrun.training.synthesis.synthesizer import SpeechSynthesizer, split_voices

ESPEAK_ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029")
ESPEAK_SPEAKERS: tuple[str, ...] = (
    *("f1", "f2", "f3", "f4", "m1", "m2", "m3", "m5", "m7", "m8"),
    *("adam", "Alex", "Andy", "Annie", "belinda", "boris", "ed", "Gene", "john", "Lee", "linda", "Marco", "Mario"),
    *("max", "michel", "pablo", "rob", "shelby"),
)
HELD_OUT_SPEAKERS = ("f5", "m4", "m6", "Denis", "Alicia", "travis", "victor", "steph")
FLITE_VOICES = ("kal16", "awb", "slt")  # slt is the only woman: a model must be trained on one
HELD_OUT_FLITE = ("rms",)


@dataclass(frozen=True)
class Espeak:
    """espeak-ng: formant synthesis, many speakers in several accents."""

    name = "espeak-ng"

    def require(self) -> None:
        """Check that espeak-ng is installed."""
        require_program("espeak-ng")

    def voices(self, held_out: bool) -> tuple[str, ...]:
        """Every speaker in every accent; a held-out speaker is held out in all of them."""
        speakers = HELD_OUT_SPEAKERS if held_out else ESPEAK_SPEAKERS
        return tuple(f"{accent}+{speaker}" for speaker in speakers for accent in ESPEAK_ACCENTS)

    def synthesize(self, text: str, voice: str, rng: np.random.Generator, scratch: Path) -> F32:
        """Speak a text at a random rate and pitch."""
        rate, pitch = rng.integers(120, 191), rng.integers(30, 71)
        return _run(["espeak-ng", "-v", voice, "-s", str(rate), "-p", str(pitch), "-w", str(scratch), text], scratch)


@dataclass(frozen=True)
class Flite:
    """flite: a few recorded speakers, by diphones or statistics."""

    name = "flite"

    def require(self) -> None:
        """Check that flite is installed."""
        require_program("flite")

    def voices(self, held_out: bool) -> tuple[str, ...]:
        """One of the four speakers, or the others."""
        return HELD_OUT_FLITE if held_out else FLITE_VOICES

    def synthesize(self, text: str, voice: str, rng: np.random.Generator, scratch: Path) -> F32:
        """Speak a text at a random rate and pitch."""
        stretch, pitch = rng.uniform(0.85, 1.25), rng.integers(85, 190)
        features = [f"duration_stretch={stretch:.2f}", f"int_f0_target_mean={pitch}"]
        settings = [item for feature in features for item in ("--setf", feature)]
        return _run(["flite", "-voice", voice, *settings, "-t", text, "-o", str(scratch)], scratch)


DEFAULT_SYNTHESIZERS: tuple[SpeechSynthesizer, ...] = (Espeak(), Flite())


@dataclass(frozen=True)
class Command:
    """Any other program, by a template of its command line; no shell is involved.

    `{text}` and `{out}` stand for the text and the WAV file to write, `{voice:a,b,c}` for one of these voices:
    `mytts --speaker {voice:anna,ben} --output {out} {text}`. Its rate is its own, and so is whether it is repeatable.
    """

    template: str

    name = "command"

    def __post_init__(self) -> None:
        if missing := [word for word in ("{text}", "{out}") if word not in self.template]:
            raise ConfigError(f"the command {self.template!r} has no {missing[0]}; see synthesize --help")
        if len(re.findall(r"\{voice\b", self.template)) > len(self._named):
            raise ConfigError(f"the command {self.template!r} names no voices; write {{voice:anna,ben}}")
        if len(self._named) > 1:
            raise ConfigError(f"the command {self.template!r} has several {{voice:...}}; expected one at most")
        try:
            shlex.split(self.template)
        except ValueError as error:
            raise ConfigError(f"the command {self.template!r} cannot be split into words: {error}") from None

    @property
    def _named(self) -> list[str]:
        return re.findall(r"\{voice:([^{}\s]+)\}", self.template)

    def require(self) -> None:
        """Check that the program is on the PATH."""
        program = shlex.split(self.template)[0]
        if shutil.which(program) is None:
            raise MissingExtraError(f"{program} is not installed, or not on the PATH; the command is {self.template!r}")

    def voices(self, held_out: bool) -> tuple[str, ...]:
        """The voices in the template; a command without any has one, "default"."""
        return split_voices(self._named[0].split(",") if self._named else ["default"], held_out)

    def synthesize(self, text: str, voice: str, rng: np.random.Generator, scratch: Path) -> F32:  # noqa: ARG002
        """Speak a text as the program does."""
        scratch.unlink(missing_ok=True)  # so that a program that writes nothing is noticed
        return _run(self.words(text, voice, scratch), scratch)

    def words(self, text: str, voice: str, out: Path) -> list[str]:
        """The command line."""
        filled = {r"{out}": str(out), r"{text}": text}  # in one pass: what is filled in is not looked at again
        return [
            re.sub(r"\{(?:out|text|voice:[^{}\s]+)\}", lambda match: filled.get(match[0], voice), word)
            for word in shlex.split(self.template)
        ]


def require_program(program: str) -> None:
    """Check that a program of Debian is there.

    Raises:
        MissingExtraError: names the package to install.
    """
    if shutil.which(program) is None:
        raise MissingExtraError(f"{program} is not installed; on Debian and Ubuntu: apt-get install {program}")


def _run(command: Sequence[str], out: Path) -> F32:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip() or error.stdout.strip()).splitlines()[-1:] or ["no message"]
        raise ConfigError(f"{shlex.join(command)} failed with status {error.returncode}: {last[0]}") from error
    if not out.is_file():
        raise ConfigError(f"{shlex.join(command)} wrote no {out}; expected a WAV file")
    return load_audio(out, min_s=0.1).pcm
