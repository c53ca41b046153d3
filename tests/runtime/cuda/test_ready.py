"""`device="cuda"`: what is missing is said before anything is loaded, and a provider that does not start is refused."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from salmonrun.export import ExportOptions, export_bundle
from salmonrun.runtime import Engine, GenerationConfig, Limits
from salmonrun.runtime.arrays import F32
from salmonrun.runtime.audio import Audio
from salmonrun.runtime.bundle import open_bundle
from salmonrun.runtime.cuda import pytorch, ready
from salmonrun.runtime.cuda.driver import Driver, NoDriverError, read_driver
from salmonrun.runtime.cuda.memory import weights_on_gpu
from salmonrun.runtime.decoders import choose
from salmonrun.runtime.decoders.onnx_decoder import OnnxDecoder
from salmonrun.runtime.decoders.torch_decoder.decoder import SEQUENCES, _pool_pages
from salmonrun.runtime.decoders.torch_decoder.pages import pages_of
from salmonrun.runtime.encoder import AudioEncoder
from salmonrun.runtime.errors import DeviceError
from salmonrun.runtime.manifest import OnnxWeights
from tests.helpers.exports import noise
from tests.runtime.cuda.conftest import FakeCuda


@pytest.fixture(scope="module")
def cuda_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_bundle(tiny_checkpoint, tmp_path_factory.mktemp("cuda") / "bundle", ExportOptions(target="cuda"))


@pytest.fixture(scope="module")
def torch_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that PyTorch alone runs."""
    options = ExportOptions(target="cuda", decoder="torch")
    return export_bundle(tiny_checkpoint, tmp_path_factory.mktemp("torch") / "bundle", options)


def test_every_session_is_on_the_gpu_that_was_named(cuda_bundle: Path, fake_cuda: FakeCuda) -> None:
    with Engine.load(cuda_bundle, device="cuda:1", limits=Limits(max_gpu_mib=1000, max_cache_mib=200)) as engine:
        report = engine.report()
        assert len(engine.generate(noise(1.0, 0), prompt="?", config=GenerationConfig(max_new_tokens=3)).token_ids) <= 3
    assert report.device == "cuda:1"
    assert set(report.providers) == {"whisper", "audio_encoder", "qformer", "llm"}
    assert {providers[0] for providers in report.providers.values()} == {"CUDAExecutionProvider"}
    assert report.elsewhere == dict.fromkeys(report.providers, ("Gather x1 on CPU", "Shape x2 on CPU"))
    assert len(fake_cuda.options) == 4
    assert {options["device_id"] for options in fake_cuda.options.values()} == {"1"}
    assert {options["use_tf32"] for options in fake_cuda.options.values()} == {"0"}
    limits = [int(options["gpu_mem_limit"]) for options in fake_cuda.options.values()]
    assert 790 * 2**20 < sum(limits) <= 800 * 2**20
    assert len(set(limits)) == 4


def test_states_stay_on_the_gpu(cuda_bundle: Path, fake_cuda: FakeCuda, tiny_engine: Engine) -> None:
    """Spectrograms go there, embeddings come back, and nothing else; what is computed is what the CPU computes."""
    audio = noise(1.3, 5)
    with Engine.load(cuda_bundle, device="cuda") as engine:
        found = engine.model.encoder.encode(audio)
    mel, bank = engine_features(tiny_engine, audio)
    assert fake_cuda.to_device == [(1, *mel.shape), (1, *bank.shape)]
    assert fake_cuda.to_host == [(1, *found.shape)]
    assert fake_cuda.runs_on_host == []
    np.testing.assert_array_equal(found, AudioEncoder(open_bundle(cuda_bundle), "cpu", 1, "onnx").encode(audio))


def engine_features(engine: Engine, audio: Audio) -> tuple[F32, F32]:
    mel, bank = engine.model.encoder.features(audio.pcm)
    assert bank is not None
    return mel, bank


def test_a_silent_fallback_is_refused(cuda_bundle: Path, fake_cuda: FakeCuda) -> None:
    fake_cuda.starts = False
    with pytest.raises(DeviceError, match=r"'cuda', but ONNX Runtime gave (llm|whisper) CPUExecutionProvider: .*above"):
        Engine.load(cuda_bundle, device="cuda")


def test_auto_takes_a_gpu_for_a_bundle_that_was_exported_for_one(
    cuda_bundle: Path, tiny_bundle: Path, fake_cuda: FakeCuda
) -> None:
    assert Engine.load(cuda_bundle).report().device == "cuda"
    assert Engine.load(tiny_bundle).report().device == "cpu"
    with pytest.raises(DeviceError, match=r"device='cuda', but the bundle was exported for the CPU; .* --target cuda"):
        Engine.load(tiny_bundle, device="cuda")


