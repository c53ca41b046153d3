"""Writing safetensors files that are mapped as they lie: docs/bundle.md, `native`."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from salmonrun.runtime.bundle import NATIVE_PAGE
from salmonrun.runtime.errors import ConfigError
from salmonrun.runtime.tensor_file import ALIGNMENT, DTYPES

Array = npt.NDArray[Any]
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class TensorFileWriter:
    """Appends tensors to one file as they come, so that no more than one is in memory; the header is filled in last.

    The format knows no gaps between tensors: what fills up to the next multiple of 64 bytes is a tensor, too.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._file.seek(NATIVE_PAGE)
        self._header: dict[str, Any] = {}

    def __enter__(self) -> "TensorFileWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._fill(NATIVE_PAGE)
                self._write_header()
        finally:
            self._file.close()

    def add(self, name: str, array: Array) -> None:
        """A tensor of one of the dtypes that readers know."""
        self.stream(name, array.dtype, array.shape, [array])

    def stream(self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...], pieces: Iterable[Array]) -> None:
        """The same of an array that comes in pieces, in the order of its rows."""
        begin = self._file.tell()
        for piece in pieces:
            np.ascontiguousarray(piece).tofile(self._file)
        self._describe(name, _NAMES[dtype], shape, begin)
        assert self._file.tell() == begin + math.prod(shape) * dtype.itemsize, f"{name}: the pieces are not {shape}"
        self._fill(ALIGNMENT)

    def _describe(self, name: str, dtype: str, shape: tuple[int, ...], begin: int) -> None:
        assert name not in self._header, name
        offsets = [begin - NATIVE_PAGE, self._file.tell() - NATIVE_PAGE]
        self._header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": offsets}

    def _fill(self, multiple: int) -> None:
        begin = self._file.tell()
        missing = -begin % multiple
        if missing:
            self._file.write(bytes(missing))
            self._describe(f"padding.{len(self._header)}", "U8", (missing,), begin)

    def _write_header(self) -> None:
        text = json.dumps(self._header, separators=(",", ":")).encode()
        room = NATIVE_PAGE - 8
        if len(text) > room:
            raise ConfigError(
                f"the header of {len(self._header)} tensors has {len(text)} bytes, there is room for {room}"
            )
        self._file.seek(0)
        self._file.write(room.to_bytes(8, "little") + text.ljust(room))
