"""Loaded by Schemathesis: files for it to send, of which it knows only that they are bytes."""

import io
from pathlib import Path

import schemathesis
import soundfile
from hypothesis import strategies as st

SHOPPING = Path(__file__).parents[2] / "demo" / "recordings" / "shopping.flac"


def recordings() -> st.SearchStrategy[bytes]:
    """Speech in several formats; a part of a file; what is none."""
    samples, rate = soundfile.read(SHOPPING)
    files = []
    for kind in ("WAV", "FLAC", "OGG"):
        file = io.BytesIO()
        soundfile.write(file, samples[: rate // 2], rate, format=kind)
        files.append(file.getvalue())
    whole = st.sampled_from(files)
    return whole | st.builds(lambda file, length: file[:length], whole, st.integers(0, 4000)) | st.binary(max_size=99)


schemathesis.openapi.media_type("application/octet-stream", recordings())
