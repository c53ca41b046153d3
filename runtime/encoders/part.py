"""What callers need of Whisper or the audio encoder, whatever runs it."""

from typing import Protocol

from salmonrun.runtime.arrays import F32, Array

Past = dict[str, Array]  # what is kept of the blocks before, by the names of inputs; never written to


class EncoderPart(Protocol):
    """An encoder that is loaded. Inputs and the result are those of its graph: docs/bundle.md."""

    @property
    def hears_blocks(self) -> bool:
        """Whether it goes on from block to block, and takes the hops around them."""
        ...

    @property
    def width(self) -> int:
        """Of its states."""
        ...

    @property
    def providers(self) -> tuple[str, ...]:
        """Execution providers of ONNX Runtime that are in use, first choice first; none of our own kernels."""
        ...

    @property
    def elsewhere(self) -> tuple[str, ...]:
        """Operators that are not computed on the GPU that it runs on; none of our own kernels."""
        ...

    @property
    def instruction_set(self) -> str | None:
        """That of our own kernels; None: ONNX Runtime runs it."""
        ...

    def run(self, **inputs: Array) -> F32:
        """The states [1, T, width] of a recording on its own: nothing was heard before."""
        ...

    def run_on(self, past: Past, **inputs: Array) -> tuple[F32, Past]:
        """The states of what follows on what `past` has kept, and what there is to keep now."""
        ...

    def nothing_past(self) -> Past:
        """What has been kept before the first block."""
        ...
