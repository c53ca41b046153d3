"""What the machine has run out of is the fault of no file: `resources` says so, wherever it shows first."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from salmonrun.runtime.errors import ResourceError

_ERRNOS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT}
# How Python, ONNX Runtime's arenas and loader, the C++ library and the system's own loader say it, who have no number.
_WORDS = (
    "failed to map segment from shared object",
    "annot allocate memory",  # at the beginning of a sentence or not
    "can't allocate memory",
    "can't start new thread",
    "Failed to allocate memory",
    "bad allocation",
    "std::bad_alloc",
    "out of memory",
    *(f"system error number {number}" for number in sorted(_ERRNOS)),
)


def exhausted(error: BaseException | None) -> str:
    """What was there no more of, where an error, or one that it was raised from, came of that; empty: it did not."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _ERRNOS:
            return os.strerror(error.errno) + (f": {error.filename!r}" if error.filename else "")
        if isinstance(error, MemoryError):
            return os.strerror(errno.ENOMEM)
        said = " ".join(str(error).split())
        if any(words in said for words in _WORDS):
            return said[:500]
        error = error.__cause__
    return ""


@contextmanager
def resources(work: str) -> Iterator[None]:
    """Errors that came of what the machine has not, whatever they are, as one that says what it was needed for.

    Raises:
        ResourceError: there was no memory, or no files, threads or disk space were left.
    """
    try:
        yield
    except ResourceError:
        raise
    except Exception as error:
        if reason := exhausted(error):
            raise ResourceError(
                f"{work}: {reason}. This machine, or a limit of this process (ulimit -a), has no more of it: free "
                "some, or raise the limit"
            ) from error
        raise
