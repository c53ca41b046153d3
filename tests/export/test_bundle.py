"""Checkpoint to bundle: the same tokens whatever the dimensions, and no bundle that is not proven."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file

import export.bundle
from export import ExportOptions, export_bundle
from export.graph import INLINE_BYTES, PAGE
from export.quantize import plain_linear
from export.rope import rope_tables
from runtime import BundleError, ConfigError, Engine, GenerationConfig, load_audio
from runtime.audio import Audio
from runtime.bundle import MANIFEST, FileSpec, Manifest, file_sha256, manifest_bytes, open_bundle
from runtime.check import check
from runtime.config import AudioConfig, PromptConfig, WindowConfig
from runtime.errors import CheckpointError, ParityError
from runtime.onnx_decoder import OnnxDecoder
from runtime.prompt import prompt_ids
from runtime.schema import from_dict
from training import ModelConfig, load
from training.checkpoint import save
from training.config import BeatsConfig, LoraConfig, QFormerConfig, WhisperConfig
from training.init import init_checkpoint
from training.presets import TASKS, preset

F32 = npt.NDArray[np.float32]
TOLERANCE = 1e-4
MAX_NEW_TOKENS = 24
TINY = preset("tiny")


def parity(bundle: Path) -> dict[str, Any]:
    parity: dict[str, Any] = json.loads((bundle / "parity.json").read_text())
    return parity


def noise(seconds: float, seed: int) -> Audio:
    """Noise whose loudness and colour glide."""
    rng = np.random.default_rng(seed)
    white = rng.standard_normal(round(seconds * 16000))
    time = np.arange(len(white)) / 16000
    pcm = 0.05 * (1.1 + np.sin(2 * np.pi * rng.uniform(0.5, 4) * time)) * white
    pcm += 0.2 * np.sin(2 * np.pi * (200 + 300 * np.sin(time)) * time)
    return load_audio(pcm.astype(np.float32), 16000, min_s=0.4)


def random_config(seed: int) -> ModelConfig:
    """Any small model."""
    rng = np.random.default_rng(seed)

    def pick(*options: Any) -> Any:
        return options[rng.integers(len(options))]

    n_mels = pick(80, 128)
    speech_heads, audio_heads, qformer_heads = (int(rng.integers(1, 4)) for _ in range(3))
    frames = int(rng.integers(8, 41))
    stride = pick(frames, frames - int(rng.integers(1, 5)), frames + int(rng.integers(1, 20)))
    beats = BeatsConfig(
        dim=16 * audio_heads * pick(1, 2),
        layers=int(rng.integers(1, 4)),
        heads=audio_heads,
        ffn=pick(32, 72),
        patch_dim=pick(16, 40),
        conv_pos_groups=pick(4, 16),
        num_buckets=pick(320, 32),
        max_distance=pick(800, 128),
    )
    return ModelConfig(
        name=f"random-{seed}",
        whisper=WhisperConfig(
            d_model=16 * speech_heads * pick(1, 2),
            layers=int(rng.integers(1, 4)),
            heads=speech_heads,
            ffn=pick(48, 64),
            n_mels=n_mels,
        ),
        beats=pick(beats, beats, None),
        qformer=QFormerConfig(
            dim=16 * qformer_heads * pick(1, 2),
            layers=int(rng.integers(1, 4)),
            heads=qformer_heads,
            ffn=pick(40, 96),
            window=WindowConfig(frames, stride, num_queries=pick(1, 2, 3)),
        ),
        llm=random_llm(rng, pick),
        lora=pick(
            None,
            LoraConfig(r=8, alpha=32.0),
            LoraConfig(r=3, alpha=4.0, targets=("q_proj", "k_proj", "o_proj", "gate_proj", "up_proj", "down_proj")),
        ),
        audio=AudioConfig(n_mels=n_mels, min_s=pick(0.4, 1.0), window=pick("padded", "trimmed")),
        prompt=PromptConfig(
            template=pick("USER: {}\nASSISTANT:", "{}"),
            tasks=TASKS,
            bos_token_id=pick(256, None),
            stop_token_ids=(257, *map(int, rng.choice(256, size=pick(0, 8, 40), replace=False))),
            end_symbol="</s>",
        ),
    )


def random_llm(rng: np.random.Generator, pick: Callable[..., Any]) -> dict[str, Any]:
    """Any small Llama. Its heads need not fill its width, nor fit into it."""
    kv_heads = int(rng.integers(1, 4))
    heads = kv_heads * pick(1, 2, 3)
    llama3 = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    theta, scaling = (
        pick(10000.0, 500000.0),
        pick({"rope_type": "default"}, {"rope_type": "linear", "factor": 4.0}, llama3),
    )
    spelling = pick(
        {"rope_theta": theta, "rope_scaling": None if scaling == {"rope_type": "default"} else scaling},
        {"rope_parameters": {"rope_theta": theta, **scaling}},  # as transformers 5 writes it
    )
    return {
        "model_type": "llama",
        "vocab_size": 258 + int(rng.integers(0, 20)),
        "hidden_size": heads * pick(8, 12, 16),
        "intermediate_size": pick(40, 128),
        "num_hidden_layers": int(rng.integers(1, 4)),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": pick(16, 32),
        "max_position_embeddings": 2048,
        "rms_norm_eps": pick(1e-5, 1e-6),
        "tie_word_embeddings": pick(True, False),
        "bos_token_id": 256,
        "eos_token_id": 257,
        **spelling,
    }


@pytest.mark.parametrize("seed", range(20))
def test_any_small_model_says_in_a_bundle_what_it_says_in_pytorch(tmp_path: Path, seed: int) -> None:
    config = random_config(seed)
    init_checkpoint(config, tmp_path / "checkpoint", seed)
    bundle = export_bundle(tmp_path / "checkpoint", tmp_path / "bundle")
    measured = parity(bundle)
    assert set(measured["stages"]) == {"whisper", "qformer", "llm"} | ({"beats"} if config.beats else set())
    for name, error in (measured["stages"] | {"end to end": measured["end_to_end"]}).items():
        assert error["max_abs"] <= TOLERANCE * max(1.0, error["scale"]), name
    assert measured["greedy_tokens_equal"]
    assert measured["budget"] is None
    model, engine = load(tmp_path / "checkpoint"), Engine.load(bundle)
    assert check(engine).passed
    rng = np.random.default_rng(seed)
    audio = noise(rng.uniform(0.4, 6.0), seed)
    prompt = f"Prompt {seed}: what is it?"
    for num_beams in (1, 4):
        search = GenerationConfig(max_new_tokens=MAX_NEW_TOKENS, num_beams=num_beams)
        expected = model.generate(audio, prompt=prompt, config=search)
        assert engine.generate(audio, prompt=prompt, config=search).token_ids == expected


def test_a_quiet_beats(tmp_path: Path) -> None:
    """States so small that the epsilon of every norm matters: the graph folds DeepNorm's factor into it."""
    init_checkpoint(TINY, tmp_path / "loud", 0)
    model = load(tmp_path / "loud")
    assert model.beats is not None
    with torch.no_grad():
        for name, parameter in model.beats.named_parameters():
            if "norm" in name or name.split(".")[-2] in ("out_proj", "fc2"):
                parameter.mul_(3e-3)
    save(model, tmp_path / "quiet", tmp_path / "loud" / "tokenizer.json")
    error = parity(export_bundle(tmp_path / "quiet", tmp_path / "bundle"))["stages"]["beats"]
    assert error["scale"] < 0.01
    assert error["relative"] <= 1e-4


