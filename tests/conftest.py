"""Models that many tests share, each made once."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

# Else bitsandbytes has what it computes on a CPU compiled, anew for every shape: seconds each, for the same values.
os.environ["TORCHDYNAMO_DISABLE"] = "1"  # PyTorch reads it when it is imported
# Triton reads it when it is imported, by whomever: kernels for GPUs are interpreted, unless it is set to 0, on a GPU.
os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
import torch
from hypothesis import settings

from salmonrun.export import ExportOptions, export_bundle
from salmonrun.export.options import ExportDecoder
from salmonrun.runtime import Engine
from salmonrun.runtime import engine as engine_module
from salmonrun.training.checkpoint import load
from salmonrun.training.model.salmonn import SalmonnModel
from salmonrun.training.starting.convert import convert_salmonn
from salmonrun.training.starting.init import init_checkpoint
from salmonrun.training.starting.presets import preset
from tests.helpers.hub import Hub, hub_server, point_client_at
from tests.helpers.streams import block_causal, scripted

# The same examples every time, and no limit on how long a busy machine takes for one.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")

# The models are so small that a second thread costs more than it brings.
torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--decoder torch`: what an engine does, it does with the decoder for GPUs, too."""
    parser.addoption(
        "--decoder", choices=["onnx", "torch"], default="onnx", help="of the shared bundles (default: onnx)"
    )


@pytest.fixture(scope="session")
def shared_decoder(request: pytest.FixtureRequest) -> ExportDecoder:
    """What bundles of fp32 are exported for: all that an engine does, it does on each of them."""
    chosen: ExportDecoder = request.config.getoption("--decoder")
    return chosen


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With another decoder only the tests that ask a shared bundle: the others do what they do without it."""
    if config.getoption("--decoder") == "onnx":
        return
    asking = [item for item in items if "shared_decoder" in getattr(item, "fixturenames", ())]
    asking = [item for item in asking if not item.get_closest_marker("onnx")]
    config.hook.pytest_deselected(items=[item for item in items if item not in asking])
    items[:] = asking


def pytest_configure(config: pytest.Config) -> None:
    """A worker of pytest-xdist has a core of its own: idle threads of ONNX Runtime spin, and would slow the others."""
    if hasattr(config, "workerinput") and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        number = int(config.workerinput["workerid"].removeprefix("gw"))
        os.sched_setaffinity(0, {cores[number % len(cores)]})


@pytest.fixture(scope="session")
def golden() -> Path:
    """Cases answered by the published code."""
    return Path(__file__).parent / "assets" / "golden"


@pytest.fixture(scope="session")
def speech(golden: Path) -> Path:
    """1.3 s of speech-like sound, 16 kHz, PCM16."""
    return golden / "w1.wav"


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "checkpoint"
    init_checkpoint(preset("tiny"), folder)
    return folder


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path, shared_decoder: ExportDecoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Encoders for ONNX Runtime alone: the same files whether our own kernels were built or not."""
    options = ExportOptions(encoder="onnx", decoder=shared_decoder)
    return export_bundle(tiny_checkpoint, tmp_path_factory.mktemp("tiny-bundle") / "bundle", options)


@pytest.fixture(scope="session")
def tiny_engine(tiny_bundle: Path) -> Engine:
    return Engine.load(tiny_bundle)


@pytest.fixture(scope="session")
def streaming_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hears in blocks of 0.32 and 0.64 s with 0.32 and 3.2 s before them, and 4 s at once."""
    folder = tmp_path_factory.mktemp("streaming") / "checkpoint"
    init_checkpoint(block_causal(max_s=4.0), folder, seed=1)
    return folder


@pytest.fixture(scope="session")
def streaming_model(streaming_checkpoint: Path) -> SalmonnModel:
    return load(streaming_checkpoint)


@pytest.fixture(scope="session")
def streaming_bundle(
    streaming_checkpoint: Path, shared_decoder: ExportDecoder, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("streaming-bundle") / "bundle"
    return export_bundle(streaming_checkpoint, folder, ExportOptions(decoder=shared_decoder))


@pytest.fixture(scope="session")
def streaming_engine(streaming_bundle: Path) -> Engine:
    return Engine.load(streaming_bundle)


@pytest.fixture(scope="session")
def golden_checkpoint(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden") / "checkpoint"
    salmonn = golden / "salmonn"
    convert_salmonn(
        salmonn / "salmonn.pth",
        folder,
        whisper=salmonn / "whisper",
        audio_encoder=golden / "beats" / "beats.pt",
        llm=salmonn / "llm",
    )
    return folder


@pytest.fixture(scope="session")
def golden_bundle(
    golden_checkpoint: Path, shared_decoder: ExportDecoder, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("golden-bundle") / "bundle"
    return export_bundle(golden_checkpoint, folder, ExportOptions(decoder=shared_decoder))


@pytest.fixture(scope="session")
def demo_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint that comes with the project, exported as `make demo` does it."""
    bundle = tmp_path_factory.mktemp("demo") / "bundle"
    options = ExportOptions(encoder_precision="int8", llm_precision="int4")
    return export_bundle(Path(__file__).parents[1] / "demo" / "checkpoint", bundle, options)


@pytest.fixture(scope="session")
def demo_engine(demo_bundle: Path) -> Engine:
    return Engine.load(demo_bundle)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have voice detection follow a script: so many hops of silence, then of speech, and so on."""
    return lambda *hops: monkeypatch.setattr(engine_module, "load_vad", lambda kind: scripted(*hops))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub on loopback, which huggingface_hub in this process speaks with; its cache is `tmp_path / "hub"`."""
    with hub_server() as served:
        point_client_at(served, tmp_path / "hub", monkeypatch)
        yield served
