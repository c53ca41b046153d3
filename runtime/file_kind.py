"""What a file is that is not what its name says: a pointer, a page, or a part of it."""

import re
import zipfile
from pathlib import Path

_LFS = re.compile(rb"version https://git-lfs\.github\.com/spec/.*?\nsize (\d{1,18})", re.DOTALL)
_PAGE = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)?<(?:!doctype\s+html|html|error)",
    re.IGNORECASE | re.DOTALL,
)
_MOST_TEXT = 64 * 1024  # bytes of what a server says in place of a file


def odd_kind(path: Path) -> str:
    """What is in place of a file's content, and what to do; empty if it is nothing that is known.

    Args:
        path: of a file that is there, and could not be read as what it should be.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            begin = file.read(1024)
    except OSError:
        return ""
    if not size:
        return "it is empty: a download that failed, or a disk that was full; get it again"
    if pointer := _LFS.match(begin):
        size = int(pointer[1])
        return f"it is a Git LFS pointer to a file of {size} bytes, not the file: run git lfs pull in its repository"
    if _PAGE.match(begin):
        what = "an HTML page" if b"html" in begin.lower() else "what a server says of an error"
        return f"it is {what}: a download that failed, or that wants a login; get the file itself"
    if begin.startswith(b"PK") and not ends_as_archive(path):
        return f"it is truncated: it begins as an archive, of whose {size} bytes the last are no index; get it again"
    return ""


def ends_as_archive(path: Path) -> bool:
    """Whether the index of a zip archive stands at a file's end: it does not where the file was cut."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # of an index that says it is one of several
        return False


def said_instead(path: Path) -> str:
    """What a server has said, in text, in place of a file that has none; empty if it is no text."""
    try:
        content = path.read_bytes() if path.stat().st_size <= _MOST_TEXT else b""
        text = content.decode().strip()
    except (OSError, ValueError):
        return ""
    if not text or (not text.isprintable() and any(ord(c) < 32 and c not in "\t\r\n" for c in text)):
        return ""
    return f"it is text that begins with {text[:60]!r}: a download that failed; get the file itself"


def explained(path: Path, reason: object) -> str:
    """Why a file cannot be read: by what it is, if that is known, else as whoever tried says."""
    return odd_kind(path) or str(reason)
