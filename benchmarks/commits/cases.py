"""What both commits are asked: every way to ask, and what may change how tokens are chosen."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.commits import recordings

Json = dict[str, Any]
KINDS = (
    "greedy",
    "varied",
    "beams",
    "sampled",
    "stop strings",
    "pieces",
    "listen",
    "questions",
    "transcribe",
    "stream",
    "8 threads",
)
GREEDY: Json = {"max_new_tokens": 48}
# A model of random weights repeats itself; where it may not, its ranking of all tokens shows.
VARIED: Json = GREEDY | {"no_repeat_ngram_size": 2, "repetition_penalty": 1.2, "min_new_tokens": 12}
BEAMS: tuple[Json, ...] = (
    GREEDY | {"num_beams": 4},
    VARIED | {"num_beams": 4, "length_penalty": 0.5, "early_stopping": True},
    GREEDY | {"num_beams": 4, "length_penalty": 2.0, "early_stopping": "never"},
    VARIED | {"num_beams": 3, "length_penalty": 0.0},
)
SAMPLED: Json = GREEDY | {"do_sample": True, "temperature": 0.9, "top_k": 40, "top_p": 0.95}
ASKS: tuple[Json, ...] = (
    {"task": "asr"},
    {"task": "caption"},
    {"task": "qa", "question": "How many people speak?"},
    {"prompt": "<Speech><SpeechHere></Speech> Which words are said?"},
    {"prompt": "Listen to this: <SpeechHere> Now say it again."},  # the text in front is no part of what is kept
)
# How tokens are chosen, and how the stream is heard.
STREAMS: dict[str, tuple[Json, Json]] = {
    "agreement": (GREEDY, {"policy": "agreement", "endpoint": {}}),
    "agreement, trusting": (VARIED, {"policy": "agreement", "endpoint": {}, "hypotheses": 2, "hold_back": 1}),
    "agreement, one utterance": (
        VARIED,
        {"policy": "agreement", "endpoint": None, "update_s": 0.4, "hypotheses": 1, "hold_back": 6},
    ),
}
BLOCK_STREAMS: dict[str, tuple[Json, Json]] = {
    "block": (GREEDY, {"policy": "block", "endpoint": {}}),
    "block, short": (
        VARIED,
        {"policy": "block", "endpoint": {}, "block_s": 0.32, "lookback_s": 3.2, "update_s": 0.3, "hypotheses": 2},
    ),
    "block, one utterance": (VARIED, {"policy": "block", "endpoint": None, "hypotheses": 1, "hold_back": 6}),
}


@dataclass(frozen=True)
class Case:
    """A request to both workers."""

    kind: str  # one of KINDS: its row in the table
    name: str
    request: Json
    stops_in: str = ""  # the case from whose first answer's middle the stop string is taken


def token_cases(folder: Path, blocks: bool, every_recording: bool) -> list[Case]:
    """Everything about a model: one that can hear in blocks is asked to, and one that understands hears more."""
    heard = [*recordings.sentences()[: None if every_recording else 3], recordings.story(folder, 11)]
    long = recordings.joined(folder, 9 if every_recording else 4, told=every_recording)
    live = recordings.joined(folder, 4 if every_recording else 2, told=False)
    return [
        *_answers(heard),
        Case("greedy", "greedy, silence", _generate(recordings.silence(folder), ASKS[0], GREEDY)),
        *_listening(heard),
        *_transcripts(long),
        *_streams(live, blocks),
        *_together(heard, live, blocks),
    ]


def _answers(heard: Sequence[Path]) -> list[Case]:
    """By every way of choosing tokens, with the prompts in turn."""
    cases = []
    for number, path in enumerate(heard):
        ask = ASKS[number % len(ASKS)]
        beams, sampled = BEAMS[number % len(BEAMS)], SAMPLED | {"seed": number}
        kinds = {"greedy": GREEDY, "varied": VARIED, "beams": beams, "sampled": sampled}
        cases += [Case(kind, f"{kind}, {path.stem}", _generate(path, ask, each)) for kind, each in kinds.items()]
        for kind, each in {"greedy": GREEDY, "beams": BEAMS[0]}.items():
            name, source = f"stop string, {kind}, {path.stem}", f"{kind}, {path.stem}"
            cases.append(Case("stop strings", name, _generate(path, ask, each), stops_in=source))
        pieces = _generate(path, ask, GREEDY) | {"do": "pieces"}
        cases.append(Case("pieces", f"pieces, {path.stem}", pieces))
        cases.append(Case("pieces", f"pieces to a stop string, {path.stem}", pieces, stops_in=f"greedy, {path.stem}"))
    return cases


def _generate(path: Path, ask: Json, config: Json) -> Json:
    return {"do": "generate", "audio": str(path), "ask": ask, "config": config}


def _listening(heard: Sequence[Path]) -> list[Case]:
    """Several asks about what was encoded once, and questions by task and by prompt."""
    cases = []
    for kind, config in {"greedy": GREEDY, "beams": BEAMS[0], "sampled": SAMPLED | {"seed": 3}}.items():
        for number, path in enumerate(heard):
            asks = [ASKS[(number + step) % len(ASKS)] for step in range(3)]
            request = {"do": "listen", "audio": str(path), "asks": asks, "config": config}
            cases.append(Case("listen", f"listen, {kind}, {path.stem}", request))
    for path in heard:
        request = {"do": "listen", "audio": str(path), "asks": [*ASKS], "config": VARIED}
        cases.append(Case("questions", f"questions, {path.stem}", request))
    return cases


def _transcripts(long: Path) -> list[Case]:
    ways = {
        "as it is": (GREEDY, {}),
        "alone": (GREEDY, {"batch_size": 1}),
        "short windows": (VARIED, {"window_s": 6.0, "batch_size": 7, "part_pause_s": 0.5}),
        "beams": (BEAMS[0], {"window_s": 8.0}),
        "sampled": (SAMPLED | {"seed": 5}, {"window_s": 8.0}),
    }
    return [
        Case(
            "transcribe",
            f"transcribe, {name}",
            {"do": "transcribe", "audio": str(long), "generation": search, "config": config},
        )
        for name, (search, config) in ways.items()
    ]


def _streams(live: Path, blocks: bool) -> list[Case]:
    return [
        Case("stream", f"stream, {name}", stream(live, config, search, ask_at_s=3.3))
        for name, (search, config) in (STREAMS | (BLOCK_STREAMS if blocks else {})).items()
    ]


def stream(live: Path, config: Json, search: Json, ask_at_s: float | None = None) -> Json:
    """A stream that comes in pieces of 70 ms, which are no multiple of anything."""
    return {
        "do": "stream",
        "audio": str(live),
        "piece_s": 0.07,
        "ask_at_s": ask_at_s,
        "stream": config,
        "generation": search,
    }


def _together(heard: Sequence[Path], live: Path, blocks: bool) -> list[Case]:
    return [
        Case("8 threads", f"8 threads, round {turn}", together(heard[turn:], live, blocks, GREEDY)) for turn in range(2)
    ]


def together(heard: Sequence[Path], live: Path, blocks: bool, search: Json) -> Json:
    """Eight requests of all kinds at once."""
    first, second = heard[0], heard[1]
    plain = GREEDY | {"max_new_tokens": search["max_new_tokens"]}
    policies = ("agreement", "block") if blocks else ("agreement", "agreement, trusting")
    requests = [
        _generate(first, ASKS[0], search),
        _generate(second, ASKS[1], search),
        _generate(first, ASKS[2], search | {"num_beams": 4}),
        _generate(second, ASKS[0], search | {"num_beams": 4}),
        _generate(first, ASKS[1], SAMPLED | search | {"seed": 1}),
        _generate(second, ASKS[3], SAMPLED | search | {"seed": 2}),
        *(stream(live, (STREAMS | BLOCK_STREAMS)[policy][1], plain) for policy in policies),
    ]
    return {"do": "together", "requests": requests}