def test_auto_says_why_it_takes_the_cpu(
    cuda_bundle: Path, fake_cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("STUB_INIT", "100")
    assert Engine.load(cuda_bundle).report().device == "cpu"
    assert "the bundle, exported for a GPU, runs on the CPU: NVIDIA's driver is there, but sees no GPU" in caplog.text


@pytest.mark.parametrize(
    ("environment", "device", "message"),
    [
        ({"STUB_GPUS": "1"}, "cuda:1", r"there is no GPU 1: the driver shows cuda:0 \(Stub 10\), as CUDA_VISIBLE_DEV"),
        ({"STUB_CUDA": "12080"}, "cuda", r"made with CUDA 13, the driver runs CUDA 12\.8: install driver 580 or newer"),
        ({"STUB_MAJOR": "6"}, "cuda", r"Stub 10 has compute capability 6\.0, at least 7\.5 is needed"),
        ({"STUB_INIT": "803"}, "cuda", r"does not start \(system has unsupported driver\): install it, or give"),
        ({"STUB_FREE_MIB": "1"}, "cuda", r"needs \d+ MiB for weights .*, but Stub 10 has 1 of 24576 MiB free"),
    ],
)
def test_what_is_missing_is_named(
    cuda_bundle: Path,
    fake_cuda: FakeCuda,
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    device: str,
    message: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DeviceError, match=message):
        Engine.load(cuda_bundle, device=device)
    assert fake_cuda.options == {}


def test_libraries_that_are_missing_are_named(fake_cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    preloaded: list[None] = []
    there = {"libcudart.so.13", "libcublas.so.13", "libcurand.so.10"}
    monkeypatch.setattr(ready, "_loads", lambda name: name in there)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: preloaded.append(there.add("libcublasLt.so.13")))
    monkeypatch.setenv("STUB_GPUS", "1")
    with pytest.raises(DeviceError, match=r"^device='cuda' cannot be used: libcudnn\.so\.9 cannot be loaded: pip inst"):
        ready.require_gpu("cuda")
    assert len(preloaded) == 1


def test_all_that_is_missing_is_listed(fake_cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(ready, "read_driver", lambda: read_driver("no-such-library.so"))
    with pytest.raises(DeviceError, match=r"no CUDA provider: pip uninstall .*; NVIDIA's driver is not installed"):
        ready.require_gpu("cuda")


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (None, r"cannot be used by the torch decoder: PyTorch \S+ was made without CUDA: pip uninstall torch, then"),
        ("14.1", r"PyTorch \S+ was made with CUDA 14\.1, the driver runs CUDA 13\.1: update the driver"),
    ],
)
def test_a_pytorch_that_has_no_gpu_is_named(
    torch_bundle: Path,
    fake_cuda: FakeCuda,
    stub_driver: Callable[[], Driver],
    monkeypatch: pytest.MonkeyPatch,
    made: str | None,
    message: str,
) -> None:
    monkeypatch.setattr(pytorch, "pytorch_cuda", lambda: made)
    monkeypatch.setattr(pytorch, "read_driver", stub_driver)
    with pytest.raises(DeviceError, match=message):
        Engine.load(torch_bundle, device="cuda")
    assert fake_cuda.options == {}


def test_of_two_decoders_the_one_that_has_a_gpu_runs(
    torch_bundle: Path, fake_cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bundle, chosen = open_bundle(torch_bundle), []
    llm = replace(
        bundle.manifest.llm, weights=replace(bundle.manifest.llm.weights, onnx=OnnxWeights("float32", "fp32", "fp32"))
    )
    monkeypatch.setattr(OnnxDecoder, "load", lambda *arguments: chosen.append(arguments[1]))
    monkeypatch.setattr(pytorch, "pytorch_cuda", lambda: None)
    choose(replace(bundle, manifest=replace(bundle.manifest, llm=llm)), "auto", "cuda", 1)
    assert chosen == ["cuda"]
    assert "the LLM runs on ONNX Runtime: PyTorch " in caplog.text


def test_the_pool_stays_within_the_limit(torch_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, page, gpu = open_bundle(torch_bundle), 2**16, torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (70 * 2**30, 80 * 2**30))
    free = _pool_pages(bundle, page, gpu, Limits())
    weights = weights_on_gpu(bundle)
    allowed = 2**20 * 40 * weights["llm"] / sum(weights.values()) - weights["llm"]
    assert 0 < allowed / 2 - page < page * _pool_pages(bundle, page, gpu, Limits(max_gpu_mib=40)) <= allowed / 2
    assert (
        _pool_pages(bundle, page, gpu, Limits(max_gpu_mib=60_000))
        == free
        == SEQUENCES * pages_of(bundle.manifest.llm.max_length)
    )
    assert _pool_pages(bundle, page, gpu, Limits(max_gpu_mib=40, max_cache_mib=3)) == 3 * 2**20 // page


def test_nothing_is_hashed_before_the_gpu_is_there(tmp_path: Path, tiny_bundle: Path) -> None:
    """On this machine as it is: what opening the bundle would refuse is not looked at."""
    try:
        if read_driver().gpus:
            pytest.skip("there is a GPU")
    except NoDriverError:
        pass
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    (tmp_path / "bundle" / "whisper.onnx.data").write_bytes(b"")
    with pytest.raises(DeviceError, match="NVIDIA's driver is not installed"):
        Engine.load(tmp_path / "bundle", device="cuda")


def test_limits_that_are_too_small(cuda_bundle: Path, fake_cuda: FakeCuda) -> None:
    needed = sum(weights_on_gpu(open_bundle(cuda_bundle)).values())
    assert needed > 2**20
    with pytest.raises(DeviceError, match=r"needs \d+ MiB .*, but Limits\(max_gpu_mib=1\) allows no more"):
        Engine.load(cuda_bundle, device="cuda", limits=Limits(max_gpu_mib=1))
    with pytest.raises(DeviceError, match=r"needs 30\d\d\d MiB for weights and keys and values"):
        Engine.load(cuda_bundle, device="cuda", limits=Limits(max_cache_mib=30_000))
