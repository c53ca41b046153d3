"""What is computed of a recording before the first part that is trained: what a feature cache keeps."""

import hashlib
import json

import torch
from torch import nn

from salmonrun.runtime.errors import ConfigError
from salmonrun.runtime.schema import to_dict
from salmonrun.training.data.annotation import Entry
from salmonrun.training.data.config import Augmentation
from salmonrun.training.data.recordings import load_recording
from salmonrun.training.model.features import Features, States, collate
from salmonrun.training.model.salmonn import SalmonnModel


class FrozenFeatures:
    """Encoder states while both encoders are frozen, else spectrograms.

    Kept in a cache of their `key`, they never answer for other weights or settings, and the losses are those without a
    cache, to the rounding of the run's precision.

    Args:
        model: by its encoders' `requires_grad` it is known what is frozen.
        augment: of the run.
        dtype: of the run's products, in which states are computed.

    Raises:
        ConfigError: the augmentation, or streaming, changes from one epoch to the next what would be kept.
    """

    def __init__(self, model: SalmonnModel, augment: Augmentation, dtype: torch.dtype = torch.float32) -> None:
        self._model = model
        self._dtype = dtype
        self._encoders = nn.ModuleList([part for part in (model.whisper, model.audio_encoder) if part is not None])
        self._are_states = not any(parameter.requires_grad for parameter in self._encoders.parameters())
        if augment.changes_waveform or (augment.mask_p and self._are_states):
            kept = "encoder states" if self._are_states else "spectrograms"
            raise ConfigError(f"data.cache keeps {kept}, which augment would change: turn one of them off")
        if self._are_states and model.config.streaming:
            raise ConfigError(
                "data.cache keeps encoder states, which differ by the blocks that are drawn: leave it out"
            )

    def compute(self, entry: Entry) -> Features | States:
        """The features of an entry's recording."""
        features = self._model.features(load_recording(entry, self._model.config.audio))
        if not self._are_states:
            return features
        device = self._model.device
        with torch.no_grad(), torch.autocast(device.type, self._dtype, enabled=self._dtype != torch.float32):
            states = self._model.encode_states(collate([features]).to(device))
        return States(states.speech[0], None if states.audio is None else states.audio[0])

    @property
    def key(self) -> str:
        """Names all that they depend on beside the recording: settings and, of states, the encoders' weights."""
        config = self._model.config
        settings = {
            "audio": to_dict(config.audio),
            "fbank": to_dict(config.audio_encoder.fbank) if config.audio_encoder else None,
            "window": to_dict(config.qformer.window),
        }
        if self._are_states:
            encoders = {name: to_dict(getattr(config, name)) for name in ("whisper", "audio_encoder", "whisper_lora")}
            settings |= encoders | {"dtype": str(self._dtype)}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        if self._are_states:
            for name, value in self._encoders.state_dict().items():
                digest.update(name.encode())
                digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return ("states-" if self._are_states else "spectrograms-") + digest.hexdigest()[:16]
