"""Whisper or the audio encoder on our own kernels for CPUs: the whole of it in C++, but for what glues its parts."""

import threading
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from salmonrun.runtime.arrays import F32, Array
from salmonrun.runtime.bundle import Bundle
from salmonrun.runtime.encoders import beats, eat, whisper
from salmonrun.runtime.encoders.frames import FrontEnd
from salmonrun.runtime.encoders.native_weights import EncoderReader
from salmonrun.runtime.encoders.part import Past
from salmonrun.runtime.errors import BundleError
from salmonrun.runtime.manifest import NativeBeats, NativeEat, NativeEncoder, NativeWhisper
from salmonrun.runtime.tensor_file import TensorFile

if TYPE_CHECKING:
    from salmonrun.kernels.cpu import _native

CONV, KV = "past_conv", "past_kv"


class NativePart:
    """Satisfies `EncoderPart`. Runs do not overlap.

    What is kept: `past_conv` as the graph has it, and keys and values as one `past_kv` [layers, P, bytes] in uint8.
    """

    providers: tuple[str, ...] = ()
    elsewhere: tuple[str, ...] = ()

    def __init__(
        self,
        front: FrontEnd,
        encoder: "_native.Encoder",
        layers: int,
        hears_blocks: bool,
        released: TensorFile | None = None,
    ) -> None:
        self._front = front
        self._encoder = encoder
        self._layers = layers
        self._hears_blocks = hears_blocks
        self._released = released  # its weights, if whole recordings give their memory back
        self._running = threading.Lock()  # the extension takes one call at a time

    @property
    def hears_blocks(self) -> bool:
        """Whether it goes on from block to block."""
        return self._hears_blocks

    @property
    def width(self) -> int:
        """Of its states."""
        return self._encoder.dim

    @property
    def instruction_set(self) -> str:
        """That the extension runs on."""
        return self._encoder.instruction_set

    def run(self, **inputs: Array) -> F32:
        """The states [1, T, width] of a recording on its own."""
        with self._running:
            x, _ = self._front(self._encoder, inputs, self._front.nothing_past())
            self._forward(x, self._no_keys(), [])
            if self._released:
                self._released.release()
        return x[None, self._front.leading :]

    def run_on(self, past: Past, **inputs: Array) -> tuple[F32, Past]:
        """The states of what follows on what `past` has kept, and what there is to keep now."""
        kept = np.ascontiguousarray(past[KV])
        with self._running:
            x, heard = self._front(self._encoder, inputs, past[CONV])
            present = np.empty((self._layers, kept.shape[1] + len(x), kept.shape[2]), np.uint8) if len(x) else kept
            self._forward(x, kept, [present])
        return x[None], {CONV: heard, KV: present}

    def nothing_past(self) -> Past:
        """What has been kept before the first block: zeros, and no keys and values."""
        heard = self._front.nothing_past()
        return {} if heard is None or not self._hears_blocks else {CONV: heard, KV: self._no_keys()}

    def _no_keys(self) -> npt.NDArray[np.uint8]:
        return np.empty((self._layers, 0, self._encoder.position_bytes), np.uint8)

    def _forward(self, x: F32, past: npt.NDArray[np.uint8], present: list[npt.NDArray[np.uint8]]) -> None:
        """All layers, in place."""
        if len(x):
            self._encoder.forward(x, np.array([len(x)], np.int32), [past], present)


def load_native_encoder(bundle: Bundle, name: str, threads: int, release_weights: bool = False) -> NativePart:
    """One of the encoders of a bundle, on the fastest instruction set there is.

    Args:
        bundle: one that has weights for it.
        name: "whisper" or "audio_encoder".
        threads: to compute with.
        release_weights: give the memory of its weights back to the system after every whole recording.

    Raises:
        BundleError: it has no weights for our own kernels, or they are not as the manifest says.
        MissingExtraError: the kernels were not built.
    """
    manifest = bundle.manifest
    if manifest.encoders is None or name not in manifest.encoders.parts:
        raise BundleError(
            f"{bundle.folder} has no weights of {name} for our own kernels, only for "
            f"{', '.join(manifest.encoder_runtimes)}: choose another encoder, or export with --encoder native"
        )
    spec = manifest.encoders.parts[name]
    try:
        reader = EncoderReader(bundle, spec)
        front, encoder = _load(bundle, reader, spec, threads)
    except BundleError:  # a ValueError, too, and complete
        raise
    except ValueError as error:
        raise BundleError(f"{bundle.folder}/{spec.file}: {error}") from error
    released = reader.file if release_weights else None
    return NativePart(front, encoder, spec.layers, manifest.streaming is not None, released)


def _load(
    bundle: Bundle, reader: EncoderReader, spec: NativeEncoder, threads: int
) -> "tuple[FrontEnd, _native.Encoder]":
    manifest = bundle.manifest
    if isinstance(spec, NativeWhisper):
        return whisper.load(reader, spec, manifest.audio.n_mels, manifest.streaming is not None, threads)
    assert manifest.fbank is not None, "check_signatures has compared them"
    patch = manifest.fbank.patch_frames
    if isinstance(spec, NativeBeats):
        return beats.load(reader, spec, patch, threads)
    assert isinstance(spec, NativeEat), spec
    return eat.load(reader, spec, patch, threads)
