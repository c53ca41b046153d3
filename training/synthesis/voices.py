"""Text-to-speech engines by name, and the voices of all of them together."""

from collections.abc import Sequence

from salmonrun.runtime.errors import ConfigError
from salmonrun.training.synthesis.kokoro import Kokoro
from salmonrun.training.synthesis.piper import Piper
from salmonrun.training.synthesis.programs import Command, Espeak, Flite
from salmonrun.training.synthesis.synthesizer import SpeechSynthesizer, Voice


def parse_synthesizers(specs: Sequence[str]) -> tuple[SpeechSynthesizer, ...]:
    """Engines as the command line has them: espeak-ng, flite, piper=FOLDER, kokoro=FOLDER, command=TEMPLATE.

    Raises:
        ConfigError: no such engine, one without its source or with one it has no use for, or one named twice.
    """
    synthesizers = tuple(_parse_synthesizer(spec) for spec in specs)
    names = [synthesizer.name for synthesizer in synthesizers]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"engine {twice[0]} is named twice; its voices could not be kept apart")
    return synthesizers


def _parse_synthesizer(spec: str) -> SpeechSynthesizer:
    name, _, source = spec.partition("=")
    match name, bool(source):
        case "espeak-ng", False:
            return Espeak()
        case "flite", False:
            return Flite()
        case "piper", True:
            return Piper(source)
        case "kokoro", True:
            return Kokoro(source)
        case "command", True:
            return Command(source)
    raise ConfigError(f"engine {spec!r}; expected espeak-ng, flite, piper=FOLDER, kokoro=FOLDER or command=TEMPLATE")


def voices(synthesizers: Sequence[SpeechSynthesizer], held_out: bool) -> list[Voice]:
    """All voices of the training or of the held-out set, to draw from.

    Those of an engine are repeated until it speaks about a quarter as often as the one with most voices, or oftener.

    Raises:
        ConfigError: there is none.
    """
    groups = [[Voice(synthesizer, name) for name in synthesizer.voices(held_out)] for synthesizer in synthesizers]
    most = max((len(group) for group in groups), default=0)
    if not most:
        names = ", ".join(synthesizer.name for synthesizer in synthesizers) or "no engine"
        raise ConfigError(
            f"{names} has no voice to hold out; add voices or another engine (a single one is for training)"
        )
    return [voice for group in groups if group for voice in group * max(1, most // (4 * len(group)))]
