"""Weights in a safetensors file, read as they lie: mapped, and copied only for who asks for it; checked."""

import errno
import json
import math
import mmap
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from salmonrun.runtime.arrays import Array
from salmonrun.runtime.errors import BundleError

MAX_HEADER_BYTES = 32 * 2**20
ALIGNMENT = 64  # bytes: where a tensor may begin
DTYPES: dict[str, np.dtype[Any]] = {
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),  # which numpy has not: the bits
    "F32": np.dtype("<f4"),
}


class TensorFile:
    """The tensors of one file.

    Args:
        path: of the file.
        private: read it into memory of this process alone: what becomes of the file then changes nothing.

    Raises:
        BundleError: it is no safetensors file, or one whose tensors are not where docs/bundle.md has them.
    """

    def __init__(self, path: Path, private: bool = False) -> None:
        self._path = path
        try:
            with path.open("rb") as file:
                self._map = _read(file) if private else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise BundleError(f"{path} cannot be mapped: {error}") from error
        if not private:
            _advise_huge_pages(self._map)
        self._start, self._header = self._read_header()

    @property
    def names(self) -> frozenset[str]:
        """Of all its tensors."""
        return frozenset(self._header)

    def dimension(self, name: str, axis: int) -> int:
        """Of a tensor's shape: 0 where there is none, or it cannot be one."""
        found = self._header.get(name)
        shape = found.get("shape") if isinstance(found, dict) else None
        if not isinstance(shape, list) or len(shape) <= axis or type(shape[axis]) is not int:
            return 0
        return max(0, int(shape[axis]))

    def array(self, name: str, dtype: str, shape: tuple[int, ...]) -> Array:
        """A tensor, which cannot be written to.

        Raises:
            BundleError: it is missing, of another type or shape, or lies outside the file or at an odd place.
        """
        found = self._header.get(name)
        if not isinstance(found, dict):
            raise BundleError(f"{self._path} has no tensor {name!r}; export the bundle again")
        if (found.get("dtype"), found.get("shape")) != (dtype, list(shape)):
            raise BundleError(
                f"{self._path}: {name} is {found.get('dtype')} {found.get('shape')}, expected {dtype} {list(shape)}"
            )
        count = math.prod(shape)
        offset = self._place(name, found.get("data_offsets"), count * DTYPES[dtype].itemsize)
        return np.frombuffer(memoryview(self._map).toreadonly(), DTYPES[dtype], count, offset).reshape(shape)

    def release(self) -> None:
        """Give its memory back to the system; what is read again comes out of the page cache, or off the disk."""
        self._map.madvise(mmap.MADV_DONTNEED)

    def _place(self, name: str, offsets: Any, size: int) -> int:
        """Where in the file a tensor begins."""
        fine = isinstance(offsets, list) and len(offsets) == 2 and all(type(offset) is int for offset in offsets)
        if not fine or offsets[0] < 0 or offsets[1] - offsets[0] != size or self._start + offsets[1] > len(self._map):
            raise BundleError(f"{self._path}: {name} lies at {offsets}, expected {size} bytes within the file")
        begin: int = self._start + offsets[0]
        if begin % ALIGNMENT:
            raise BundleError(f"{self._path}: {name} begins at {begin}, expected a multiple of {ALIGNMENT}")
        return begin

    def _read_header(self) -> tuple[int, dict[str, Any]]:
        """Where the tensors begin, and what is said of each."""
        size = int.from_bytes(self._map[:8], "little")
        if not 2 <= size <= min(MAX_HEADER_BYTES, len(self._map) - 8):
            raise BundleError(f"{self._path} has a header of {size} bytes: it is not a safetensors file")
        try:
            header = json.loads(self._map[8 : 8 + size])
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{self._path} has a header that is not JSON ({error}); it was changed or cut") from error
        if not isinstance(header, dict):
            raise BundleError(f"{self._path} has a header that is no JSON object; it is not a safetensors file")
        header.pop("__metadata__", None)
        return 8 + size, header


def huge_page_bytes(path: Path) -> int | None:
    """How much of a file is mapped in huge pages, by this process; None where the system does not say."""
    try:
        lines = Path("/proc/self/smaps").read_text().splitlines()
    except OSError:
        return None
    total, ours, mapped = 0, False, str(path.resolve())
    for line in lines:
        key, _, value = line.partition(" ")
        if not key.endswith(":"):  # where a mapping is, and last its file
            ours = value.endswith(mapped)
        elif ours and key in ("FilePmdMapped:", "AnonHugePages:"):
            total += 1024 * int(value.split()[0])
    return total


def _read(file: BinaryIO) -> mmap.mmap:
    """All of a file, in memory that is no file's."""
    size = os.fstat(file.fileno()).st_size
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    memory = mmap.mmap(-1, size, **private)
    _advise_huge_pages(memory)
    if (read := file.readinto(memory)) != size:  # type: ignore[attr-defined]  # a buffered file has it
        raise OSError(f"it ends after {read} bytes of {size}")
    return memory


def _advise_huge_pages(mapped: mmap.mmap) -> None:
    """Before a page is touched: later, small ones stay small. Worth a third of the time of a step where kernel and file
    system take the advice; nothing where they do not.
    """
    if hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            mapped.madvise(mmap.MADV_HUGEPAGE)
        except OSError as error:
            if error.errno != errno.EINVAL:  # the kernel was built without
                raise
