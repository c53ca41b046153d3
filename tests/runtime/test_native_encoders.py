"""Encoders on our own kernels: near PyTorch's at any length and in blocks, and never out of their files' bounds."""

import json
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from salmonrun.export import ExportOptions, export_bundle
from salmonrun.export import bundle as export_module
from salmonrun.runtime import Engine, encoders
from salmonrun.runtime.arrays import F32
from salmonrun.runtime.bundle import NATIVE_PAGE, Bundle, open_bundle
from salmonrun.runtime.config import Block
from salmonrun.runtime.encoder import AudioEncoder, run_whisper
from salmonrun.runtime.encoders import choose, load_encoders
from salmonrun.runtime.encoders.native_encoder import load_native_encoder
from salmonrun.runtime.encoders.part import EncoderPart
from salmonrun.runtime.errors import AudioTooLongError, BundleError, ConfigError, DeviceError, MissingExtraError
from salmonrun.runtime.streaming.block_encoder import BlockEncoder
from salmonrun.training.checkpoint import load
from salmonrun.training.model.config import ModelConfig
from salmonrun.training.model.salmonn import SalmonnModel
from salmonrun.training.starting.init import init_checkpoint
from tests.helpers.damage import reseal
from tests.helpers.encoders import BEATS, EAT, FILES, ODD_BEATS, ODD_EAT, ODD_WHISPER, RANKS, config
from tests.helpers.streams import block_causal, noise

pytest.importorskip("salmonrun.kernels.cpu._native")

EXACT = 1e-4  # the largest difference in fp32, of the activations' rms
ROUNDED = {"bf16": 0.02, "int8": 0.05}  # the error's rms, of the activations'
LOW_RANK = replace(ODD_WHISPER, ranks=RANKS)
CASES: dict[str, ModelConfig] = {
    "beats": config(BEATS),
    "eat": config(EAT),
    "whisper alone": config(None),
    "odd sizes, beats": config(ODD_BEATS, whisper=ODD_WHISPER),
    "odd sizes, eat": config(ODD_EAT, whisper=ODD_WHISPER),
    "low rank": config(None, whisper=LOW_RANK),
    "blocks": block_causal(16),
    "blocks, odd sizes": replace(block_causal(17), audio_encoder=ODD_BEATS, whisper=LOW_RANK),
}
BLOCKS = [name for name, case in CASES.items() if case.streaming]


@dataclass(frozen=True, eq=False)
class Native:
    """A model in PyTorch, and its encoders on our own kernels."""

    model: SalmonnModel
    bundle: Bundle
    parts: dict[str, EncoderPart]
    precision: str

    def near(self, found: F32, expected: F32) -> bool:
        """As near as the precision allows."""
        assert found.shape == expected.shape
        exact = self.precision == "fp32"
        scale = max(1.0, float(np.sqrt(np.mean(expected**2)))) if exact else np.sqrt(np.mean(expected**2))
        difference = found - expected
        if exact:
            return bool(np.abs(difference).max() <= EXACT * scale)
        return 0 < np.sqrt(np.mean(difference**2)) <= ROUNDED[self.precision] * scale


def native_of(case: ModelConfig, folder: Path, precision: Any) -> Native:
    """Export's own proof is left out, for time."""
    init_checkpoint(case, folder / "checkpoint", seed=5)
    options = ExportOptions(encoder_precision=precision, encoder="native")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("prove", "write_card"):
            patch.setattr(export_module, name, lambda *args: None)
        bundle = open_bundle(export_bundle(folder / "checkpoint", folder / "bundle", options))
    return Native(load(folder / "checkpoint"), bundle, load_encoders(bundle, "native", "cpu", 2), precision)


