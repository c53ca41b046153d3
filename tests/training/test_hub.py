"""Parts by their hub ids: a cache laid out as huggingface_hub lays it out, offline."""

import fnmatch
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file

from salmonrun.export import export_bundle
from salmonrun.runtime.errors import CheckpointError
from salmonrun.training.__main__ import main
from salmonrun.training.checkpoint import open_checkpoint
from salmonrun.training.foreign.hub import AUDIO_ENCODER, LLM, SALMONN, WHISPER, HubId, locate, parse_id, source_name
from salmonrun.training.foreign.part_files import read_llm
from salmonrun.training.inspection.inspect import inspect_path
from salmonrun.training.model.config import load_config
from salmonrun.training.starting.convert import convert_salmonn
from tests.helpers import published

COMMITS = {"acme/llm": "a" * 40, "acme/whisper": "b" * 40, "acme/SALMONN": "c" * 40, "acme/BEATs": "d" * 40}


def add_to_cache(cache: Path, repo: str, files: list[Path], commit: str | None = None, ref: str = "main") -> Path:
    """A snapshot of links to blobs, and the reference that names its commit."""
    commit = commit or COMMITS[repo]
    root = cache / f"models--{repo.replace('/', '--')}"
    snapshot = root / "snapshots" / commit
    for folder in (snapshot, root / "blobs", root / "refs"):
        folder.mkdir(parents=True, exist_ok=True)
    (root / "refs" / ref).write_text(commit)
    for file in files:
        blob = root / "blobs" / f"{commit[:4]}{len(list((root / 'blobs').iterdir())):036}"
        shutil.copyfile(file, blob)
        if not (snapshot / file.name).exists():
            (snapshot / file.name).symlink_to(f"../../blobs/{blob.name}")
    return snapshot


@pytest.fixture
def cache(golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The golden parts as repositories; no network."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    add_to_cache(cache, "acme/llm", sorted((golden / "salmonn" / "llm").iterdir()))
    add_to_cache(cache, "acme/whisper", sorted((golden / "salmonn" / "whisper").iterdir()))
    add_to_cache(cache, "acme/SALMONN", [golden / "salmonn" / "salmonn.pth"])
    add_to_cache(cache, "acme/BEATs", [golden / "beats" / "beats.pt"])
    return cache


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("acme/llm", HubId("acme/llm")),
        ("acme/llm@v1.0", HubId("acme/llm", None, "v1.0")),
        ("acme/llm@refs/pr/1", HubId("acme/llm", None, "refs/pr/1")),
        ("acme/SALMONN/salmonn_v1.pth", HubId("acme/SALMONN", "salmonn_v1.pth")),
        ("acme/SALMONN/old/salmonn_v1.pth@abc", HubId("acme/SALMONN", "old/salmonn_v1.pth", "abc")),
        ("llm", None),
        ("/models/llm", None),
        ("./models/llm", None),
        ("../models/llm", None),
        ("~/llm", None),
    ],
)
def test_ids(text: str, expected: HubId | None) -> None:
    assert parse_id(text) == expected
    if expected:
        assert str(expected) == text


def test_ids_become_paths_in_the_cache(cache: Path) -> None:
    llm = locate("acme/llm", LLM)
    assert Path(llm.path) == cache / "models--acme--llm" / "snapshots" / COMMITS["acme/llm"]
    assert (llm.hub, source_name(llm)) == (f"acme/llm@{COMMITS['acme/llm']}", "llm")
    assert locate(f"acme/llm@{COMMITS['acme/llm']}", LLM) == locate("acme/llm@main", LLM) == llm
    pth = locate("acme/SALMONN", SALMONN)
    assert (Path(pth.path).name, pth.hub) == ("salmonn.pth", f"acme/SALMONN/salmonn.pth@{COMMITS['acme/SALMONN']}")
    assert Path(locate("acme/BEATs/beats.pt", AUDIO_ENCODER).path).name == "beats.pt"


def test_a_local_path_comes_first(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "acme" / "llm").mkdir(parents=True)
    assert locate("acme/llm", LLM).hub is None


