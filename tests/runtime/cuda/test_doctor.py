"""`salmonrun doctor`: every line of a machine as it is told to be, and of this one as it is."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import onnxruntime
import pytest

from salmonrun.__main__ import main
from salmonrun.kernels.cpu import load_native
from salmonrun.runtime import doctor
from salmonrun.runtime.cuda import ready
from salmonrun.runtime.cuda.driver import Driver, NoDriverError, read_driver
from salmonrun.runtime.doctor import Finding, examine
from salmonrun.runtime.errors import MissingExtraError
from tests.runtime.cuda.conftest import FakeCuda

CPUINFO = "processor : 0\nmodel name : A: 1\nflags : fpu avx2 fma avx512f\n\nprocessor : 1\nmodel name : B\nflags :\n"


@pytest.fixture
def with_gpus(fake_cuda: FakeCuda, stub_driver: Callable[[], Driver], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "read_driver", stub_driver)
    monkeypatch.setattr(metadata, "version", _version)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "flash_attn" else _Spec())


def _version(name: str) -> str:
    return {"torch": "2.15.0"}.get(name, "1.0")


class _Spec:
    origin = str(Path(__file__).parent / "torch" / "__init__.py")


def lines() -> dict[str, Finding]:
    return {finding.name: finding for finding in examine().findings}


def test_this_machine_without_anything_changed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("on the CPU: bundles run\n")
    assert f"onnxruntime     {onnxruntime.__version__}, providers " in printed
    if "native kernels  built" in printed:
        assert f"built, run with {load_native().instruction_sets()[0]}" in printed
    try:
        gpus = read_driver().gpus
    except NoDriverError:
        gpus = ()
    assert ("on a GPU: no bundle runs\n" in printed) or gpus
    for line in printed.splitlines():  # whatever is missing has a remedy below it
        assert re.match(r"on |  (ok     |MISSING|-      ) \S| {26}-> \S", line)
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["runs"]["cpu"] is True
    assert all(finding["remedy"] for finding in found["findings"] if finding["state"] != "ok")


@pytest.mark.usefixtures("with_gpus")
def test_a_machine_that_has_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "version.py").write_text("__version__ = '2.15.0'\ncuda: str | None = '13.0'\nhip = None\n")
    monkeypatch.setattr(_Spec, "origin", str(tmp_path / "__init__.py"))
    monkeypatch.setattr(doctor, "CPUINFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text(CPUINFO)
    diagnosis = examine()
    assert diagnosis.runs_on("cpu")
    assert diagnosis.runs_on("gpu")
    found = lines()
    assert found["processor"].found.startswith("A: 1, ")
    assert found["flags"].found == "avx2 fma avx512f"
    assert found["driver"].found == "runs CUDA 13.1"
    assert found["cuda:1"].found == "Stub 11, capability 9.0, 24576 MiB, 20011 free"
    assert found["CUDA provider"].found == "of onnxruntime, made with CUDA 13"
    assert found["torch"].found == "2.15.0, made with CUDA 13.0"
    assert found["flash-attn"] == Finding(
        "gpu",
        "flash-attn",
        "optional",
        "not installed: attention is computed by scaled_dot_product_attention",
        "pip install flash-attn --no-build-isolation, which needs nvcc; for GPUs of capability 8.0 or more",
    )
    assert (found["bitsandbytes"].found, found["triton"].found) == ("1.0", "1.0")
    (tmp_path / "version.py").write_text("__version__ = '2.15.0'\ncuda: str | None = None\n")
    assert (
        lines()["torch"].found == "2.15.0, made without CUDA: LLMs run on ONNX Runtime, those exported with "
        "--decoder torch not at all"
    )


@pytest.mark.usefixtures("with_gpus")
@pytest.mark.parametrize(
    ("environment", "name", "found", "remedy"),
    [
        ({"STUB_INIT": "803"}, "driver", "does not start (system has", "install NVIDIA's driver, or give"),
        ({"STUB_MAJOR": "6"}, "cuda:0", "Stub 10, capability 6.0", "at least 7.5 is needed"),
        ({"STUB_CUDA": "12080"}, "CUDA provider", "the driver runs CUDA 12.8", "install driver 580 or newer"),
    ],
)
def test_what_is_wrong_has_a_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, environment: dict[str, str], name: str, found: str, remedy: str
) -> None:
    (tmp_path / "version.py").write_text("")
    monkeypatch.setattr(_Spec, "origin", str(tmp_path / "__init__.py"))
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    finding = lines()[name]
    assert (finding.state, found in finding.found, finding.remedy.startswith(remedy)) == ("missing", True, True)
    assert not examine().runs_on("gpu")


@pytest.mark.usefixtures("with_gpus")
def test_libraries_and_wheels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "version.py").write_text("")
    monkeypatch.setattr(_Spec, "origin", str(tmp_path / "__init__.py"))
    monkeypatch.setattr(ready, "_loads", lambda name: "cudnn" not in name)
    missing = lines()["CUDA libraries"]
    assert (missing.state, missing.found) == ("missing", "libcudnn.so.9 cannot be loaded")
    assert missing.remedy.startswith("pip install 'onnxruntime-gpu[cuda,cudnn]'")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert lines()["CUDA provider"].remedy == "pip uninstall onnxruntime, then pip install 'salmonrun[cuda]'"


def test_without_kernels_onnx_runtime_does_their_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise MissingExtraError("the native kernels are not there: install CMake")

    monkeypatch.setattr(doctor, "kernels", missing)
    found = lines()["native kernels"]
    assert (found.state, found.remedy) == ("optional", "the native kernels are not there: install CMake")
    assert examine().runs_on("cpu")


def test_without_onnx_runtime_nothing_runs() -> None:
    program = (
        "import sys; sys.modules['onnxruntime'] = None\nfrom salmonrun.__main__ import main; sys.exit(main(['doctor']))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.returncode == 1, run.stderr
    assert "on the CPU: no bundle runs" in run.stdout
    assert "  MISSING onnxruntime     not installed\n" + 26 * " " + "-> pip install 'salmonrun[cpu]', or" in run.stdout
    assert "  MISSING CUDA provider   no onnxruntime\n" in run.stdout
