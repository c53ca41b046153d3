"""Features kept on disk from one epoch to the next: all that comes before the first part that is trained."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm import tqdm

from salmonrun.runtime.errors import CheckpointError, ConfigError
from salmonrun.runtime.schema import to_dict
from salmonrun.training.data.annotation import Entry
from salmonrun.training.data.config import Augmentation
from salmonrun.training.data.recordings import load_recording
from salmonrun.training.model.features import Features, States, collate
from salmonrun.training.model.salmonn import SalmonnModel


class FeatureCache:
    """One file per recording: encoder states while both encoders are frozen, else spectrograms.

    Files are named by the recording (path, size, time of change), in a folder named by everything else they depend
    on, so that a cache never answers for other weights, settings or recordings. Values are kept as they are computed:
    the losses are those without a cache, to the rounding of the run's precision.

    Args:
        folder: may hold the caches of several models.
        model: its encoders' `requires_grad` says what is frozen.
        augment: of the run.
        dtype: of the run's products, in which states are computed.

    Raises:
        ConfigError: the augmentation changes what would be kept.
    """

    def __init__(
        self, folder: str | Path, model: SalmonnModel, augment: Augmentation, dtype: torch.dtype = torch.float32
    ) -> None:
        self._model = model
        self._dtype = dtype
        self.holds_states = not any(parameter.requires_grad for parameter in _encoders(model).parameters())
        if augment.changes_waveform or (augment.mask_p and self.holds_states):
            kept = "encoder states" if self.holds_states else "spectrograms"
            raise ConfigError(f"data.cache keeps {kept}, which augment would change: turn one of them off")
        if self.holds_states and model.config.streaming:
            raise ConfigError(
                "data.cache keeps encoder states, which differ by the blocks that are drawn: leave it out"
            )
        self._folder = Path(folder) / self._key()

    def fill(self, entries: Sequence[Entry], progress: bool = False) -> None:
        """Compute what is missing."""
        self._folder.mkdir(parents=True, exist_ok=True)
        missing = {path: entry for entry in entries if not (path := self._path(entry)).is_file()}
        for path, entry in tqdm(missing.items(), disable=not progress or not missing, desc="features", unit="file"):
            values = self._compute(entry)
            tensors = {name: value.contiguous().cpu() for name, value in vars(values).items() if value is not None}
            temporary = path.with_suffix(f".{os.getpid()}")
            save_file(tensors, temporary)
            temporary.rename(path)

    def read(self, entry: Entry) -> Features | States:
        """What `fill` computed.

        Raises:
            CheckpointError: the recording has changed since.
        """
        path = self._path(entry)
        if not path.is_file():
            raise CheckpointError(f"{entry.path} has changed since its features were kept; start the run again")
        tensors = load_file(path)
        if self.holds_states:
            return States(tensors["speech"], tensors.get("audio"))
        return Features(tensors["log_mel"], tensors.get("fbank"))

    def _compute(self, entry: Entry) -> Features | States:
        features = self._model.features(load_recording(entry, self._model.config.audio))
        if not self.holds_states:
            return features
        device = self._model.device
        with torch.no_grad(), torch.autocast(device.type, self._dtype, enabled=self._dtype != torch.float32):
            states = self._model.encode_states(collate([features]).to(device))
        return States(states.speech[0], None if states.audio is None else states.audio[0])

    def _key(self) -> str:
        config = self._model.config
        settings = {
            "audio": to_dict(config.audio),
            "fbank": to_dict(config.audio_encoder.fbank) if config.audio_encoder else None,
            "window": to_dict(config.qformer.window),
        }
        if self.holds_states:
            encoders = {name: to_dict(getattr(config, name)) for name in ("whisper", "audio_encoder", "whisper_lora")}
            settings |= encoders | {"dtype": str(self._dtype)}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        if self.holds_states:
            for name, value in _encoders(self._model).state_dict().items():
                digest.update(name.encode())
                digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return ("states-" if self.holds_states else "spectrograms-") + digest.hexdigest()[:16]

    def _path(self, entry: Entry) -> Path:
        files = [(str(path.resolve()), path.stat()) for path in (entry.path, *entry.appended)]
        text = json.dumps([(name, stat.st_size, stat.st_mtime_ns) for name, stat in files])
        return self._folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.safetensors"


def _encoders(model: SalmonnModel) -> nn.ModuleList:
    return nn.ModuleList([model.whisper, *([model.audio_encoder] if model.audio_encoder is not None else [])])
