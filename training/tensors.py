"""Named tensors read on demand from safetensors and PyTorch files, and the strict check that all of them are used."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from salmonrun.runtime.errors import CheckpointError, ResourceError, SalmonrunError
from salmonrun.runtime.file_kind import explained, odd_kind, said_instead

# Loading is lazy, so that a checkpoint larger than memory can be read tensor by tensor.
LazyTensors = dict[str, Callable[[], Tensor]]


def open_safetensors(path: Path) -> LazyTensors:
    """The tensors of one .safetensors file, or of a folder with one file or a sharded index."""
    if path.is_dir():
        return _open_folder(path)
    try:
        with mapped(path) as file:
            return {name: _getter(path, name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except ResourceError:  # an OSError that is not the file's fault
        raise
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read as safetensors: {explained(path, said_instead(path) or _truncated(path) or error)}"
        ) from error


@contextmanager
def mapped(path: Path) -> Iterator[Any]:
    """A .safetensors file, as safetensors opens it for PyTorch.

    Raises:
        ResourceError: the system has no memory or no open files left for it.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            yield file
    except FileNotFoundError as error:  # safetensors says so of whatever it cannot open
        if not path.exists():
            raise
        raise ResourceError(f"{path} is there and cannot be opened; are too many open files the reason?") from error
    except RuntimeError as error:  # PyTorch's own, which maps the file once more
        raise ResourceError(f"{path} cannot be opened or mapped: {str(error).partition(chr(10))[0]}") from error


def _truncated(path: Path) -> str:
    """Whether a .safetensors file is shorter than its header says; empty if not, or if there is no header."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, 100_000_000)))
        said = 8 + length + max(info["data_offsets"][1] for name, info in header.items() if name != "__metadata__")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return ""
    return f"it is truncated: it has {size} bytes, its header lists {said}; get it again" if size < said else ""


def _open_folder(folder: Path) -> LazyTensors:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise CheckpointError(f"{index} has no weight_map; expected an index of shards")
        shards = sorted(set(weight_map.values()))
        tensors: LazyTensors = {}
        for shard in shards:
            tensors |= open_safetensors(folder / shard)
        return tensors
    single = folder / "model.safetensors"
    if not single.is_file():
        raise CheckpointError(
            f"{folder} has neither model.safetensors nor model.safetensors.index.json; convert other weights with "
            "transformers: AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    return open_safetensors(single)


def _getter(path: Path, name: str) -> Callable[[], Tensor]:
    def get() -> Tensor:
        # Opened anew for every tensor: pages of a mapping that have been read stay resident until it is closed.
        with mapped(path) as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor

    return get


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CheckpointError: there is no such file, or it is not a JSON object.
    """
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {explained(path, error)}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}; expected an object")
    return value


def read_sizes(raw: dict[str, Any], names: tuple[str, ...], where: str) -> list[int]:
    """The integers under these names, in their order.

    Raises:
        CheckpointError: one is missing or no integer.
    """
    for name in names:
        if not isinstance(raw.get(name), int):
            raise CheckpointError(f"{where} has no integer {name!r}: {raw.get(name)!r}; the model's size is not known")
    return [raw[name] for name in names]


def write_safetensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """A file of tensors.

    Raises:
        ResourceError: it cannot be written.
    """
    try:
        save_file(tensors, path, metadata=metadata)
    except SafetensorError as error:  # whatever the system has said is in its text alone
        raise ResourceError(f"{path} cannot be written: {error}") from error


@contextmanager
def foreign(path: Path) -> Iterator[None]:
    """What a file of others holds is used here: where it is of kinds that nobody foresaw, that is the file's fault.

    Raises:
        CheckpointError: in place of whatever such values stumble over.
    """
    try:
        yield
    except SalmonrunError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} holds values of kinds that no published file has ({reason}); see salmonrun inspect"
        ) from error


