"""Arrays of a .npz file, of which nothing is unpacked before it is known to be small and what it says."""

import io
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from salmonrun.runtime.arrays import Array
from salmonrun.runtime.errors import BundleError

MAX_ARRAYS = 64
_MAX_HEADER = 4096  # of an array in the file, in characters


def read_npz(path: Path, most: int) -> dict[str, Array]:
    """All arrays of a file, by their names.

    Args:
        path: of the file.
        most: bytes that all of them may have when they are unpacked.

    Raises:
        BundleError: it is no such file, is damaged, holds objects, or is larger.
    """
    try:
        with zipfile.ZipFile(path) as file:
            entries = file.infolist()
            size = sum(entry.file_size for entry in entries)
            if len(entries) > MAX_ARRAYS or size > most:
                raise BundleError(f"{path} unpacks to {len(entries)} arrays of {size} bytes; at most {most} are read")
            return {entry.filename.removesuffix(".npy"): _array(_unpacked(file, entry)) for entry in entries}
    # What zipfile raises of damaged archives, and numpy of damaged headers.
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError, RuntimeError, SyntaxError) as error:
        if isinstance(error, BundleError):
            raise
        raise BundleError(f"{path} cannot be read: {error}; export the bundle again") from error


def _unpacked(file: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """At most as many bytes as the directory says, whatever they unpack to."""
    with file.open(entry) as packed:
        content = packed.read(entry.file_size + 1)
    if len(content) != entry.file_size:
        raise ValueError(f"{entry.filename[:80]!r} has other than the {entry.file_size} bytes that are listed")
    return content


def _array(content: bytes) -> Array:
    """An array of a .npy file's bytes, which are all there."""
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    if version != (1, 0):
        raise ValueError(f"an array is of format {version}; expected (1, 0)")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream, max_header_size=_MAX_HEADER)
    count = _count(shape)
    if dtype.hasobject or dtype.kind not in "fiu" or fortran:
        raise ValueError(f"an array is of {dtype}, or in another order; expected numbers, row by row")
    if count * dtype.itemsize != len(content) - stream.tell():
        raise ValueError(f"an array is {list(shape)} of {dtype}, but has {len(content) - stream.tell()} bytes")
    array: np.ndarray[Any, Any] = np.frombuffer(content, dtype, count, stream.tell()).reshape(shape)
    return array


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        if size < 0:
            raise ValueError(f"an array has {size} rows")
        count *= int(size)
    return count
