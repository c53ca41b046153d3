"""What a file is that is not what its name says: a pointer, a page, or a part of it."""

import re
import zipfile
from pathlib import Path

_LFS = re.compile(rb"version https://git-lfs\.github\.com/spec/.*?\nsize (\d{1,18})", re.DOTALL)
_PAGE = re.compile(rb"\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)?<(?:!doctype\s+html|html)", re.IGNORECASE | re.DOTALL)


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
        return "it is an HTML page: a download that failed, or that wants a login; get the file itself"
    if begin.startswith(b"PK") and not zipfile.is_zipfile(path):
        return f"it is truncated: it begins as an archive, of whose {size} bytes the last are no index; get it again"
    return ""


def explained(path: Path, reason: object) -> str:
    """Why a file cannot be read: by what it is, if that is known, else as whoever tried says."""
    return odd_kind(path) or str(reason)