def load_pickle(path: Path, stand_ins: Sequence[tuple[Callable[..., Any], str]] = ()) -> dict[str, Any]:
    """A PyTorch file, memory-mapped, weights only: no code in it is ever run.

    Args:
        path: of the file.
        stand_ins: what to make instead of objects of foreign classes, by their full names.

    Raises:
        CheckpointError: it is not a PyTorch file, or it holds more than tensors and plain values.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist")
    try:
        with torch.serialization.safe_globals(list(stand_ins)):
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # whatever the bytes of another kind of file stumble over: IndexError, struct.error, ...
        if kind := odd_pickle(path, error):
            raise CheckpointError(f"{path} is no PyTorch file: {kind}") from error
        raise CheckpointError(
            f"{path} cannot be loaded with weights_only=True: {pickle_reason(error)}; "
            "files that need arbitrary code are refused: save tensors and plain values only"
        ) from error
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path} holds a {type(loaded).__name__}; expected a dict")
    return loaded


def pickle_reason(error: Exception) -> str:
    """What torch.load says, without its advice to run whatever is in the file."""
    text = str(error) or type(error).__name__
    cause = re.search(r"WeightsUnpickler error: (.+?)(?:\. |\n|$)", text)
    return cause[1] if cause else text.splitlines()[0].partition(". In PyTorch 2.6")[0]


def odd_pickle(path: Path, error: Exception) -> str:
    """What is in place of a PyTorch file that could not be read, and what to do; empty if nothing is known of it."""
    return odd_kind(path) or said_instead(path) or _cut_off(path, error)


def _cut_off(path: Path, error: Exception) -> str:
    """Whether a file in PyTorch's form before 1.6 ends too early; empty if not."""
    with path.open("rb") as file:
        begins = file.read(1) == b"\x80"
    if not begins or not re.search("EOF|Ran out of input", f"{type(error).__name__}: {error}"):
        return ""
    return f"it is truncated: it ends at {path.stat().st_size} bytes, and says that there is more; get it again"


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def lazy(tensors: dict[str, Tensor]) -> LazyTensors:
    """Tensors already at hand, in the lazy form."""
    return {name: _constant(tensor) for name, tensor in tensors.items()}


def _constant(tensor: Tensor) -> Callable[[], Tensor]:
    return lambda: tensor


def with_prefix(tensors: LazyTensors, prefix: str) -> LazyTensors:
    """The tensors whose names start with `prefix`, without it."""
    return {name.removeprefix(prefix): get for name, get in tensors.items() if name.startswith(prefix)}


def account_for(
    tensors: LazyTensors,
    names: Sequence[tuple[str, str]],
    leftovers: Sequence[tuple[str, str]],
    where: str,
    others: Sequence[str] = (),
) -> tuple[LazyTensors, dict[str, str]]:
    """A foreign file's tensors under our names, and what of it is left out, with the reason.

    Args:
        tensors: under their own names.
        names: patterns of whole names, and what to make of them.
        leftovers: patterns of names that are not needed, and why.
        where: names the file in errors.
        others: names of entries that are no tensors, and may only be left out.

    Raises:
        CheckpointError: a key is neither used nor a known leftover, or one is there under two names.
    """
    renamed: LazyTensors = {}
    left_out: dict[str, str] = {}
    unknown = []
    for name in (*tensors, *others):
        new = next((match.expand(to) for pattern, to in names if (match := re.fullmatch(pattern, name))), None)
        reason = next((reason for pattern, reason in leftovers if re.fullmatch(pattern, name)), None)
        if new in renamed:
            raise CheckpointError(f"{where} has {new} twice: as {name}, too")
        if new and name in tensors:
            renamed[new] = tensors[name]
        elif reason:
            left_out[name] = reason
        else:
            unknown.append(name)
    if unknown:
        raise CheckpointError(f"{where}: {len(unknown)} keys are not known: {', '.join(unknown[:5])}")
    return renamed, left_out


def load_strict(targets: dict[str, Tensor], tensors: LazyTensors, what: str) -> None:
    """Copy `tensors` into `targets` (a module's parameters): one tensor for each, none left over.

    Raises:
        CheckpointError: names the missing, extra and misshapen tensors.
    """
    missing, extra = sorted(set(targets) - set(tensors)), sorted(set(tensors) - set(targets))
    if missing or extra:
        raise CheckpointError(f"{what}: {_list('missing', missing)}{_list('not known', extra)}")
    with torch.no_grad():
        for name, get in tensors.items():
            tensor, target = get(), targets[name]
            if tensor.shape != target.shape:
                raise CheckpointError(f"{what}: {name} has shape {list(tensor.shape)}, expected {list(target.shape)}")
            if not tensor.is_floating_point():
                raise CheckpointError(f"{what}: {name} has dtype {tensor.dtype}, expected floating point")
            target.copy_(tensor)


def _list(what: str, names: list[str]) -> str:
    if not names:
        return ""
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return f"{len(names)} tensors {what} ({shown}); "
