"""Bundles that are pushed: what lies on the hub then, what its card says, and what is refused before anything is."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from salmonrun.__main__ import main
from salmonrun.export import push_bundle
from salmonrun.export.licences import NOT_NAMED, licence_of_all
from salmonrun.runtime import Engine
from salmonrun.runtime.bundle import open_bundle
from salmonrun.runtime.errors import BundleIntegrityError, CheckpointError, ConfigError, HubError
from salmonrun.runtime.manifest import MANIFEST
from tests.helpers.hub import LARGE, TOKEN, Hub
from tests.helpers.kernels import BUILT, needs_kernels

ROOT = Path(__file__).parents[2]
REPO = "acme/demo"


def files(hub: Hub, revision: str = "main") -> dict[str, bytes]:
    return hub.repositories[REPO].files(revision)


def test_one_commit_of_the_bundle_and_its_card(hub: Hub, tiny_bundle: Path) -> None:
    pushed = push_bundle(tiny_bundle, REPO, token=TOKEN)
    there, manifest = files(hub), open_bundle(tiny_bundle).manifest
    assert there.keys() == {"README.md", MANIFEST, *manifest.files}
    assert all(there[name] == (tiny_bundle / name).read_bytes() for name in (MANIFEST, *manifest.files))
    assert len([request for request in hub.requests if "/commit/" in request]) == 1
    large = {spec.sha256 for spec in manifest.files.values() if spec.size >= LARGE}
    assert large
    assert hub.large.keys() == large  # by LFS, and all else in the commit
    assert hub.repositories[REPO].messages == [f"Bundle of tiny, by {manifest.provenance.exporter}"]
    assert (pushed.commit, pushed.files, pushed.removed) == (hub.repositories[REPO].branches["main"], len(there), 0)
    assert pushed.url == f"{hub.url}/{REPO}/commit/{pushed.commit}"


@needs_kernels
def test_what_the_bundle_before_had_more_is_removed(hub: Hub, tiny_bundle: Path, streaming_bundle: Path) -> None:
    push_bundle(streaming_bundle, REPO, token=TOKEN)
    more = open_bundle(streaming_bundle).manifest.files.keys() - open_bundle(tiny_bundle).manifest.files.keys()
    assert more
    repository = hub.repositories[REPO]
    repository.commit("main", {**files(hub), "samples/talk.wav": b"RIFF"}, "a recording")
    pushed = push_bundle(tiny_bundle, REPO, message="smaller", token=TOKEN)
    assert pushed.removed == len(more)
    assert files(hub).keys() == {"README.md", MANIFEST, "samples/talk.wav", *open_bundle(tiny_bundle).manifest.files}
    assert repository.messages[-1] == "smaller"
    assert Engine.from_pretrained(REPO).bundle.manifest == open_bundle(tiny_bundle).manifest


def test_a_branch_is_made(hub: Hub, tiny_bundle: Path) -> None:
    push_bundle(tiny_bundle, REPO, revision="int8", token=TOKEN)
    push_bundle(tiny_bundle, REPO, revision="int8", message="again", token=TOKEN)
    assert MANIFEST in files(hub, "int8")
    assert not files(hub, "main")
    card = files(hub, "int8")["README.md"].decode()
    assert f"salmonrun transcribe {REPO}@int8 talk.wav" in card
    assert f'Engine.from_pretrained("{REPO}", revision="int8")' in card
    assert hub.repositories[REPO].messages == [hub.repositories[REPO].messages[0]]  # nothing had changed


def test_private_repositories(hub: Hub, tiny_bundle: Path) -> None:
    push_bundle(tiny_bundle, REPO, private=True, token=TOKEN)
    assert hub.repositories[REPO].private
    push_bundle(tiny_bundle, "acme/open", token=TOKEN)
    hub.requests.clear()
    with pytest.raises(HubError, match="acme/open is there, and public; make it private in its settings"):
        push_bundle(tiny_bundle, "acme/open", private=True, token=TOKEN)
    assert not [request for request in hub.requests if "/commit/" in request or "/storage/" in request]


def test_a_damaged_bundle_is_not_pushed(hub: Hub, tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    content = (bundle / "tokenizer.json").read_bytes()
    (bundle / "tokenizer.json").write_bytes(content[:-2] + b" }")
    with pytest.raises(BundleIntegrityError, match="was changed after the export"):
        push_bundle(bundle, REPO, token=TOKEN)
    assert not hub.requests


def test_who_may_not_write(hub: Hub, tiny_bundle: Path) -> None:
    with pytest.raises(HubError, match=f"^{REPO}"):
        push_bundle(tiny_bundle, REPO, token="hf_of_somebody")
    assert not hub.repositories


# The card


def test_the_card_on_the_hub(hub: Hub, demo_bundle: Path) -> None:
    push_bundle(demo_bundle, REPO, token=TOKEN)
    card, own = files(hub)["README.md"].decode(), (demo_bundle / "README.md").read_text()
    data = ModelCard(card).data.to_dict()
    assert (data["library_name"], data["license"]) == ("salmonrun", "apache-2.0")
    assert data["pipeline_tag"] == "audio-text-to-text"
    assert {"salmonrun", "automatic-speech-recognition"} <= set(data["tags"])
    assert "## From the Hub\n\nWith salmonrun and its extras `cpu` and `hub`" in card
    assert f'engine = Engine.from_pretrained("{REPO}")' in card
    for line in own.partition("\n# demo\n")[2].splitlines():  # all of the bundle's own: parity, licences, sizes
        assert line in card
    assert "| `llm/decoder.onnx.data` | " in card
    assert ("| our own kernels for CPUs |" in card) is BUILT
    again = card.partition("\n# demo\n")[2].count("## From the Hub")
    assert again == 1


def test_a_card_that_was_edited_is_kept_and_one_that_is_gone_is_made(
    hub: Hub, tiny_bundle: Path, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    edited = "---\nlicense: mit\nlanguage: [de]\n---\n# Unser Modell\n\n## From the Hub\n\nold\n\n## Mehr\n\nText\n"
    (bundle / "README.md").write_text(edited)
    push_bundle(bundle, REPO, token=TOKEN)
    card = files(hub)["README.md"].decode()
    assert ModelCard(card).data.to_dict() == {"license": "mit", "language": ["de"], "library_name": "salmonrun"}
    assert "# Unser Modell\n" in card
    assert "## Mehr\n\nText\n" in card
    assert "old" not in card
    assert card.count("## From the Hub") == 1
    (bundle / "README.md").write_text("---\nlicense: [\n---\n# Broken\n")
    with pytest.raises(ConfigError, match=r"the header of .*README\.md is not what the Hub reads"):
        push_bundle(bundle, REPO, token=TOKEN)
    (bundle / "README.md").unlink()
    push_bundle(bundle, REPO, token=TOKEN)
    made = files(hub)["README.md"].decode()
    assert "license" not in ModelCard(made).data.to_dict()
    assert "## What it was checked for" in made
    assert "licences" not in made  # nothing is known of them without the checkpoint


def test_how_good_it_is(hub: Hub, demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what `salmonrun evaluate` has written, and only about this very bundle."""
    answers = tmp_path / "answers.jsonl"
    argv = [str(demo_bundle), str(ROOT / "demo" / "recordings" / "annotation.json"), "--out", str(answers)]
    assert main(["evaluate", *argv]) == 0
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert main(["push", str(demo_bundle), REPO, "--evaluation", str(answers)]) == 0
    card = files(hub)["README.md"].decode()
    (index,) = ModelCard(card).data.to_dict()["model-index"]
    (speech,) = (one for one in index["results"] if one["task"]["type"] == "automatic-speech-recognition")
    assert (index["name"], speech["dataset"]["name"]) == ("demo", "annotation")
    # The demo has all of its own recordings right.
    assert {metric["type"]: metric["value"] for metric in speech["metrics"]} == {"wer": 0, "exact_match": 1}
    assert "| annotation | asr | 6 | WER 0%, exact matches 1 |" in card
    text = answers.read_text()
    digest = open_bundle(demo_bundle).manifest.manifest_sha256
    assert digest in text
    answers.write_text(text.replace(digest, "0" * 64))
    with pytest.raises(ConfigError, match=f"holds answers of the model {'0' * 12}, this bundle is {digest[:12]}"):
        push_bundle(demo_bundle, REPO, evaluations=[answers])
    answers.write_text("no answers")
    with pytest.raises(CheckpointError, match="does not hold answers of `salmonrun evaluate`"):
        push_bundle(demo_bundle, REPO, evaluations=[answers])
    with pytest.raises(ConfigError, match="which is no file"):
        push_bundle(demo_bundle, REPO, evaluations=[tmp_path / "gone"])


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        (["mit", "mit"], {"license": "mit"}),
        (["qwen-research"], {"license": "other", "license_name": "qwen-research"}),
        (["mit", "llama3.2"], {"license": "other", "license_name": "several-see-below"}),
        (["mit", NOT_NAMED], {}),
        ([], {}),
    ],
)
def test_how_a_card_names_several_licences(named: list[str], expected: dict[str, str]) -> None:
    assert licence_of_all(named) == expected


def test_the_header_of_a_bundles_own_card(demo_bundle: Path) -> None:
    header = yaml.safe_load((demo_bundle / "README.md").read_text().split("---\n")[1])
    assert header["license"] == "apache-2.0"
    total = sum(spec["size"] for spec in json.loads((demo_bundle / MANIFEST).read_text())["files"].values())
    assert f"{total / 2**20:.1f} MiB in " in (demo_bundle / "README.md").read_text()


def test_pushing_needs_no_pytorch(tiny_bundle: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys; sys.modules |= dict.fromkeys(['torch', 'transformers', 'onnx', 'onnxruntime', 'jiwer']); "
        "from salmonrun.export.hub_card import hub_card; from salmonrun.runtime.bundle import open_bundle; "
        "import salmonrun.export.push; print(hub_card(open_bundle(sys.argv[1]), 'acme/x', None, ()))"
    )
    done = subprocess.run([sys.executable, "-c", code, tiny_bundle], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "## From the Hub" in done.stdout
