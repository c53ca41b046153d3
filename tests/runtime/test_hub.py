"""Bundles of the Hugging Face Hub, by its own client from a server on loopback: what is fetched, kept and refused."""

import argparse
import json
import logging
import os
import shutil
import subprocess
import sys
from inspect import signature
from pathlib import Path

import pytest
from huggingface_hub import constants

from salmonrun.export import push_bundle
from salmonrun.runtime import Engine, GenerationConfig, Limits
from salmonrun.runtime.commands.options import add_engine_arguments, open_engine
from salmonrun.runtime.errors import (
    BundleError,
    BundleIntegrityError,
    BundleVersionError,
    ConfigError,
    HubError,
)
from salmonrun.runtime.hub import locate_bundle
from salmonrun.runtime.manifest import MANIFEST
from tests.helpers.hub import TOKEN, Hub, hub_server, point_client_at

FEW = GenerationConfig(max_new_tokens=8)
REPO = "acme/tiny"


@pytest.fixture
def pushed(hub: Hub, tiny_bundle: Path) -> Hub:
    """A hub that has the tiny bundle."""
    push_bundle(tiny_bundle, REPO, token=TOKEN)
    hub.requests.clear()
    return hub


def test_a_bundle_of_the_hub_answers_as_the_local_one(pushed: Hub, tiny_engine: Engine, speech: Path) -> None:
    with Engine.from_pretrained(REPO, threads=1) as engine:
        assert engine.generate(speech, config=FEW).token_ids == tiny_engine.generate(speech, config=FEW).token_ids
        assert engine.report().threads == 1
        assert engine.bundle.folder.name == pushed.repositories[REPO].branches["main"]


def test_it_takes_what_load_takes() -> None:
    """But for `verify`: what comes from elsewhere is always hashed."""
    load, hub = (signature(getattr(Engine, name)).parameters for name in ("load", "from_pretrained"))
    assert set(load) - set(hub) == {"path", "verify"}
    assert all(hub[name].default == load[name].default for name in set(load) & set(hub))


def test_only_what_the_manifest_names_is_downloaded_and_only_once(pushed: Hub, tmp_path: Path) -> None:
    repository = pushed.repositories[REPO]
    files = {**repository.files("main"), "samples/talk.wav": b"RIFF" * 99}
    repository.commit("main", files, "a recording")
    located = locate_bundle(REPO)
    names = json.loads(files[MANIFEST])["files"]
    taken = {path.relative_to(located.folder).as_posix() for path in located.folder.rglob("*") if path.is_file()}
    assert taken == {MANIFEST, *names}
    assert located.downloaded == sum(spec["size"] for spec in names.values())
    assert str(located).startswith(f"{REPO}@{repository.branches['main']}: {located.downloaded / 2**20:.1f} MiB down")
    pushed.requests.clear()
    again = locate_bundle(REPO)
    assert (again.folder, again.downloaded) == (located.folder, 0)
    assert "from the cache" in str(again)
    assert not [request for request in pushed.requests if request.startswith("GET") and "/api/" not in request]


def test_a_download_that_was_cut_goes_on(pushed: Hub, tiny_engine: Engine) -> None:
    folder = locate_bundle(REPO).folder
    (folder / "tokenizer.json").unlink()
    with pytest.raises(HubError, match="nor wholly in the hub's cache"):
        locate_bundle(REPO, local_files_only=True)
    located = locate_bundle(REPO)
    assert located.downloaded == (tiny_engine.bundle.folder / "tokenizer.json").stat().st_size
    Engine.load(located.folder).close()


def test_revisions(pushed: Hub, tiny_bundle: Path) -> None:
    repository = pushed.repositories[REPO]
    first = repository.branches["main"]
    push_bundle(tiny_bundle, REPO, revision="next", message="the same", token=TOKEN)
    repository.commit("main", {"README.md": b"empty"}, "away with it")
    with pytest.raises(BundleError, match=r"^acme/tiny has no bundle\.json, or lacks"):
        locate_bundle(REPO)
    for revision in (first, "next"):
        assert locate_bundle(REPO, revision).folder == locate_bundle(f"{REPO}@{revision}").folder
    with pytest.raises(HubError, match=r"^acme/tiny@v9: there is no such revision; http"):
        locate_bundle(REPO, "v9")
    with pytest.raises(ConfigError, match="revision is 'v9', and acme/tiny@next names one"):
        locate_bundle(f"{REPO}@next", "v9")