@pytest.fixture(scope="module", params=["fp32", "bf16", "int8"])
def precision(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module", params=list(CASES))
def native(request: pytest.FixtureRequest, precision: Any, tmp_path_factory: pytest.TempPathFactory) -> Native:
    return native_of(CASES[request.param], tmp_path_factory.mktemp("native"), precision)


@pytest.fixture(scope="module", params=BLOCKS)
def streaming(request: pytest.FixtureRequest, precision: Any, tmp_path_factory: pytest.TempPathFactory) -> Native:
    return native_of(CASES[request.param], tmp_path_factory.mktemp("streaming"), precision)


@pytest.fixture(scope="module")
def beats(tmp_path_factory: pytest.TempPathFactory) -> Native:
    return native_of(CASES["beats"], tmp_path_factory.mktemp("beats"), "int8")


def log_mel(frames: int, seed: int = 0) -> F32:
    """[80, 2 * frames], as lively as a real one."""
    return np.random.default_rng(seed).normal(0, 0.5, (80, 2 * frames)).astype(np.float32)


def fbank(frames: int, seed: int = 0) -> F32:
    return np.random.default_rng(seed).normal(0, 0.5, (1, frames, 128)).astype(np.float32)


# Near PyTorch


@torch.inference_mode()
@pytest.mark.parametrize("frames", [1, 2, 17, 255, 257, 1499, 1500])
def test_whisper_at_any_length(native: Native, frames: int) -> None:
    mel = log_mel(frames)
    expected = native.model.whisper(torch.from_numpy(mel[None]))[0].numpy()
    assert native.near(run_whisper(native.parts["whisper"], mel), expected)


@torch.inference_mode()
@pytest.mark.parametrize("frames", [16, 31, 32, 98, 1000, 2997])
def test_the_audio_encoder_at_any_length(native: Native, frames: int) -> None:
    if native.model.audio_encoder is None:
        assert "audio_encoder" not in native.parts
        return
    bank = fbank(frames)
    expected = native.model.audio_encoder(torch.from_numpy(bank)).numpy()
    assert native.near(native.parts["audio_encoder"].run(fbank=bank), expected)


@torch.inference_mode()
@pytest.mark.parametrize("which", [0, -1])
@pytest.mark.parametrize("samples", [5120, 5121, 100_000, 333_333, 479_840])  # the last: 29.99 s
def test_blocks_are_the_whole(streaming: Native, which: int, samples: int) -> None:
    trained = streaming.bundle.manifest.streaming
    assert trained
    block = Block(trained.sizes[which], trained.lookbacks[which])
    pcm = noise(samples)
    expected = streaming.model.encode(streaming.model.load_audio(pcm, 16_000), block)[0].numpy()
    blocks = BlockEncoder(AudioEncoder(streaming.bundle, "cpu", 2, "native"), block)
    found = [*blocks.encode(pcm), *blocks.finish(pcm)]
    assert len(found) > 0 or len(expected) == 0
    if found:
        assert streaming.near(np.concatenate(found), expected)


def test_what_is_kept_of_the_past(streaming: Native) -> None:
    """Keys and values of all layers in one array, that goes on where others were cut from it."""
    part = streaming.parts["whisper"]
    past = part.nothing_past()
    layers = CASES["blocks"].whisper.layers
    assert {name: value.dtype for name, value in past.items()} == {"past_conv": np.float32, "past_kv": np.uint8}
    assert past["past_kv"].shape[:2] == (layers, 0)
    whole = np.pad(log_mel(40), ((0, 0), (1, 1)))[None]
    _, kept = part.run_on(past, log_mel=whole, start=np.array([0]))
    assert kept["past_kv"].shape == (layers, 40, past["past_kv"].shape[2])
    assert past["past_kv"].shape[1] == 0  # never written to
    cut = kept | {"past_kv": kept["past_kv"][:, 30:]}
    copied = kept | {"past_kv": kept["past_kv"][:, 30:].copy()}
    first, second = (part.run_on(some, log_mel=whole, start=np.array([40]))[0] for some in (cut, copied))
    np.testing.assert_array_equal(first, second)


def test_fewer_frames_than_a_patch_are_no_states(native: Native) -> None:
    if "audio_encoder" in native.parts:
        part = native.parts["audio_encoder"]
        assert part.run(fbank=fbank(15)).shape == (1, 0, part.width)
        if part.hears_blocks:
            _, kept = part.run_on(part.nothing_past(), fbank=fbank(48))
            states, same = part.run_on(kept, fbank=fbank(15))
            assert states.shape == (1, 0, part.width)
            assert all(np.array_equal(same[name], kept[name]) for name in kept)


def test_more_than_there_are_positions_for_is_refused(native: Native) -> None:
    spec = native.bundle.manifest.encoders
    assert spec
    with pytest.raises(AudioTooLongError, match="the encoder is given 1501 states; it has positions for 1500"):
        run_whisper(native.parts["whisper"], log_mel(1501))
    if spec.audio_encoder:
        frames = 16 * (spec.audio_encoder.positions // 8 + 1)
        with pytest.raises(AudioTooLongError, match=f"it has positions for {spec.audio_encoder.positions}"):
            native.parts["audio_encoder"].run(fbank=fbank(frames))


def test_threads_of_the_caller_take_turns(beats: Native) -> None:
    part = beats.parts["audio_encoder"]
    expected = [part.run(fbank=fbank(100 + 50 * seed, seed)) for seed in range(3)]
    failures: list[int] = []

    def ask(seed: int) -> None:
        for _ in range(5):
            if not np.array_equal(part.run(fbank=fbank(100 + 50 * seed, seed)), expected[seed]):
                failures.append(seed)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


# What runs


def test_native_is_chosen_where_it_runs(
    beats: Native, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    both = replace(
        beats.bundle, manifest=replace(beats.bundle.manifest, graphs=open_bundle(tiny_bundle).manifest.graphs)
    )
    assert choose(beats.bundle, "auto", "cpu") == choose(both, "auto", "cpu") == "native"
    assert choose(both, "onnx", "cpu") == choose(both, "auto", "cuda") == "onnx"
    assert choose(open_bundle(tiny_bundle), "auto", "cpu") == "onnx"
    assert caplog.text == ""
    monkeypatch.setattr(encoders, "kernels", lambda: (_ for _ in ()).throw(MissingExtraError("no kernels")))
    assert choose(both, "auto", "cpu") == "onnx"
    assert "the encoders run on ONNX Runtime: no kernels" in caplog.text
    with pytest.raises(MissingExtraError, match="no kernels"):
        choose(beats.bundle, "auto", "cpu")


def test_what_cannot_run_is_refused(beats: Native, tiny_bundle: Path) -> None:
    with pytest.raises(ConfigError, match=r"encoder is 'tpu'; expected 'auto', 'onnx' or 'native'"):
        Engine.load(tiny_bundle, encoder="tpu")  # type: ignore[arg-type]
    with pytest.raises(DeviceError, match="native encoders run on a CPU, not on cuda"):
        choose(beats.bundle, "native", "cuda")


# The files, and what the manifest says of them


def changed(bundle: Bundle, folder: Path, file: str, edit: Callable[[dict[str, Any]], object]) -> Bundle:
    """A copy of which a file's header says something else."""
    shutil.copytree(bundle.folder, folder)
    content = bytearray((folder / file).read_bytes())
    header = json.loads(content[8:NATIVE_PAGE])
    edit(header)
    content[8:NATIVE_PAGE] = json.dumps(header).encode().ljust(NATIVE_PAGE - 8)
    (folder / file).write_bytes(content)
    return replace(bundle, folder=folder)


Q = "encoder.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("part", "edit", "message"),
    [
        ("audio_encoder", lambda header: header.pop(Q), f"has no tensor '{Q}'"),
        ("audio_encoder", lambda header: header[Q].update(dtype="F32"), rf"{Q} is F32 \[4, 4, 8, 64\], expected U8"),
        ("audio_encoder", lambda header: header[Q].update(shape=[4, 4, 512]), r"is U8 \[4, 4, 512\], expected U8"),
        (
            "audio_encoder",
            lambda header: header[Q].update(data_offsets=[0, 10]),
            r"expected 8192 bytes within the file",
        ),
        ("audio_encoder", lambda header: header[Q].update(data_offsets=[2**40, 2**40 + 8192]), "within the file"),
        ("audio_encoder", lambda header: header.pop(f"{Q}.scale"), f"has no tensor '{Q}.scale'"),
        ("audio_encoder", lambda header: header.pop("bias_by_distance"), "has no tensor 'bias_by_distance'"),
        ("audio_encoder", lambda header: header["encoder.pos_conv.weight"].update(shape=[16, 1, 4, 16]), r"pos_conv"),
        ("audio_encoder", lambda header: header.pop("encoder.layers.0.self_attn.gate.bias"), "gate.bias"),
        ("whisper", lambda header: header.pop("conv1.weight"), "has no tensor 'conv1.weight'"),
        ("whisper", lambda header: header["conv2.weight"].update(dtype="U8"), r"conv2.weight is U8 .*expected F32"),
        ("whisper", lambda header: header["layer_norm.bias"].update(shape=[63]), "layer_norm.bias"),
        (
            "whisper",
            lambda header: header.update({"layers.0.fc1.down.weight": {"dtype": "U8", "shape": [], "data_offsets": 0}}),
            r"layers.0.fc1.down.weight is U8 \[\], expected U8 \[0, ",
        ),
    ],
)
def test_files_that_are_not_as_they_say(
    beats: Native, tmp_path: Path, part: str, edit: Callable[[dict[str, Any]], object], message: str
) -> None:
    copy = changed(beats.bundle, tmp_path / "copy", FILES[part], edit)
    with pytest.raises(BundleError, match=message):
        load_native_encoder(copy, part, 1)


@pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")
@pytest.mark.parametrize("part", list(FILES))
def test_garbage_in_the_weights_is_computed_with_and_no_more(native: Native, tmp_path: Path, part: str) -> None:
    if part not in native.parts:
        return
    copy = Path(shutil.copytree(native.bundle.folder, tmp_path / "copy"))
    content = bytearray((copy / FILES[part]).read_bytes())
    content[NATIVE_PAGE:] = np.random.default_rng(0).bytes(len(content) - NATIVE_PAGE)
    (copy / FILES[part]).write_bytes(content)
    encoder = load_native_encoder(replace(native.bundle, folder=copy), part, 2)
    if part == "whisper":
        assert run_whisper(encoder, log_mel(30)).shape == (30, encoder.width)
    else:
        assert encoder.run(fbank=fbank(98)).shape == (1, 48, encoder.width)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda data: data["encoders"]["whisper"].update(heads=3), "dim 64 is not a multiple of heads 3"),
        (lambda data: data["encoders"]["whisper"].update(layers=0), "layers is 0; expected 1 to"),
        (lambda data: data["encoders"]["whisper"].update(ffn=2**31), "ffn is 2147483648; expected 1 to"),
        (lambda data: data["encoders"]["whisper"].update(layer_eps=0.0), r"layer_eps is 0\.0; it must be above 0"),
        (lambda data: data["encoders"]["whisper"].update(eps=float("inf")), "eps is inf; it must be above 0"),
        (lambda data: data["encoders"]["whisper"].update(kind="conformer"), "expected one of 'whisper'"),
        (lambda data: data["encoders"]["whisper"].update(layout="t32"), "expected one of 't16'"),
        (lambda data: data["encoders"]["whisper"].update(activation_block=64), "must be a multiple of 128"),
        (
            lambda data: data["encoders"]["whisper"].update(precision="fp32"),
            "encoders.whisper is fp32, precision.whisper is",
        ),
        (lambda data: data["encoders"]["whisper"].update(dim=32), r"qformer: speech .*64\].* 32\]"),
        (lambda data: data["encoders"]["whisper"].update(file="w.bin"), "uses 'w.bin' but does not list it"),
        (lambda data: data["encoders"]["whisper"].update(file="tokenizer.json"), "expected a multiple of 2097152"),
        (lambda data: data["encoders"]["audio_encoder"].update(kind="panns"), "kind is 'beats' or 'eat'"),
        (
            lambda data: data["encoders"]["audio_encoder"].update(conv_pos_groups=7),
            "not a multiple of conv_pos_groups 7",
        ),
        (lambda data: data["encoders"]["audio_encoder"].update(patch_dim=0), "patch_dim is 0"),
        (lambda data: data["encoders"].update(audio_encoder=None), "encoders.audio_encoder and the inputs of qformer"),
        (lambda data: data.update(target="cuda"), "encoders are for CPUs, the target is cuda"),
        (lambda data: data.pop("encoders"), r"has no graph \['whisper'\]"),
    ],
)
def test_manifests_that_contradict_themselves(
    beats: Native, tmp_path: Path, edit: Callable[[dict[str, Any]], object], message: str
) -> None:
    copy = Path(shutil.copytree(beats.bundle.folder, tmp_path / "copy"))
    reseal(copy, edit)
    with pytest.raises(BundleError, match=message):
        open_bundle(copy)


