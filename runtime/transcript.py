"""What was found out about a recording, and the formats that it is written in: docs/output.md."""

import json
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from salmonrun.runtime.errors import SalmonrunError
from salmonrun.runtime.segment import BETWEEN_UTTERANCES

if TYPE_CHECKING:
    from salmonrun.runtime import Result, Segment, TranscriptInfo

_PLACES = {"start_sample", "end_sample", "window"}  # of a Segment: the JSON has seconds


@dataclass(frozen=True)
class Transcript:
    """A recording's answer, in one segment or many, or as much of it as there was before an error."""

    file: str  # as it was given
    segments: tuple[dict[str, Any], ...]  # start and end in seconds, and all else that is known of an answer
    timings: dict[str, Any]  # seconds: audio_s and total_s; those of `Timings` if it was heard at once
    notes: tuple[str, ...] = ()
    dropped_s: float = 0.0  # seconds of silence that no segment has
    error: SalmonrunError | None = None

    @property
    def text(self) -> str:
        """That of all segments."""
        return BETWEEN_UTTERANCES.join(text for segment in self.segments if (text := segment["text"].strip()))

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        error = self.error and {"type": type(self.error).__name__, "message": str(self.error)}
        return {
            "file": self.file,
            "text": self.text,
            "segments": self.segments,
            "timings": self.timings,
            "dropped_s": self.dropped_s,
            "notes": self.notes,
            "error": error,
        }

    def summary(self) -> str:
        """What people want to know beside the text, on a line."""
        timings = self.timings
        parts = [f"{timings['audio_s']:.1f} s of audio in {timings['total_s']:.2f} s"]
        if "ttft_s" in timings:
            (answer,) = self.segments
            parts.append(f"first token after {timings['ttft_s']:.2f} s")
            parts.append(f"{len(answer['token_ids'])} tokens, ended by {answer['finish_reason']}")
        else:
            parts.append(f"{len(self.segments)} segments")
        return "; ".join([", ".join(parts), *self.notes])


def of_result(file: str, result: "Result") -> Transcript:
    """Of a recording that was heard at once: one segment."""
    fields = result.as_dict()
    timings, notes = fields.pop("timings"), fields.pop("notes")
    segment = {"start": 0.0, "end": result.timings.audio_s, **fields, "notes": ()}
    return Transcript(file, (segment,), timings, notes)


def of_segments(
    file: str, segments: "Sequence[Segment]", info: "TranscriptInfo", took_s: float, error: SalmonrunError | None
) -> Transcript:
    """Of a recording that was answered about in parts."""
    parts = tuple({k: v for k, v in part.as_dict().items() if k not in _PLACES} for part in segments)
    timings = {"audio_s": info.duration_s, "total_s": took_s}
    return Transcript(file, parts, timings, tuple(info.notes), info.dropped_s, error)


def of_error(file: str, took_s: float, error: SalmonrunError) -> Transcript:
    """Of a recording about which nothing is known but why."""
    return Transcript(file, (), {"audio_s": 0.0, "total_s": took_s}, error=error)


def as_txt(transcript: Transcript) -> str:
    """A line for each segment that has text."""
    return "".join(f"{one_line(segment['text'])}\n" for segment in transcript.segments if segment["text"].strip())


def as_json(transcript: Transcript) -> str:
    """One object on a line."""
    return json.dumps(transcript.as_dict(), ensure_ascii=False) + "\n"


def as_srt(transcript: Transcript) -> str:
    """SubRip."""
    cues = (
        f"{number}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{text}\n"
        for number, (start, end, text) in enumerate(_cues(transcript), 1)
    )
    return "\n".join(cues)


def as_vtt(transcript: Transcript) -> str:
    """WebVTT (https://www.w3.org/TR/webvtt1)."""
    cues = (
        f"{_clock(start, '.')} --> {_clock(end, '.')}\n{_escaped(text)}\n" for start, end, text in _cues(transcript)
    )
    return "\n".join(["WEBVTT\n", *cues])


def as_tsv(transcript: Transcript) -> str:
    """Milliseconds and text, as openai/whisper writes them."""
    return "start\tend\ttext\n" + "".join(f"{start}\t{end}\t{text}\n" for start, end, text in _cues(transcript))


FORMATS: dict[str, Callable[[Transcript], str]] = {
    "txt": as_txt,
    "json": as_json,
    "srt": as_srt,
    "vtt": as_vtt,
    "tsv": as_tsv,
}


def one_line(text: str) -> str:
    """A text without line breaks and without characters that could steer a terminal."""
    return " ".join("".join(" " if unicodedata.category(c) == "Cc" else c for c in text).split())


def _cues(transcript: Transcript) -> Iterator[tuple[int, int, str]]:
    """Start and end in milliseconds, and the text on a line, of segments that have text."""
    for segment in transcript.segments:
        if text := one_line(segment["text"]):
            start = round(1000 * segment["start"])
            yield start, max(start + 1, round(1000 * segment["end"])), text  # a cue must not be empty


def _clock(milliseconds: int, point: str) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}{point}{rest:03}"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
