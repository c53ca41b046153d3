"""Piper: neural voices as ONNX files, https://github.com/OHF-Voice/piper1-gpl."""

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from salmonrun.runtime.audio import F32, load_audio
from salmonrun.runtime.errors import ConfigError, MissingExtraError
from salmonrun.training.synthesis.synthesizer import split_voices


@dataclass(frozen=True)
class Piper:
    """Voices in a folder, `NAME.onnx` beside `NAME.onnx.json`; of several speakers, each is `NAME#SPEAKER`."""

    folder: str

    name = "piper"

    def require(self) -> None:
        """Check that piper-tts is installed and that the folder has whole voices."""
        _import_piper()
        _speakers(self.folder)

    def voices(self, held_out: bool) -> tuple[str, ...]:
        """The held-out tenth of the folder's speakers, or the others. A voice in several qualities is one speaker."""
        return split_voices(_speakers(self.folder), held_out, _speaker)

    def synthesize(self, text: str, voice: str, rng: np.random.Generator, scratch: Path) -> F32:  # noqa: ARG002
        """Speak a text at a random rate."""
        loaded = _load(Path(self.folder) / f"{voice.split('#')[0]}.onnx")
        settings = _import_piper().SynthesisConfig(
            speaker_id=_speakers(self.folder)[voice],
            length_scale=rng.uniform(0.85, 1.25),
            # Noise is drawn inside the graph by a generator that no seed reaches; without it, speech is repeatable.
            noise_scale=0.0,
            noise_w_scale=0.0,
        )
        pcm = np.concatenate([chunk.audio_float_array for chunk in loaded.synthesize(text, settings)])
        return load_audio(pcm, loaded.config.sample_rate, min_s=0.1).pcm


def _speaker(voice: str) -> str:
    return re.sub(r"-(x_low|low|medium|high)\b", "", voice)


def _import_piper() -> Any:
    try:
        import piper
    except ImportError as error:
        raise MissingExtraError("piper is not installed; install it with: pip install piper-tts") from error
    return piper


@lru_cache
def _speakers(folder: str) -> dict[str, int | None]:
    """Voice -> speaker id, None for a model of one speaker."""
    speakers: dict[str, int | None] = {}
    for model in sorted(Path(folder).glob("*.onnx")):
        described = Path(f"{model}.json")
        if not described.is_file():
            raise ConfigError(f"{described} does not exist; a Piper voice is NAME.onnx and NAME.onnx.json")
        config = json.loads(described.read_text())
        if config.get("num_speakers", 1) == 1:
            speakers[model.stem] = None
        else:
            speakers |= {f"{model.stem}#{speaker}": number for speaker, number in config["speaker_id_map"].items()}
    if not speakers:
        raise ConfigError(f"{folder!r} has no Piper voice; expected NAME.onnx and NAME.onnx.json")
    return speakers


@lru_cache
def _load(model: Path) -> Any:
    """A voice on one thread: processes do the rest, and sums do not depend on the number of cores."""
    piper = _import_piper()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return piper.PiperVoice(
        session=onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"]),
        config=piper.PiperConfig.from_dict(json.loads(Path(f"{model}.json").read_text())),
    )