@torch.inference_mode()
@pytest.mark.parametrize("seconds", [0.4, 1.0, 30.0])
def test_audio_embeds_of_any_length(tiny_checkpoint: Path, tiny_engine: Engine, seconds: float) -> None:
    model = load(tiny_checkpoint)
    audio = model.load_audio(noise(seconds, 9).pcm, 16000)
    expected = model.encode(audio)[0].numpy()
    assert expected.shape == (88, 64)
    assert np.abs(tiny_engine.encoder.encode(audio).audio_embeds - expected).max() <= TOLERANCE


@pytest.fixture(scope="module")
def golden_engine(golden_bundle: Path) -> Engine:
    return Engine.load(golden_bundle)


def test_golden_audio_embeds(golden: Path, golden_engine: Engine, speech: Path) -> None:
    expected = np.load(golden / "salmonn" / "expected.npz")["w1_audio_embeds"]
    got = golden_engine.encoder.encode(load_audio(speech)).audio_embeds
    assert got.shape == (88, 64)
    assert np.abs(got - expected).max() <= 5e-4


@pytest.mark.parametrize(("name", "num_beams"), [("greedy", 1), ("beam4", 4)])
@pytest.mark.parametrize("index", [0, 1])
def test_golden_answers(
    golden: Path, golden_engine: Engine, speech: Path, index: int, name: str, num_beams: int
) -> None:
    cases = json.loads((golden / "salmonn" / "expected.json").read_text())
    prompt = list(cases["tokens"])[index].removeprefix("USER: ").removesuffix("\nASSISTANT:")
    search = GenerationConfig(max_new_tokens=MAX_NEW_TOKENS, num_beams=num_beams)
    result = golden_engine.generate(speech, prompt=prompt, config=search)
    assert result.token_ids == cases["runs"][index][name]["ids"]
    assert result.text == cases["runs"][index][name]["text"]


