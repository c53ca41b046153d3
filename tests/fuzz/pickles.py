"""Published .pth files, damaged or with other values, tensors and objects than they have: inspected, and opened."""

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from salmonrun.runtime.errors import SalmonrunError
from salmonrun.training.foreign.part_files import read_audio_encoder
from salmonrun.training.foreign.published import left_out_layers, lora_config, open_salmonn, qformer_config
from salmonrun.training.inspection.inspect import inspect_path
from tests.fuzz.drafts import Rng

GOLDEN = Path(__file__).parents[1] / "assets" / "golden"
OTHERS: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    2**70,
    float("nan"),
    float("inf"),
    "x",
    "",
    [],
    {},
    [None],
    {"a": [1]},
    b"x",
)
SHAPES = ((), (0,), (1,), (3,), (1, 3), (2, 3), (1, 2, 64), (1, 2, 3, 4), (0, 5))


class Marks:
    """Unpickled by anything but weights_only, it leaves a file: code in a pickle was run."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self._file,)


def prepare(folder: Path) -> None:
    """The published files of the golden cases."""
    for path in (GOLDEN / "salmonn" / "salmonn.pth", GOLDEN / "beats" / "beats.pt"):
        (folder / path.name).write_bytes(path.read_bytes())


def run(seed: int, index: int, folder: Path, material: Path) -> str:
    """The case of this number."""
    rng = np.random.default_rng((seed, index))
    files = sorted(material.iterdir())
    source, ran = files[index % len(files)], folder / "code-was-run"
    case = folder / source.name
    case.write_bytes(changed(rng, source, ran))
    try:
        inspect_path(case)
        use(case)
    except SalmonrunError:
        return "refused"
    finally:
        assert not ran.exists(), "code in a pickle was run"
    return "ran"


def use(path: Path) -> None:
    """As `convert` does, as far as the file alone goes."""
    if path.suffix == ".pt":
        read_audio_encoder(path)
        return
    file = open_salmonn(path)
    left_out_layers(file, prune=True)
    qformer_config(file)
    for part in ("lora", "whisper_lora"):
        lora_config(file, part)


def changed(rng: Rng, source: Path, ran: Path) -> bytes:
    """Other values, or other bytes."""
    if rng.random() < 0.3:
        content = bytearray(source.read_bytes())
        for place in rng.integers(0, len(content), int(rng.integers(1, 20))):
            content[place] = int(rng.integers(256))
        return bytes(content[: int(rng.integers(len(content)))] if rng.random() < 0.3 else content)
    loaded = torch.load(source, weights_only=True)
    for _ in range(int(rng.integers(1, 4))):
        change(rng, loaded, ran)
    saved = io.BytesIO()
    torch.save(loaded, saved, pickle_module=pickle)
    return saved.getvalue()


def change(rng: Rng, loaded: dict[str, Any], ran: Path) -> None:
    """One entry, at the top or in what it holds."""
    holders = [loaded, *(value for value in loaded.values() if isinstance(value, dict))]
    holders += [value for holder in holders[1:] for value in holder.values() if isinstance(value, dict)]
    holder = holders[int(rng.integers(len(holders)))]
    if not holder:
        return
    key = list(holder)[int(rng.integers(len(holder)))]
    kind = rng.random()
    if kind < 0.1:
        del holder[key]
    elif kind < 0.15:
        holder[[0, None, ("a",), "model"][int(rng.integers(4))]] = holder[key]
    elif kind < 0.2:
        holder[key] = Marks(ran)
    elif kind < 0.5:
        shape = SHAPES[int(rng.integers(len(SHAPES)))]
        holder[key] = torch.zeros(shape, dtype=[torch.float32, torch.int64, torch.float16][int(rng.integers(3))])
    else:
        holder[key] = OTHERS[int(rng.integers(len(OTHERS)))]
