"""Signed bundles: minisign itself says the same, and what was not signed by the key is not loaded."""

import io
import json
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from salmonrun.__main__ import main
from salmonrun.export import push_bundle
from salmonrun.export.signing import make_key, sign_bundle
from salmonrun.runtime import Engine
from salmonrun.runtime.bundle import open_bundle
from salmonrun.runtime.errors import BundleIntegrityError, BundleSignatureError, ConfigError
from salmonrun.runtime.manifest import MANIFEST, manifest_hash
from salmonrun.runtime.signed import SIGNATURE
from tests.helpers.hub import TOKEN, Hub

pytest.importorskip("minisign", reason="the extra sign is not installed")

REPO = "acme/signed"
needs_minisign = pytest.mark.skipif(shutil.which("minisign") is None, reason="minisign is not installed: apt-get")


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy, to be signed."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


@pytest.fixture
def key(tmp_path: Path) -> Path:
    make_key(tmp_path / "maker.key")
    return tmp_path / "maker.key"


def public(key: Path) -> Path:
    return key.with_name(f"{key.name}.pub")


def minisign(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The program itself; an empty password, where it asks for one."""
    return subprocess.run(["minisign", *map(str, arguments)], input="\n", capture_output=True, text=True, check=True)


def test_a_signed_bundle_loads_by_its_key(bundle: Path, key: Path) -> None:
    signed = sign_bundle(bundle, key)
    assert signed.path == bundle / SIGNATURE
    for verify in (signed.public_key, public(key), str(public(key))):
        with Engine.load(bundle, verify=verify) as engine:
            assert engine.report().bundle
    assert open_bundle(bundle).manifest == open_bundle(bundle, verify=signed.public_key).manifest
    assert not list(bundle.glob(".*"))


@needs_minisign
def test_minisign_verifies_it(bundle: Path, key: Path) -> None:
    sign_bundle(bundle, key)
    said = minisign("-Vm", bundle / MANIFEST, "-p", public(key)).stdout
    assert said.startswith("Signature and comment signature verified\n")
    assert f"sha256:{open_bundle(bundle).manifest.manifest_sha256}" in said


@needs_minisign
def test_what_minisign_signs_is_verified(bundle: Path, tmp_path: Path) -> None:
    minisign("-GW", "-s", tmp_path / "own.key", "-p", tmp_path / "own.pub")
    minisign("-Sm", bundle / MANIFEST, "-s", tmp_path / "own.key")
    text = (tmp_path / "own.pub").read_text().splitlines()[1]
    assert open_bundle(bundle, text).manifest == open_bundle(bundle).manifest
    (bundle / SIGNATURE).unlink()
    assert sign_bundle(bundle, tmp_path / "own.key").public_key == text
    assert open_bundle(bundle, tmp_path / "own.pub").manifest == open_bundle(bundle).manifest


def other_prompt(bundle: Path) -> None:
    """Another prompt, in a manifest that is whole: what anybody can make of a bundle."""
    path = bundle / MANIFEST
    data = json.loads(path.read_text())
    data["prompt"]["tasks"]["asr"] = ["Say that all is well."]
    data["manifest_sha256"] = manifest_hash(json.dumps(data).encode())
    path.write_text(json.dumps(data))


def one_bit_of(bundle: Path, line: int) -> None:
    path = bundle / SIGNATURE
    lines = path.read_bytes().splitlines()
    at = len(lines[line]) // 2
    lines[line] = lines[line][:at] + (b"A" if lines[line][at : at + 1] != b"A" else b"B") + lines[line][at + 1 :]
    path.write_bytes(b"\n".join(lines) + b"\n")


def endless(bundle: Path) -> None:
    (bundle / SIGNATURE).unlink()
    (bundle / SIGNATURE).symlink_to("/dev/zero")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda bundle: (bundle / SIGNATURE).unlink(), "is not signed, it has no bundle.json.minisig"),
        (other_prompt, "is not a signature of"),
        (lambda bundle: one_bit_of(bundle, 1), "is not a signature of"),
        (lambda bundle: one_bit_of(bundle, 2), "is not a signature of"),  # the comment is signed, too
        (lambda bundle: one_bit_of(bundle, 3), "is not a signature of"),
        (lambda bundle: (bundle / SIGNATURE).write_bytes(b""), "is no signature of minisign"),
        (lambda bundle: (bundle / SIGNATURE).write_bytes(b"\xff" * 2**20), "is no signature of minisign"),
        (endless, "is no signature of minisign"),
    ],
)
def test_what_was_not_signed_is_refused(bundle: Path, key: Path, damage: Callable[[Path], object], said: str) -> None:
    sign_bundle(bundle, key)
    damage(bundle)
    with pytest.raises(BundleSignatureError, match=said):
        Engine.load(bundle, verify=public(key))
    Engine.load(bundle).close()  # who asks for no signature gets the bundle


def test_a_changed_file_is_refused_behind_a_good_signature(bundle: Path, key: Path) -> None:
    sign_bundle(bundle, key)
    path = bundle / "tokenizer.json"
    path.write_bytes(path.read_bytes().replace(b"a", b"b", 1))
    with pytest.raises(BundleIntegrityError, match=r"tokenizer\.json was changed"):
        Engine.load(bundle, verify=public(key))
    with pytest.raises(BundleIntegrityError, match=r"tokenizer\.json was changed"):
        sign_bundle(bundle, key)


def test_somebody_elses_key(bundle: Path, key: Path, tmp_path: Path) -> None:
    mine = sign_bundle(bundle, key).public_key
    theirs = make_key(tmp_path / "their.key")
    with pytest.raises(BundleSignatureError, match=r"is signed by the key with id [0-9A-F]{16}; expected RW") as caught:
        open_bundle(bundle, theirs)
    assert f"id {public(key).read_text().split()[-2]}" not in str(caught.value)
    assert mine not in str(caught.value)


@pytest.mark.parametrize(
    "verify", ["nowhere.pub", "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO", "", "a\0b"]
)
def test_what_is_no_key(bundle: Path, verify: str) -> None:
    with pytest.raises(ConfigError, match=r"expected True, False, or a public key of minisign: RW\.\.\., or"):
        open_bundle(bundle, verify)


def test_the_secret_half_is_no_public_key(bundle: Path, key: Path) -> None:
    with pytest.raises(ConfigError, match="holds no public key"):
        open_bundle(bundle, key)


def test_keys_are_kept(tmp_path: Path) -> None:
    key = tmp_path / "maker.key"
    assert make_key(key, "open sesame") == tmp_path / "maker.key.pub"
    assert stat.S_IMODE(os.stat(key).st_mode) == 0o600
    before = key.read_bytes()
    with pytest.raises(ConfigError, match="is there already"):
        make_key(key)
    assert key.read_bytes() == before


def test_passwords(bundle: Path, tmp_path: Path) -> None:
    key = tmp_path / "maker.key"
    make_key(key, "open sesame")
    for wrong in ("", "open barley"):
        with pytest.raises(ConfigError, match="password"):
            sign_bundle(bundle, key, wrong)
    assert not (bundle / SIGNATURE).exists()
    open_bundle(bundle, sign_bundle(bundle, key, "open sesame").public_key)


def test_commands(
    bundle: Path, tmp_path: Path, speech: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tmp_path / "maker.key"
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    assert main(["sign", str(bundle), "--key", str(key), "--new-key"]) == 0
    made, signed = capsys.readouterr().out.splitlines()
    assert made == f"{public(key)}: the public key of {key}"
    path, text = signed.split(": ")
    assert path == str(bundle / SIGNATURE)
    asked = ["transcribe", str(bundle), str(speech), "--max-new-tokens", "2", "--signed-by"]
    assert main([*asked, text]) == 0
    theirs = make_key(tmp_path / "their.key")
    capsys.readouterr()
    assert main([*asked, str(theirs)]) == 1
    assert "is signed by the key with id" in capsys.readouterr().err


def test_the_hub_has_the_signature(hub: Hub, bundle: Path, key: Path) -> None:
    sign_bundle(bundle, key)
    push_bundle(bundle, REPO, token=TOKEN)
    assert SIGNATURE in hub.repositories[REPO].files("main")
    with Engine.from_pretrained(REPO, signed_by=public(key)) as engine:
        assert engine.bundle.manifest == open_bundle(bundle).manifest
    (bundle / SIGNATURE).unlink()
    assert push_bundle(bundle, REPO, message="unsigned", token=TOKEN).removed == 1
    with pytest.raises(BundleSignatureError, match="is not signed"):
        Engine.from_pretrained(REPO, signed_by=public(key))
    Engine.from_pretrained(REPO).close()
