"""The audio encoders that a model can have beside Whisper. A further one is a file here and one in export/encoders.

Such a file has

- a config: a frozen dataclass of the sizes, with `kind`, by which a config.json tells the encoders apart, `fbank`, its
  front end, `dim`, the width of its states, `block_causal`, `longest_s`, `layer_prefix` and `with_layers()`, by which
  layers of it are left out, and `build()`, which makes
- a module: `forward(fbank, frames, block)`, normalised filter banks to states, a padded row as if it were alone;
- `recognises` and `read`: a published file under our names, every tensor used, left out for a reason, or an error.
"""

from collections.abc import Callable

from salmonrun.runtime.errors import CheckpointError
from salmonrun.training.model.encoders import beats, eat
from salmonrun.training.model.encoders.beats import BeatsConfig
from salmonrun.training.model.encoders.eat import EatConfig
from salmonrun.training.model.encoders.published import Leftovers, Published
from salmonrun.training.tensors import LazyTensors

AudioEncoderConfig = BeatsConfig | EatConfig
Reader = Callable[[Published], tuple[AudioEncoderConfig, LazyTensors, Leftovers]]

READERS: tuple[tuple[Callable[[Published], bool], Reader], ...] = (
    (beats.recognises, beats.read),
    (eat.recognises, eat.read),
)


def read_encoder(published: Published) -> tuple[AudioEncoderConfig, LazyTensors, Leftovers]:
    """Config and tensors of a published audio encoder, and what is left out of it.

    Raises:
        CheckpointError: it is of no kind that is known, or damaged.
    """
    for recognises, read in READERS:
        if recognises(published):
            return read(published)
    raise CheckpointError(f"{published.path} is no audio encoder that is known; expected BEATs or EAT")
