"""A driver that is none, and ONNX Runtime with a CUDA provider that computes on the CPU."""

import functools
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest

from salmonrun.runtime import session
from salmonrun.runtime.cuda import ready
from salmonrun.runtime.cuda.driver import Driver, read_driver

SOURCE = Path(__file__).parents[2] / "helpers" / "stub_driver.c"


@pytest.fixture(scope="session")
def stub_driver(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Driver]:
    """Reads a library that stands for NVIDIA's driver, through the very functions that read the real one."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    library = tmp_path_factory.mktemp("driver") / "libcuda.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-Wall", "-Werror", "-o", library, SOURCE], check=True)
    return functools.partial(read_driver, cuda=str(library), nvml=str(library))


def _node(kind: str) -> SimpleNamespace:
    return SimpleNamespace(op_type=kind)


@dataclass
class FakeCuda:
    """What the fake provider does, and was told."""

    starts: bool = True  # whether sessions get it; ONNX Runtime takes the CPU in silence where it does not start
    on_cpu: tuple[str, ...] = ("Shape", "Gather", "Shape")  # operators that it leaves to the CPU
    options: dict[str, dict[str, str]] = field(default_factory=dict)  # of each session's provider, by its file's name
    to_host: list[tuple[int, ...]] = field(default_factory=list)  # shapes of what was brought from its memory
    to_device: list[tuple[int, ...]] = field(default_factory=list)
    runs_on_host: list[str] = field(
        default_factory=list
    )  # files of sessions that were given and gave arrays on the host


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch, stub_driver: Callable[[], Driver]) -> FakeCuda:
    """A machine with two GPUs, all libraries, and an ONNX Runtime made for CUDA, whose sessions compute on the CPU."""
    fake, real = FakeCuda(), onnxruntime.InferenceSession

    class Session(real):  # type: ignore[misc, valid-type]  # a class without types
        def __init__(self, path: str, options: Any, providers: list[Any], **rest: Any) -> None:
            asked = [one if isinstance(one, str) else one[0] for one in providers]
            if ready.PROVIDER in asked:
                fake.options[Path(path).name] = providers[0][1]
            self._file = Path(path).name
            super().__init__(path, options, providers=["CPUExecutionProvider"], **rest)
            self._shown = asked if fake.starts else ["CPUExecutionProvider"]

        def run(self, *args: Any, **kwargs: Any) -> Any:
            fake.runs_on_host.append(self._file)
            return super().run(*args, **kwargs)

        def get_providers(self) -> list[str]:
            return self._shown

        def get_provider_graph_assignment_info(self) -> list[Any]:
            parts = [("CPUExecutionProvider", kind) for kind in fake.on_cpu] + [(ready.PROVIDER, "MatMul")]
            return [SimpleNamespace(ep_name=ep, get_nodes=lambda kind=kind: [_node(kind)]) for ep, kind in parts]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(session, "memory_of", lambda _: ("cpu", 0))
    put, get = session._put, onnxruntime.OrtValue.numpy
    monkeypatch.setattr(session, "_put", lambda array, memory: fake.to_device.append(array.shape) or put(array, memory))
    monkeypatch.setattr(
        onnxruntime.OrtValue, "numpy", lambda value: fake.to_host.append(tuple(value.shape())) or get(value)
    )
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [ready.PROVIDER, "CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "cuda_version", "13.0", raising=False)
    monkeypatch.setattr(ready, "read_driver", stub_driver)
    monkeypatch.setattr(ready, "_loads", lambda _: True)
    return fake