def test_the_cache_does_without_a_network(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, speech: Path
) -> None:
    cache = tmp_path / "elsewhere"
    with hub_server() as served:
        point_client_at(served, tmp_path / "hub", monkeypatch)
        push_bundle(tiny_bundle, REPO, token=TOKEN)
        with Engine.from_pretrained(REPO, cache_dir=cache) as engine:
            tokens = engine.generate(speech, config=FEW).token_ids
    with caplog.at_level(logging.WARNING, "salmonrun"), Engine.from_pretrained(REPO, cache_dir=cache) as engine:
        assert engine.generate(speech, config=FEW).token_ids == tokens
    (record,) = caplog.records
    assert record.getMessage().startswith("acme/tiny: the hub cannot be reached (")
    caplog.clear()
    Engine.from_pretrained(REPO, cache_dir=cache, local_files_only=True).close()
    with pytest.raises(HubError, match=r"^acme/other is not here as a folder, nor wholly in the hub's cache"):
        Engine.from_pretrained("acme/other", cache_dir=cache, local_files_only=True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    Engine.from_pretrained(REPO, cache_dir=cache).close()
    with pytest.raises(HubError, match=r"^acme/other is not here as a folder, nor wholly in the hub's cache"):
        Engine.from_pretrained("acme/other", cache_dir=cache)
    assert not caplog.records  # that is how it was asked for


def test_what_was_changed_on_the_hub_is_refused(pushed: Hub, tiny_bundle: Path) -> None:
    largest = max(json.loads((tiny_bundle / MANIFEST).read_text())["files"].items(), key=lambda item: item[1]["size"])
    pushed.damage(REPO, largest[0])
    with pytest.raises(BundleIntegrityError, match=rf"{largest[0]} was changed after the export \(sha256 differs\)"):
        Engine.from_pretrained(REPO)


def test_a_manifest_that_reaches_out_of_its_folder(pushed: Hub, tmp_path: Path) -> None:
    """It is refused as in any bundle, and nothing is asked of the hub that is not a file of the repository."""
    repository = pushed.repositories[REPO]
    files = dict(repository.files("main"))
    files[MANIFEST] = files[MANIFEST].replace(b'"tokenizer.json": {', b'"../../tokenizer.json": {')
    repository.commit("main", files, "out of it")
    with pytest.raises(BundleIntegrityError):
        Engine.from_pretrained(REPO)
    assert not [request for request in pushed.requests if ".." in request]


def test_who_may_not_have_it(pushed: Hub) -> None:
    pushed.repositories[REPO].gated = True
    with pytest.raises(HubError, match=rf"^acme/tiny is gated: ask for access at {pushed.url}/acme/tiny"):
        locate_bundle(REPO)
    locate_bundle(REPO, token=TOKEN)
    pushed.repositories[REPO].gated, pushed.repositories[REPO].private = False, True
    with pytest.raises(HubError, match=r"^acme/tiny is neither a folder here nor a repository at .* if it is private"):
        locate_bundle(REPO, cache_dir=Path("another"))
    with pytest.raises(HubError, match=r"^acme/no-such is neither a folder here nor a repository at"):
        locate_bundle("acme/no-such")


def test_what_is_no_bundle(pushed: Hub) -> None:
    repository = pushed.repositories[REPO]
    files = repository.files("main")
    repository.commit("old", {**files, MANIFEST: b'{"format_version": 1}'}, "old")
    with pytest.raises(BundleVersionError):
        locate_bundle(REPO, "old")
    repository.commit("text", {**files, MANIFEST: b"<html>"}, "text")
    with pytest.raises(BundleIntegrityError, match="is not JSON"):
        locate_bundle(REPO, "text")
    repository.commit("half", {name: files[name] for name in files if name != "tokenizer.json"}, "half")
    with pytest.raises(BundleIntegrityError, match=r"tokenizer\.json is missing"):
        Engine.from_pretrained(REPO, "half")


def test_a_folder_wins(pushed: Hub, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_bundle, REPO)
    located = locate_bundle(REPO)
    assert (located.folder, located.hub, str(located)) == (Path(REPO), "", REPO)
    with pytest.raises(ConfigError, match="revision is 'main', and acme/tiny is a folder here"):
        locate_bundle(REPO, "main")
    assert not pushed.requests


@pytest.mark.parametrize("name", ["nowhere", "./acme/tiny", "/acme/tiny", "a/b/c", "~/tiny"])
def test_what_can_be_no_hub_id_is_a_folder(hub: Hub, name: str) -> None:
    with pytest.raises(BundleError, match=f"^bundle {Path(name)} does not exist; make one with"):
        Engine.from_pretrained(name)
    assert not hub.requests


@pytest.mark.parametrize("name", ["acme/ti--ny", "acme/tiny.git"])
def test_ids_that_the_hub_does_not_have(hub: Hub, name: str) -> None:
    with pytest.raises(HubError, match=f"^{name} is no hub id, org/name or org/name@revision: "):
        locate_bundle(name)


# Commands


def command(hub: str, cache: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own, as a user's: the hub by HF_ENDPOINT."""
    env = {**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1", **environment}
    argv = [sys.executable, "-m", "salmonrun", *map(str, arguments)]
    return subprocess.run(argv, capture_output=True, text=True, env=env, check=False)


def test_commands_take_a_hub_id(tiny_bundle: Path, speech: Path, tmp_path: Path) -> None:
    """push, transcribe from there, and again with nobody there, from the cache."""
    with hub_server() as served:
        push = command(served.url, tmp_path, "push", tiny_bundle, REPO, "--private", HF_TOKEN=TOKEN)
        assert push.returncode == 0, push.stderr
        commit = served.repositories[REPO].branches["main"]
        assert push.stdout.splitlines()[0].startswith(f"{REPO}@{commit}: ")
        asked = ("transcribe", REPO, speech, "--max-new-tokens", "8")
        first = command(served.url, tmp_path, *asked, HF_TOKEN=TOKEN)
        assert first.returncode == 0, first.stderr
        assert f"{REPO}@{commit}: " in first.stderr
        assert "MiB downloaded to " in first.stderr
    local = command(served.url, tmp_path, "transcribe", tiny_bundle, speech, "--max-new-tokens", "8")
    offline = command(served.url, tmp_path, *asked, HF_HUB_OFFLINE="1")
    assert (first.stdout, offline.stdout, offline.returncode) == (local.stdout, local.stdout, 0)
    assert f"{REPO}@{commit}: from the cache, " in offline.stderr
    gone = command(served.url, tmp_path / "empty", *asked)
    assert (gone.returncode, gone.stdout) == (1, "")
    assert gone.stderr.splitlines()[-1].startswith(f"error: {REPO} is not here as a folder, nor wholly in")
    assert "Traceback" not in gone.stderr


def test_a_server_tells_its_log_what_it_downloaded(pushed: Hub) -> None:
    """And nobody else: its standard error has lines of JSON alone."""
    parser, told = argparse.ArgumentParser(), list[str]()
    add_engine_arguments(parser)
    arguments = parser.parse_args([f"{REPO}@main", "--threads", "1"])
    with open_engine(arguments, REPO, told.append, Limits(max_cache_mib=16)) as engine:
        report = engine.report()
        assert (report.threads, engine.model.limits.max_cache_mib) == (1, 16)
    (line,) = told
    assert line.startswith(f"{REPO}@{pushed.repositories[REPO].branches['main']}: ")


def test_without_the_extra() -> None:
    code = (
        "import sys; sys.modules['huggingface_hub'] = None; from salmonrun.__main__ import main; "
        "sys.exit(main(['check', 'acme/tiny']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "error: acme/tiny is no folder here, and to have it from the Hugging Face Hub, huggingface_hub is needed: "
        "pip install 'salmonrun[hub]'\n"
    )