def test_golden_first_logits_from_stored_embeddings(golden: Path, golden_engine: Engine) -> None:
    expected = np.load(golden / "salmonn" / "expected.npz")
    decoder = golden_engine.decoder
    for index in (0, 1):
        embeds = expected[f"w1_p{index}_inputs_embeds"]
        with decoder.open(1, len(embeds)) as (slot,):
            logits = decoder.prefill(slot, embeds)
        assert np.abs(logits - expected[f"w1_p{index}_first_logits"][: len(logits)]).max() <= 5e-4


@pytest.mark.parametrize(
    ("encoder", "llm", "inexact"),
    [
        ("int8", "int8", {"whisper", "beats", "llm"}),
        ("int8", "int4", {"whisper", "beats", "llm"}),
        ("fp32", "int4", {"llm"}),
    ],
)
def test_quantized_bundles(tmp_path: Path, tiny_checkpoint: Path, encoder: Any, llm: Any, inexact: set[str]) -> None:
    # A random model amplifies what 4 bits round off more than a trained one does.
    options = ExportOptions(encoder_precision=encoder, llm_precision=llm, parity_budget=1.0)
    bundle = export_bundle(tiny_checkpoint, tmp_path / "bundle", options)
    measured = parity(bundle)
    assert measured["budget"] == options.parity_budget
    for name, error in measured["stages"].items():
        assert (error["relative"] > 1e-4) == (name in inexact), name
        assert error["relative"] <= options.parity_budget
    engine = Engine.load(bundle)
    report = check(engine)
    assert report.passed
    precision = engine.bundle.manifest.precision
    assert (precision.whisper, precision.beats, precision.qformer) == (encoder, encoder, "fp32")
    assert (precision.llm, precision.lm_head) == (llm, "int8")
    assert engine.generate(noise(1.5, 0), task="asr", config=GenerationConfig(max_new_tokens=5)).token_ids


@pytest.mark.parametrize(("encoder", "llm", "stage"), [("int8", "fp32", "whisper"), ("fp32", "int4", "llm")])
def test_a_quantized_bundle_over_its_budget_is_refused(
    tmp_path: Path, tiny_checkpoint: Path, encoder: Any, llm: Any, stage: str
) -> None:
    options = ExportOptions(encoder_precision=encoder, llm_precision=llm, parity_budget=1e-4)
    with pytest.raises(ParityError, match=rf"{stage}: relative error .* exceeds the budget 0\.0001"):
        export_bundle(tiny_checkpoint, tmp_path / "bundle", options)
    assert list(tmp_path.iterdir()) == []


def wrong_qformer(monkeypatch: pytest.MonkeyPatch) -> None:
    build = export.bundle.build_qformer

    def build_wrong(config: Any, qformer: Any, weights: Any, llm_dim: int) -> Any:
        with torch.no_grad():
            qformer.layers[1].fc1.weight[0, 0] += 0.5
        return build(config, qformer, weights, llm_dim)

    monkeypatch.setattr("export.bundle.build_qformer", build_wrong)


def wrong_llm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.llm.rope_tables", lambda *arguments: rope_tables(*arguments)[::-1])


