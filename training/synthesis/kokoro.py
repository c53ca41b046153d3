"""Kokoro-82M as an ONNX file, its phonemes by espeak-ng: https://huggingface.co/hexgrad/Kokoro-82M."""

import json
import subprocess
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnxruntime

from salmonrun.runtime.audio import F32, load_audio
from salmonrun.runtime.errors import ConfigError
from salmonrun.training.synthesis.programs import require_program
from salmonrun.training.synthesis.synthesizer import split_voices

RATE = 24000  # Hz
STYLES = 510  # a voice has one for each number of tokens
ACCENTS = {"a": "en-us", "b": "en-gb"}  # first letter of a voice -> its language; others do not speak English


@dataclass(frozen=True)
class Kokoro:
    """A folder with one `.onnx` (of any precision), Kokoro's `config.json` and `voices/NAME.bin`."""

    folder: str

    name = "kokoro"

    def require(self) -> None:
        """Check that espeak-ng is installed and that the folder is whole."""
        require_program("espeak-ng")
        _model(self.folder), _vocabulary(self.folder)
        if not self._names():
            raise ConfigError(f"{self.folder}/voices has no English voice; expected files like af_heart.bin")

    def voices(self, held_out: bool) -> tuple[str, ...]:
        """The held-out tenth of the English voices, or the others."""
        return split_voices(self._names(), held_out)

    def synthesize(self, text: str, voice: str, rng: np.random.Generator, scratch: Path) -> F32:  # noqa: ARG002
        """Speak a text at a random rate."""
        session = _load(_model(self.folder))
        tokens = self.tokens(text, voice)
        style = np.fromfile(Path(self.folder) / "voices" / f"{voice}.bin", np.float32).reshape(STYLES, 1, 256)
        inputs = (
            np.array([[0, *tokens, 0]]),
            style[min(len(tokens), STYLES - 1)],
            np.array([rng.uniform(0.8, 1.2)], np.float32),
        )
        names = [described.name for described in session.get_inputs()]  # tokens or input_ids; style; speed
        (pcm,) = session.run(None, dict(zip(names, inputs, strict=True)))
        return load_audio(pcm.reshape(-1), RATE, min_s=0.1).pcm

    def tokens(self, text: str, voice: str) -> list[int]:
        """Ids of a text's phonemes. As in the published front ends, marks that Kokoro does not know are dropped."""
        command = ["espeak-ng", "-q", "--ipa", "-v", ACCENTS[voice[0]], text]
        phonemes = subprocess.run(command, check=True, capture_output=True, text=True, encoding="utf-8").stdout
        vocabulary = _vocabulary(self.folder)
        return [vocabulary[mark] for mark in " ".join(phonemes.split()) if mark in vocabulary][:STYLES]

    def _names(self) -> list[str]:
        names = sorted(path.stem for path in (Path(self.folder) / "voices").glob("*.bin"))
        return [name for name in names if name[0] in ACCENTS]


def _model(folder: str) -> Path:
    models = sorted(Path(folder).glob("*.onnx"))
    if len(models) != 1:
        raise ConfigError(f"{folder!r} has {len(models)} .onnx files; expected one, a Kokoro model")
    return models[0]


@lru_cache
def _vocabulary(folder: str) -> dict[str, int]:
    """IPA mark -> token id."""
    file = Path(folder) / "config.json"
    if not file.is_file():
        raise ConfigError(f"{file} does not exist; expected the one published with Kokoro-82M")
    vocabulary: dict[str, int] = json.loads(file.read_text(encoding="utf-8"))["vocab"]
    return vocabulary


@lru_cache
def _load(model: Path) -> onnxruntime.InferenceSession:
    """On one thread: processes do the rest, and sums do not depend on the number of cores."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
