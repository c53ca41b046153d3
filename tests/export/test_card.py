"""README.md of a bundle: what people are told who are handed the folder."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from salmonrun.export.card import write_card
from salmonrun.export.licences import NOT_NAMED, licences, named_licence
from salmonrun.runtime import Engine
from salmonrun.runtime.bundle import open_bundle
from salmonrun.runtime.parity import read_parity
from salmonrun.training.checkpoint import open_checkpoint

ROOT = Path(__file__).parents[2]


def test_the_card_says_what_the_bundle_is(demo_bundle: Path) -> None:
    card, parity = (demo_bundle / "README.md").read_text(), json.loads((demo_bundle / "parity.json").read_text())
    assert card.startswith("---\nlibrary_name: salmonrun\n")
    assert "\n# demo\n" in card
    assert "| `asr` | `<Speech><SpeechHere></Speech> Write down what is said.` |" in card
    assert "| llm | llama, 4 layers of 192, 640 tokens | int4 | apache-2.0 |" in card
    assert "| qformer | window-level Q-Former, 2 layers of 192 | fp32 | apache-2.0 |" in card
    assert "Demanded: relative error of every stage at most 0.35, and 90% of the tokens on speech" in card
    for name, error in {**parity["stages"], "end to end": parity["end_to_end"]}.items():
        assert f"| {name} | {error['max_abs']:.1e} | {error['relative']:.1e} |" in card
    assert f"{parity['tokens_agreeing']} of {parity['tokens_compared']} greedy tokens are PyTorch's choice." in card
    for name, digest in open_bundle(demo_bundle).manifest.provenance.sources.items():
        assert f"| `{name}` | `{digest}` |" in card


def test_a_bundle_without_tasks_is_asked_by_a_prompt(demo_bundle: Path, tmp_path: Path) -> None:
    manifest, source = open_bundle(demo_bundle).manifest, open_checkpoint(ROOT / "demo" / "checkpoint")
    manifest = replace(manifest, prompt=replace(manifest.prompt, tasks={}))
    write_card(source, manifest, read_parity(open_bundle(demo_bundle)), tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "| task |" not in card
    assert 'generate("talk.wav", prompt="Describe the recording.")' in card


def test_it_may_be_edited_or_lost(tiny_bundle: Path, tmp_path: Path) -> None:
    """It proves nothing, so the manifest does not list it."""
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    assert "README.md" not in open_bundle(bundle).manifest.files
    (bundle / "README.md").write_text("translated")
    Engine.load(bundle).close()
    (bundle / "README.md").unlink()
    Engine.load(bundle).close()


def test_licences_are_those_of_the_folders_a_checkpoint_refers_to(golden_checkpoint: Path, tmp_path: Path) -> None:
    source = open_checkpoint(golden_checkpoint)
    assert set(licences(source).values()) == {NOT_NAMED}
    (tmp_path / "README.md").write_text("---\nlicense: llama3.2\n---\n# Llama\n")
    llm = replace(source.config.sources.of("llm"), path=str(tmp_path))
    config = replace(source.config, sources=replace(source.config.sources, llm=llm))
    assert licences(replace(source, config=config)) == {
        "whisper": NOT_NAMED,
        "audio_encoder": NOT_NAMED,
        "qformer": NOT_NAMED,
        "llm": "llama3.2",
    }


@pytest.mark.parametrize(
    ("card", "file", "named"),
    [
        ("---\nlicense: mit\n---\n", None, "mit"),
        ("---\nlicense: other\nlicense_name: qwen-research\n---\n", None, "qwen-research"),
        ("---\nlicense: [mit, apache-2.0]\n---\n", None, "mit, apache-2.0"),
        ("---\ntags: [audio]\n---\n", "LICENSE.txt", "see LICENSE.txt of part"),
        ("---\n: [\n---\n", None, NOT_NAMED),
        ("---\n- license\n---\n", None, NOT_NAMED),
        ("# A model\nlicense: mit\n", None, NOT_NAMED),
        (None, "licence", "see licence of part"),
        (None, None, NOT_NAMED),
    ],
)
def test_where_a_licence_is_named(tmp_path: Path, card: str | None, file: str | None, named: str) -> None:
    folder = tmp_path / "part"
    folder.mkdir()
    if card is not None:
        (folder / "README.md").write_text(card)
    if file:
        (folder / file).write_text("...")
    assert named_licence(folder) == named


def test_what_lies_beside_a_single_file_is_not_its_licence(tmp_path: Path) -> None:
    (tmp_path / "LICENSE").write_text("...")
    (tmp_path / "BEATs.pt").write_bytes(b"")
    assert named_licence(tmp_path / "BEATs.pt") == NOT_NAMED