@pytest.mark.parametrize("part", list(FILES))
@pytest.mark.parametrize("seed", range(60))
def test_numbers_that_do_not_fit_the_file_are_refused(beats: Native, part: str, seed: int) -> None:
    """Or are none that its tensors tell: then something is computed, and no more."""
    rng = np.random.default_rng(seed)
    found = beats.bundle.manifest.encoders
    assert found
    spec = found.parts[part]
    sizes = [name for name, value in vars(spec).items() if type(value) is int]
    name = str(rng.choice(sizes))
    value = getattr(spec, name)
    others = [value + 1, value - 1, 2 * value, max(1, value // 2), value + 16, 1, 2**31 - 1]
    try:
        other = replace(spec, **dict[str, Any]({name: int(rng.choice(others))}))
        manifest = replace(beats.bundle.manifest, encoders=replace(found, **dict[str, Any]({part: other})))
        encoder = load_native_encoder(replace(beats.bundle, manifest=manifest), part, 1)
    except (BundleError, ConfigError):
        return
    assert name in ("heads", "layers", "block", "activation_block", "ffn", "positions") or getattr(other, name) == value
    run = run_whisper(encoder, log_mel(5)) if part == "whisper" else encoder.run(fbank=fbank(48))
    assert run.shape[-1] == encoder.width