@pytest.mark.parametrize(
    ("stage", "corrupt"),
    [
        ("whisper", lambda patch: patch.setattr("export.whisper.EPS", 0.1)),
        ("beats", lambda patch: patch.setattr("export.beats.deepnorm_alpha", lambda layers: 1.4)),
        ("qformer", wrong_qformer),
        ("llm", wrong_llm),
    ],
)
def test_a_wrong_graph_is_never_written(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, stage: str, corrupt: Callable[[Any], None]
) -> None:
    corrupt(monkeypatch)
    with pytest.raises(ParityError, match=rf"^{stage}: largest difference"):
        export_bundle(tiny_checkpoint, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_wrong_embeddings_are_never_written(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one part of the LLM that is no graph."""

    def write_shifted(source: Any, path: Path) -> None:
        source.parts["llm"]["model.embed_tokens.weight"]().roll(1, dims=0).numpy().tofile(path)

    monkeypatch.setattr("export.bundle._write_embedding", write_shifted)
    with pytest.raises(ParityError):
        export_bundle(tiny_checkpoint, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_other_tokens_are_never_written(tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits within the tolerance are not enough."""

    def rolled(graph: Any, x: str, name: str, weight: F32, bias: F32 | None) -> str:
        return plain_linear(graph, x, name, np.roll(weight, 1, axis=0), bias)

    monkeypatch.setattr("export.parity.EXACT_TOLERANCE", 1e9)
    monkeypatch.setattr("export.llm.LM_HEAD_LINEARS", {"fp32": rolled})
    with pytest.raises(ParityError, match=r"greedy tokens differ from PyTorch's at \d+ of 16 positions"):
        export_bundle(tiny_checkpoint, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def initializers(bundle: Path) -> list[tuple[Path, onnx.TensorProto]]:
    graphs = sorted(bundle.rglob("*.onnx"))
    return [(path, tensor) for path in graphs for tensor in onnx.load(path, load_external_data=False).graph.initializer]


def test_large_weights_lie_on_pages_and_small_ones_in_the_graph(tiny_bundle: Path) -> None:
    external = 0
    for path, tensor in initializers(tiny_bundle):
        size = int(np.prod(tensor.dims)) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            assert size <= INLINE_BYTES, tensor.name
            continue
        external += 1
        place = {entry.key: entry.value for entry in tensor.external_data}
        assert size > INLINE_BYTES
        assert int(place["offset"]) % PAGE == 0
        assert int(place["length"]) == size
        assert place["location"] == f"{path.name}.data"
        assert int(place["offset"]) + size <= path.with_name(place["location"]).stat().st_size
    assert external > 10


@pytest.mark.parametrize("name", ["whisper", "beats", "qformer"])
def test_encoder_graphs_are_valid_onnx(tiny_bundle: Path, name: str) -> None:
    # The LLM's has SimplifiedLayerNormalization, which onnxruntime puts into the standard domain, and the standard not.
    onnx.checker.check_model(str(tiny_bundle / f"{name}.onnx"), full_check=True)


def test_no_file_but_those_in_the_manifest(tiny_bundle: Path) -> None:
    found = {path.relative_to(tiny_bundle).as_posix() for path in tiny_bundle.rglob("*") if path.is_file()}
    manifest = open_bundle(tiny_bundle).manifest
    assert found == set(manifest.files) | {MANIFEST}
    assert {"golden.npz", "parity.json", "tokenizer.json", "llm/embed_tokens.bin"} < found


def test_what_the_manifest_says(golden_bundle: Path, golden_checkpoint: Path) -> None:
    manifest = open_bundle(golden_bundle).manifest
    assert manifest.target == "cpu"
    assert manifest.provenance.model == "llm"
    assert manifest.provenance.lora_scale == 4.0
    assert manifest.provenance.sources["beats/beats.pt"]
    own = file_sha256(golden_checkpoint / "model.safetensors")
    assert manifest.provenance.sources["model.safetensors"] == own
    assert manifest.llm.max_length == 1024  # what the LLM has, though the default is more
    assert (manifest.llm.layers, manifest.llm.kv_heads, manifest.llm.head_dim) == (3, 2, 16)
    assert manifest.prompt.stop_token_ids == (513, 517, 518)
    assert set(manifest.graphs) == {"whisper", "beats", "qformer", "llm"}


def test_exporting_twice_gives_the_same_bytes(tmp_path: Path, tiny_checkpoint: Path, tiny_bundle: Path) -> None:
    again = export_bundle(tiny_checkpoint, tmp_path / "again")
    first, second = (open_bundle(folder).manifest for folder in (tiny_bundle, again))
    measured = {"parity.json", "golden.npz"}  # float sums may round differently from run to run
    assert first.files.keys() == second.files.keys() > measured
    assert {name for name in first.files if first.files[name] != second.files[name]} <= measured
    assert replace(first, files={}, manifest_sha256="") == replace(second, files={}, manifest_sha256="")
    runs = [np.load(folder / "golden.npz") for folder in (tiny_bundle, again)]
    for name in ("pcm", "prompt", "tokens"):
        assert np.array_equal(runs[0][name], runs[1][name])
    assert np.abs(runs[0]["logits"] - runs[1]["logits"]).max() <= TOLERANCE


def rewrite_manifest(bundle: Path, **changes: Any) -> None:
    """Hash every file anew, and the manifest with them: an integrity check alone finds nothing."""
    manifest = from_dict(Manifest, json.loads((bundle / MANIFEST).read_text()), "manifest")
    files = {name: FileSpec((bundle / name).stat().st_size, file_sha256(bundle / name)) for name in manifest.files}
    (bundle / MANIFEST).write_bytes(manifest_bytes(replace(manifest, files=files, **changes)))


@pytest.fixture(scope="module")
def other_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other weights in the same dimensions."""
    folder = tmp_path_factory.mktemp("other")
    init_checkpoint(TINY, folder / "checkpoint", seed=1)
    return export_bundle(folder / "checkpoint", folder / "bundle")


@pytest.mark.parametrize("part", ["whisper.onnx", "beats.onnx", "qformer.onnx", "llm/decoder.onnx", "llm/embed"])
def test_a_check_finds_swapped_weights(tmp_path: Path, tiny_bundle: Path, other_bundle: Path, part: str) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    names = [name for name in open_bundle(bundle).manifest.files if name.startswith(part)]
    assert names
    for name in names:
        shutil.copyfile(other_bundle / name, bundle / name)
    rewrite_manifest(bundle)
    report = check(Engine.load(bundle))
    assert not report.passed
    assert report.logits_difference > report.tolerance


def test_a_check_passes_after_a_mere_rewrite(tmp_path: Path, tiny_bundle: Path) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    rewrite_manifest(bundle)
    assert check(Engine.load(bundle)).passed
    assert (bundle / MANIFEST).read_bytes() == (tiny_bundle / MANIFEST).read_bytes()


def test_a_bundle_for_cuda_has_a_float16_llm(tmp_path: Path, tiny_checkpoint: Path, tiny_engine: Engine) -> None:
    folder = export_bundle(tiny_checkpoint, tmp_path / "bundle", ExportOptions(target="cuda"))
    bundle = open_bundle(folder)
    assert bundle.manifest.target == "cuda"
    assert bundle.manifest.llm.dtype == "float16"
    assert parity(folder)["stages"]["whisper"]["max_abs"] <= TOLERANCE  # the encoders stay in float32
    decoder = OnnxDecoder(bundle, "cpu", 2)
    exact = tiny_engine.decoder
    ids = prompt_ids(bundle.manifest.prompt, tiny_engine.tokenizer, "What is said?")
    audio_embeds = tiny_engine.encoder.encode(noise(2.0, 5)).audio_embeds
    inputs = np.concatenate([exact.embed(ids.before), audio_embeds, exact.embed(ids.after)])
    tokens = list(b"an answer")
    got, expected = (all_logits(each, inputs, tokens) for each in (decoder, exact))
    assert got.dtype == np.float32
    assert np.linalg.norm(got - expected) / np.linalg.norm(expected) < 2e-2
    assert (got.argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.5


def all_logits(decoder: OnnxDecoder, inputs: F32, tokens: list[int]) -> F32:
    with decoder.open(1, len(inputs) + len(tokens)) as (slot,):
        first = decoder.prefill(slot, inputs)
        return np.concatenate([first[None], decoder.verify(slot, tokens)])


def test_a_quantized_bundle_for_cuda(tmp_path: Path, tiny_checkpoint: Path) -> None:
    options = ExportOptions(target="cuda", llm_precision="int4", parity_budget=1.0)
    folder = export_bundle(tiny_checkpoint, tmp_path / "bundle", options)
    assert check(Engine.load(folder, device="cpu")).passed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "cuda", "encoder_precision": "int8"}, "int8 encoders run on the CPU only"),
        ({"max_length": 64}, "max_length is 64"),
        ({"parity_budget": 0.0}, "parity_budget is 0"),
        ({"parity_budget": float("nan")}, "parity_budget is nan"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ExportOptions(**options)


def test_an_existing_folder_is_refused(tmp_path: Path, tiny_checkpoint: Path) -> None:
    (tmp_path / "bundle").mkdir()
    with pytest.raises(BundleError, match="bundle exists"):
        export_bundle(tiny_checkpoint, tmp_path / "bundle")
    assert [path.name for path in tmp_path.rglob("*")] == ["bundle"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("place", ["export.bundle.build_qformer", "export.bundle.prove"])
def test_a_killed_export_leaves_nothing_behind(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, place: str, error: type[BaseException]
) -> None:
    def kill(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(place, kill)
    with pytest.raises(error):
        export_bundle(tiny_checkpoint, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_the_window_may_be_overridden(tmp_path: Path, tiny_checkpoint: Path, tiny_bundle: Path) -> None:
    assert open_bundle(tiny_bundle).manifest.audio.window == "padded"
    folder = export_bundle(tiny_checkpoint, tmp_path / "bundle", ExportOptions(window="trimmed"))
    assert open_bundle(folder).manifest.audio.window == "trimmed"
    engine = Engine.load(folder)
    assert len(engine.encoder.encode(noise(1.0, 0)).audio_embeds) == 3  # windows of 17 frames over 50
    assert check(engine).passed


def test_a_recording_to_prove_with(tmp_path: Path, tiny_checkpoint: Path, speech: Path) -> None:
    audio = load_audio(speech)
    folder = export_bundle(tiny_checkpoint, tmp_path / "bundle", golden_audio=audio)
    assert np.array_equal(np.load(folder / "golden.npz")["pcm"], audio.pcm)
    assert parity(folder)["audio_s"] == pytest.approx(audio.duration_s)
    assert check(Engine.load(folder)).passed


@pytest.mark.parametrize(("dtype", "name"), [(torch.float16, "float16"), (torch.bfloat16, "bfloat16")])
def test_embeddings_keep_the_dtype_of_the_checkpoint(tmp_path: Path, dtype: torch.dtype, name: str) -> None:
    init_checkpoint(TINY, tmp_path / "checkpoint", dtype=dtype)
    folder = export_bundle(tmp_path / "checkpoint", tmp_path / "bundle")
    engine = Engine.load(folder)
    embedding = engine.bundle.manifest.llm.embedding
    assert embedding.dtype == name
    assert (folder / embedding.file).stat().st_size == 2 * embedding.rows * embedding.dim
    model = load(tmp_path / "checkpoint")
    ids = list(range(embedding.rows))
    assert np.array_equal(engine.decoder.embed(ids), model.embed_tokens(ids)[0].detach().numpy())
    assert parity(folder)["greedy_tokens_equal"]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model_type": "mistral"}, ConfigError, "'mistral' cannot be exported yet"),
        ({"hidden_act": "gelu"}, ConfigError, r"llm\.hidden_act is 'gelu'"),
        ({"attention_bias": True}, ConfigError, r"llm\.attention_bias is True"),
        ({"mlp_bias": True}, ConfigError, r"llm\.mlp_bias is True"),
        ({"head_dim": 8}, ConfigError, "head_dim is 8"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, ConfigError, "'dynamic' is not supported"),
        ({"vocab_size": 200}, CheckpointError, "tokenizer.json has 258 tokens, the LLM 200"),
    ],
)
def test_models_that_cannot_be_exported_are_refused(
    tmp_path: Path, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    init_checkpoint(replace(TINY, llm=TINY.llm | change), tmp_path / "checkpoint")
    with pytest.raises(error, match=message):
        export_bundle(tmp_path / "checkpoint", tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("changes", [{"bos_token_id": 400}, {"stop_token_ids": (257, -1)}])
def test_ids_without_an_embedding_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    init_checkpoint(replace(TINY, prompt=replace(TINY.prompt, **changes)), tmp_path / "checkpoint")
    with pytest.raises(CheckpointError, match=r"prompt uses token id (400|-1), the LLM has 258"):
        export_bundle(tmp_path / "checkpoint", tmp_path / "bundle")


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    init_checkpoint(TINY, tmp_path / "checkpoint")
    file = tmp_path / "checkpoint" / "model.safetensors"
    tensors = load_file(file)
    tensors["whisper.layer_norm.bias"][0] = torch.inf
    save_file(tensors, file)
    with pytest.raises(ParityError, match="not finite"):
        export_bundle(tmp_path / "checkpoint", tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