def test_a_revision_is_kept_to(cache: Path, golden: Path) -> None:
    other = add_to_cache(cache, "acme/llm", sorted((golden / "salmonn" / "llm").iterdir()), "e" * 40, "v2")
    assert Path(locate("acme/llm@v2", LLM).path) == other
    assert Path(locate("acme/llm", LLM).path).name == COMMITS["acme/llm"]


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("acme/gone", r"acme/gone is neither a path here .* get it with: hf download acme/gone --include"),
        ("acme/llm@v9", r"acme/llm@v9 .* hf download acme/llm --revision v9 --include"),
        ("acme/llm/gone.bin", r"has no gone\.bin in the cache; get it with: hf download acme/llm --revision a{40}"),
    ],
)
def test_what_is_not_cached_says_how_to_get_it(cache: Path, reference: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        locate(reference, LLM)


def test_files_that_are_missing_are_named(cache: Path) -> None:
    folder = cache / "models--acme--llm" / "snapshots" / COMMITS["acme/llm"]
    (folder / "tokenizer.json").unlink()
    with pytest.raises(
        CheckpointError, match=r"no tokenizer\.json or tokenizer\.model in the cache; .*'tokenizer\.json'"
    ):
        locate("acme/llm", LLM)
    assert Path(locate("acme/llm", WHISPER).path) == folder  # which needs none
    shards = {"model.norm.weight": "model-00001-of-00002.safetensors", "x": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(CheckpointError, match=r"--include 'model-00001-of-00002\.safetensors' --include 'model-00002"):
        locate("acme/llm", WHISPER)


def test_pytorchs_files_serve_where_there_are_no_safetensors(cache: Path, golden: Path, tmp_path: Path) -> None:
    torch.save(load_file(golden / "salmonn" / "llm" / "model.safetensors"), tmp_path / "pytorch_model.bin")
    folder = golden / "salmonn" / "llm"
    others = [file for file in sorted(folder.iterdir()) if file.suffix != ".safetensors"]
    add_to_cache(cache, "acme/vicuna", [*others, tmp_path / "pytorch_model.bin"], "8" * 40)
    located = locate("acme/vicuna", LLM)
    assert inspect_path("acme/vicuna").usable
    tensors, same = read_llm(Path(located.path))[1], read_llm(folder)[1]
    assert tensors.keys() == same.keys()
    assert all(torch.equal(tensors[name](), same[name]()) for name in same)


def test_one_of_several_files_must_be_named(cache: Path, golden: Path) -> None:
    add_to_cache(cache, "acme/two", [golden / "salmonn" / "salmonn.pth"], "f" * 40)
    folder = cache / "models--acme--two" / "snapshots" / ("f" * 40)
    (folder / "other.pth").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"\['other\.pth', 'salmonn\.pth'\].*acme/two/FILE"):
        locate("acme/two", SALMONN)
    assert Path(locate("acme/two/salmonn.pth", SALMONN).path).name == "salmonn.pth"


class Online:
    """snapshot_download on a hub that can be reached: copies what the patterns ask for, and remembers it."""

    def __init__(self, cache: Path, files: dict[str, list[Path]]) -> None:
        self.cache, self.files, self.got = cache, files, set[str]()

    def __call__(
        self,
        repo: str,
        *,
        revision: str | None,
        allow_patterns: list[str],
        local_files_only: bool = False,
        dry_run: bool = False,
    ) -> str | list[Any]:
        wanted = [f for f in self.files[repo] if any(fnmatch.fnmatch(f.name, pattern) for pattern in allow_patterns)]
        if dry_run:
            return [SimpleNamespace(filename=file.name) for file in wanted]
        self.got |= {file.name for file in wanted}
        return str(add_to_cache(self.cache, repo, wanted, "7" * 40))


def test_only_what_is_needed_is_downloaded(golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Repositories hold weights several times over; a PyTorch file is fetched only where there are no safetensors."""
    whisper, llm = (sorted((golden / "salmonn" / part).iterdir()) for part in ("whisper", "llm"))
    names = (
        "model.fp32-00001-of-00002.safetensors",
        "consolidated.safetensors",
        "pytorch_model.bin",
        "flax_model.msgpack",
    )
    copies = [tmp_path / name for name in names]
    for file in copies:
        file.write_bytes(b"large")
    vicuna = [file for file in llm if file.suffix != ".safetensors"]
    online = Online(
        tmp_path / "hub",
        {
            "acme/whisper": [*whisper, *copies],
            "acme/llm": [*llm, *copies],
            "acme/vicuna": [*vicuna, tmp_path / "pytorch_model.bin"],
            "acme/SALMONN": [golden / "salmonn" / "salmonn.pth", golden / "README.md"],
        },
    )
    monkeypatch.setattr("salmonrun.training.foreign.hub.snapshot_download", online)
    for repo, wanted in (("acme/whisper", WHISPER), ("acme/llm", LLM)):
        assert locate(repo, wanted).hub == f"{repo}@{'7' * 40}"
    assert online.got.isdisjoint(file.name for file in copies)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= online.got
    locate("acme/vicuna", LLM)
    assert "pytorch_model.bin" in online.got
    assert Path(locate("acme/SALMONN", SALMONN).path).name == "salmonn.pth"
    assert "README.md" not in online.got


@pytest.fixture
def checkpoint(cache: Path, tmp_path: Path) -> Path:
    out = tmp_path / "checkpoint"
    parts = ["--whisper", "acme/whisper", "--audio-encoder", "acme/BEATs", "--llm", "acme/llm"]
    assert main(["convert", "acme/SALMONN", str(out), *parts]) == 0
    return out


def test_a_checkpoint_of_hub_parts_records_them(checkpoint: Path, golden_checkpoint: Path, cache: Path) -> None:
    config, same = load_config(checkpoint), load_config(golden_checkpoint)
    assert config.name == "llm"
    for part, repo in (("llm", "acme/llm"), ("whisper", "acme/whisper"), ("audio_encoder", "acme/BEATs/beats.pt")):
        source, local = getattr(config.sources, part), getattr(same.sources, part)
        assert source.hub == f"{repo}@{COMMITS[repo.removesuffix('/beats.pt')]}"
        assert Path(source.path).is_relative_to(cache)
        assert source.sha256 == local.sha256  # by the files' names, not by their blobs'
    stored = [(folder / "model.safetensors").read_bytes() for folder in (checkpoint, golden_checkpoint)]
    assert stored[0] == stored[1]


def test_another_machines_cache_serves(
    checkpoint: Path, cache: Path, tmp_path: Path, golden_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.rename(tmp_path / "elsewhere")
    with pytest.raises(
        CheckpointError, match=r"acme/whisper@b{40} .*hf download acme/whisper --revision b{40} --include"
    ):
        open_checkpoint(checkpoint)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    bundle = export_bundle(checkpoint, tmp_path / "bundle")
    weights = sorted(path.relative_to(golden_bundle) for path in golden_bundle.rglob("*.onnx.data"))
    assert len(weights) >= 3
    for name in weights:
        assert (bundle / name).read_bytes() == (golden_bundle / name).read_bytes()


def test_changed_bytes_in_the_cache_are_refused(checkpoint: Path, cache: Path) -> None:
    file = cache / "models--acme--llm" / "snapshots" / COMMITS["acme/llm"] / "model.safetensors"
    tensors = load_file(file)
    file.unlink()
    save_file(tensors | {"model.norm.weight": torch.zeros(64)}, file)
    with pytest.raises(CheckpointError, match="has changed since"):
        open_checkpoint(checkpoint)


def test_only_what_is_read_is_hashed(cache: Path, golden: Path, tmp_path: Path) -> None:
    folder = tmp_path / "llm"
    shutil.copytree(golden / "salmonn" / "llm", folder)
    save_file({"a": torch.zeros(1)}, folder / "consolidated.safetensors")  # Mistral's second copy
    parts: dict[str, Any] = {"whisper": "acme/whisper", "audio_encoder": "acme/BEATs"}
    convert_salmonn("acme/SALMONN", tmp_path / "out", llm=folder, **parts)
    source = load_config(tmp_path / "out").sources.llm
    assert source
    assert source.sha256.keys() == {"config.json", "model.safetensors"}


def test_inspecting_an_id(cache: Path, tmp_path: Path) -> None:
    assert inspect_path("acme/SALMONN").kind == "SALMONN .pth"
    assert inspect_path("acme/llm").kind == "LLM folder"
    assert inspect_path("acme/BEATs/beats.pt").kind == "BEATs .pt"
    with pytest.raises(CheckpointError, match="hf download acme/gone"):
        inspect_path("acme/gone")


def test_an_adapter_by_its_id(cache: Path, golden: Path, tmp_path: Path) -> None:
    llm = golden / "salmonn" / "llm"
    adapter = published.write_peft(tmp_path / "adapter", published.llm_targets(llm, range(3)))
    add_to_cache(cache, "acme/adapter", sorted(adapter.iterdir()), "9" * 40)
    parts: dict[str, Any] = {"whisper": "acme/whisper", "audio_encoder": "acme/BEATs", "llm": "acme/llm"}
    convert_salmonn("acme/SALMONN", tmp_path / "out", adapter="acme/adapter", merge_adapter=True, **parts)
    llm_source = load_config(tmp_path / "out").sources.llm
    assert llm_source
    assert llm_source.adapter
    assert llm_source.adapter.hub == f"acme/adapter@{'9' * 40}"
    open_checkpoint(tmp_path / "out")
