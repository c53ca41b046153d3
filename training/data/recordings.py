"""The audio of an annotation's entry: its recording and those appended to it, as one."""

import numpy as np

from salmonrun.runtime.audio import SAMPLE_RATE, Audio, load_audio
from salmonrun.runtime.config import AudioConfig
from salmonrun.runtime.errors import AudioError, CheckpointError
from salmonrun.training.data.annotation import GAP_S, Entry, Problem


def load_recording(entry: Entry, config: AudioConfig) -> Audio:
    """Read an entry's audio by the model's policy; appended recordings follow, each after a short silence.

    As in the published code, what is padded up to `min_s` is the whole, not each of the recordings.

    Raises:
        CheckpointError: names the entry whose recording is missing or unusable, or too long with those appended.
    """
    try:
        return _joined(entry, config)
    except AudioError as error:
        raise CheckpointError(str(Problem(entry.dataset, entry.index, str(error)))) from error


def _joined(entry: Entry, config: AudioConfig) -> Audio:
    if not entry.appended:
        return load_audio(entry.path, min_s=config.min_s, max_s=config.max_s)
    first, *others = (load_audio(path, min_s=0.0, max_s=config.max_s) for path in entry.recordings)
    gap = np.zeros(round(GAP_S * SAMPLE_RATE), np.float32)
    pcm = np.concatenate([first.pcm, *(piece for other in others for piece in (gap, other.pcm))])
    notes = [note for audio in (first, *others) for note in audio.notes]
    joined = Audio(
        pcm=pcm,
        source_rate=first.source_rate,
        source_channels=first.source_channels,
        source_s=len(pcm) / SAMPLE_RATE,
        notes=(*notes, f"{1 + len(others)} recordings joined, {GAP_S:g} s apart"),
    )
    return load_audio(joined, min_s=config.min_s, max_s=config.max_s)
