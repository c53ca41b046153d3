"""The tensors of a file or folder by name, shape and dtype, without their values."""

import json
import pickletools
import struct
import zipfile
import zlib
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from salmonrun.runtime.errors import CheckpointError
from salmonrun.runtime.file_kind import explained
from salmonrun.training.foreign.fairseq import STAND_INS
from salmonrun.training.foreign.weight_files import weight_files
from salmonrun.training.tensors import LazyTensors, odd_pickle, pickle_reason

# safetensors' names of dtypes -> PyTorch's.
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32"}
DTYPES |= {"I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool", "F8_E4M3": "float8_e4m3fn"}


@dataclass(frozen=True)
class TensorInfo:
    """Shape and dtype of a tensor."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def count(self) -> int:
        """Number of values."""
        return torch.Size(self.shape).numel()


TensorTable = dict[str, TensorInfo]


def safetensors_table(path: Path) -> TensorTable:
    """The header of a .safetensors file (its format: 8 bytes of length, then JSON).

    Raises:
        CheckpointError: it has none.
    """
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(min(int.from_bytes(file.read(8), "little"), 100_000_000)))
        return {
            name: TensorInfo(tuple(info["shape"]), DTYPES.get(info["dtype"], info["dtype"].lower()))
            for name, info in header.items()
            if name != "__metadata__"
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} has no header of safetensors: {explained(path, error)}") from error


def folder_table(folder: Path) -> TensorTable:
    """All tensors of a folder's weights or adapters; shards that are missing have none."""
    files = weight_files(folder) or [folder / "adapter_model.safetensors"]
    tensors: TensorTable = {}
    for file in files:
        if file.is_file():
            tensors |= table(pickle_entries(file)) if file.suffix == ".bin" else safetensors_table(file)
    return tensors


def pickle_entries(path: Path) -> dict[str, Any]:
    """A PyTorch file with tensors that have shapes and no values; no code in it is run.

    Raises:
        CheckpointError: it is none, or it holds more than tensors and plain values.
    """
    try:
        with torch.serialization.safe_globals(list(STAND_INS)):
            loaded = torch.load(path, map_location="meta", weights_only=True)
    except Exception as error:  # whatever the bytes of another kind of file stumble over: IndexError, struct.error, ...
        reason = odd_pickle(path, error) or pickle_reason(error)
        raise CheckpointError(f"{path} cannot be read with weights_only=True: {reason}") from error
    return loaded if isinstance(loaded, dict) else {}


def pickled_words(path: Path) -> set[str]:
    """The strings in a PyTorch file that must not be unpickled: key names, and the classes it needs (`module name`)."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith("data.pkl")]
            data = archive.read(names[0]) if names else b""  # none: another kind of archive
        return {str(argument) for _, argument, _ in pickletools.genops(data) if isinstance(argument, str)}
    # No archive, a damaged one, or no pickle.
    except (zipfile.BadZipFile, zlib.error, ValueError, LookupError, EOFError, OSError, RuntimeError, struct.error):
        return set()


def table(state: Any) -> TensorTable:
    """The tensors of a state dict."""
    if not isinstance(state, dict):
        return {}
    return {
        name: TensorInfo(tuple(value.shape), str(value.dtype).removeprefix("torch."))
        for name, value in state.items()
        if isinstance(value, Tensor) and isinstance(name, str)
    }


def without_values(tensors: TensorTable) -> LazyTensors:
    """Tensors of these names, shapes and dtypes that have no memory."""

    def empty(info: TensorInfo) -> Tensor:
        return torch.empty(info.shape, dtype=getattr(torch, info.dtype, torch.uint8), device="meta")

    return {name: partial(empty, info) for name, info in tensors.items()}


def summary(tensors: TensorTable) -> dict[str, Any]:
    """How many tensors and parameters there are, and in which dtypes; a 4-bit matrix counts as what it stands for."""
    four_bit = {name.partition(".quant_state.")[0] for name in tensors if ".quant_state." in name}
    parameters = 0
    for name, info in tensors.items():
        matrix, dot, _ = name.partition(".weight.")  # P.weight of P.weight.absmax
        if dot and f"{matrix}.weight" in four_bit:
            continue
        values = 2 * getattr(torch, info.dtype).itemsize if name in four_bit else 1
        parameters += info.count * values
    dtypes = Counter(info.dtype for info in tensors.values())
    return {"tensors": len(tensors), "parameters": parameters, "dtypes": dict(sorted(dtypes.items()))}
