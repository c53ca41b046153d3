"""A bundle is signed: minisign's signature of its manifest, beside it."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from salmonrun.runtime.bundle import open_bundle
from salmonrun.runtime.errors import ConfigError
from salmonrun.runtime.manifest import MANIFEST
from salmonrun.runtime.signed import SIGNATURE, library


@dataclass(frozen=True)
class Signed:
    """What was written."""

    path: Path  # of the signature
    public_key: str  # which verifies it


def make_key(path: Path, password: str = "") -> Path:
    """A new pair of keys, the secret half readable by its owner alone.

    Args:
        path: of the secret half; the public one gets `.pub` behind it.
        password: of the secret half; empty: none, and whoever has the file can sign.

    Returns:
        The path of the public half.

    Raises:
        ConfigError: one of the files is there already: what it signed could not be verified any more.
        MissingExtraError: py-minisign is not installed.
    """
    minisign = library("to make a key")
    public = path.with_name(f"{path.name}.pub")
    pair = minisign.KeyPair.generate()
    if password:
        pair.secret_key.encrypt(password)
    for place, half, mode in ((path, pair.secret_key, 0o600), (public, pair.public_key, 0o644)):
        try:
            file = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        except FileExistsError as error:
            raise ConfigError(f"{place} is there already; give another place, or sign with it as it is") from error
        with open(file, "wb") as opened:
            opened.write(bytes(half) + b"\n")
    return public


def sign_bundle(folder: str | os.PathLike[str], key: Path, password: str = "") -> Signed:
    """Check a bundle, every file of it, and sign its manifest; a signature that is there is replaced.

    Args:
        folder: of the bundle.
        key: the secret key's file, as minisign writes it.
        password: of the key, if it has one.

    Raises:
        BundleError: the bundle is damaged.
        ConfigError: there is no such key, or it has another password.
        MissingExtraError: py-minisign is not installed.
    """
    minisign = library("to sign a bundle")
    bundle = open_bundle(folder)
    with _secret_key(minisign, key, password) as secret:
        content = (bundle.folder / MANIFEST).read_bytes()
        signature = secret.sign(content, trusted_comment=f"file:{MANIFEST}\tsha256:{bundle.manifest.manifest_sha256}")
        public = secret.get_public_key()
    path = bundle.folder / SIGNATURE
    filled = path.with_name(f".{SIGNATURE}.partial")
    filled.write_bytes(bytes(signature) + b"\n")
    filled.replace(path)
    return Signed(path, public.to_base64().decode())


def _secret_key(minisign: Any, path: Path, password: str) -> Any:
    try:
        key = minisign.SecretKey.from_file(path)
        key.decrypt(password)
    except OSError as error:
        raise ConfigError(f"key {path} cannot be read: {error.strerror}; --new-key makes one") from error
    except ValueError as error:
        raise ConfigError(f"key {path}: {error}; expected a secret key of minisign and its password") from error
    return key
