"""What `transcribe_iter` tells on the way adds up to the segments, whatever becomes of these."""

from dataclasses import replace

import numpy as np
import pytest

from salmonrun.runtime import Engine, GenerationConfig, Segment, TranscribeConfig
from salmonrun.runtime.segment import BETWEEN_UTTERANCES
from tests.helpers.streams import VARIED, cut_at, noise

BEAMS = replace(VARIED, num_beams=3)
STOPPED = replace(VARIED, stop_strings=("e", "\u0107"))


def told(engine: Engine, generation: GenerationConfig, config: TranscribeConfig) -> tuple[list[str], list[Segment]]:
    """Pieces, and segments, which are those of `transcribe`; each comes behind its text."""
    bursts = [np.concatenate([noise(16_000 * length, length), np.zeros(20_000, np.float32)]) for length in (1, 5, 1, 2)]
    pcm = np.concatenate(bursts)
    arguments = {"sample_rate": 16000, "task": "asr", "generation": generation, "config": config}
    items, info = engine.transcribe_iter(pcm, **arguments)  # type: ignore[arg-type]
    pieces: list[str] = []
    segments: list[Segment] = []
    for item in items:
        if isinstance(item, str):
            assert item
            pieces.append(item)
        else:
            segments.append(item)
            assert "".join(pieces) == said(segments)
    assert info.finished
    assert "".join(pieces) == said(segments)
    plain, _ = engine.transcribe(pcm, **arguments)  # type: ignore[arg-type]
    assert list(plain) == segments
    return pieces, segments


def said(segments: list[Segment]) -> str:
    return BETWEEN_UTTERANCES.join(text for segment in segments if (text := segment.text.strip()))


@pytest.mark.parametrize("generation", [VARIED, BEAMS, STOPPED], ids=["greedy", "beams", "stopped"])
@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("overlap_s", [0.0, 0.5])
def test_it_adds_up(streaming_engine: Engine, generation: GenerationConfig, batch_size: int, overlap_s: float) -> None:
    """Also of windows that share speech, whose words are parted before they are told."""
    config = cut_at(window_s=2.0, overlap_s=overlap_s, vad="energy", batch_size=batch_size)
    pieces, segments = told(streaming_engine, generation, config)
    assert len(segments) > 4
    assert len(pieces) >= sum(segment.text.strip() != "" for segment in segments)
    if generation is VARIED:
        assert len(pieces) > len(segments) + 5


def test_it_adds_up_where_there_is_nothing_to_hear(demo_engine: Engine) -> None:
    """Segments that the model refuses are not told at all, not even their beginning."""
    pieces, segments = told(demo_engine, GenerationConfig(), cut_at(vad="energy"))
    assert len(pieces) >= len(segments)
