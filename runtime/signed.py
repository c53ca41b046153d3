"""Who made a bundle: a minisign signature of its manifest, which has the hash of every file."""

import base64
import os
from pathlib import Path
from typing import Any, TypeGuard

from salmonrun.runtime.errors import BundleSignatureError, ConfigError, MissingExtraError
from salmonrun.runtime.manifest import MANIFEST

SIGNATURE = f"{MANIFEST}.minisig"  # as `minisign -Sm bundle.json` calls it
MAX_BYTES = 16 * 2**10  # of a signature: minisign's own comments have 8 KiB at most

Verify = bool | str | os.PathLike[str]


def is_key(verify: Verify) -> TypeGuard[str | os.PathLike[str]]:
    """Whether a bundle shall be signed: True and False are about its hashes alone."""
    return not isinstance(verify, bool)


def check_signature(folder: Path, content: bytes, key: str | os.PathLike[str]) -> None:
    """Whether who has the secret half of a key has signed a manifest.

    Args:
        folder: of the bundle.
        content: of its manifest: what was signed, byte for byte.
        key: the public half, as text ("RWQf6LRCGA9i...") or the file that minisign writes.

    Raises:
        BundleSignatureError: there is no signature, one of another key, or one of another manifest.
        ConfigError: it is no public key.
        MissingExtraError: py-minisign is not installed.
    """
    minisign = library("to check who signed a bundle")
    public = _public_key(minisign, key)
    path = folder / SIGNATURE
    try:
        with path.open("rb") as file:
            signature = minisign.Signature.from_bytes(file.read(MAX_BYTES))
    except FileNotFoundError as error:
        raise BundleSignatureError(
            f"{folder} is not signed, it has no {SIGNATURE}; expected a signature by {show_key(public)}: ask who made "
            "the bundle for it, or load it without a key"
        ) from error
    except (OSError, ValueError) as error:
        raise BundleSignatureError(f"{path} is no signature of minisign: {error}") from error
    signer = _id(bytes(signature).splitlines()[1])
    if signer != _id(public.to_base64()):
        raise BundleSignatureError(f"{folder} is signed by the key with id {signer}; expected {show_key(public)}")
    try:
        public.verify(content, signature)
    except minisign.VerifyError as error:
        raise BundleSignatureError(
            f"{path} is not a signature of {folder / MANIFEST} by {show_key(public)}: one of them was changed or "
            "replaced; copy the bundle again, and do not run this one"
        ) from error


def show_key(public: Any) -> str:
    """A public key, as people hand it on, with its id."""
    text = public.to_base64()
    return f"{text.decode()} (id {_id(text)})"


def library(purpose: str) -> Any:
    """py-minisign, whose package is called minisign.

    Args:
        purpose: what it is needed for, at the beginning of a sentence.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import minisign

        minisign.KeyPair  # noqa: B018  # another package of this name has none
    except (ModuleNotFoundError, AttributeError) as error:
        raise MissingExtraError(f"{purpose}, py-minisign is needed: pip install 'salmonrun[sign]'") from error
    return minisign


def _public_key(minisign: Any, key: str | os.PathLike[str]) -> Any:
    """The text of a key wins over a file that is called so."""
    if isinstance(key, str):
        try:
            return minisign.PublicKey.from_base64(key)
        except ValueError:  # then it is a file
            pass
    expected = "expected True, False, or a public key of minisign: RW..., or its file"
    try:
        with Path(key).open("rb") as file:
            content = file.read(MAX_BYTES)
    except (OSError, ValueError) as error:
        raise ConfigError(f"verify is {os.fspath(key)!r}, neither a key nor a file; {expected}") from error
    try:
        return minisign.PublicKey.from_bytes(content)
    except ValueError as error:
        raise ConfigError(f"verify is {os.fspath(key)!r}, which holds no public key ({error}); {expected}") from error


def _id(encoded: bytes) -> str:
    """Of the key of an encoded key or signature, as minisign shows it: 8 bytes behind the algorithm's two, reversed."""
    return base64.b64decode(encoded)[2:10][::-1].hex().upper()
