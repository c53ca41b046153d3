"""Transcriptions through OpenAI's own client: what the engine says, in OpenAI's words."""

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile

pytest.importorskip("fastapi", reason="the extra serve is not installed")
openai = pytest.importorskip("openai", reason="OpenAI's client is not installed")

from openai import OpenAI  # noqa: E402
from openai.types.audio import (  # noqa: E402
    Transcription,
    TranscriptionTextDeltaEvent,
    TranscriptionTextDoneEvent,
    TranscriptionVerbose,
)

from salmonrun.runtime import Engine  # noqa: E402
from tests.helpers.openai_shapes import whole  # noqa: E402
from tests.helpers.servers import Running, serving  # noqa: E402

RECORDINGS = Path(__file__).parents[3] / "demo" / "recordings"
SHOPPING = RECORDINGS / "shopping.flac"
SAID = "add paper and candles to the list"


@pytest.fixture(scope="module")
def long() -> bytes:
    """A minute in which three sentences are said again and again."""
    names = ("shopping", "heating", "wake")
    pcm = [np.append(soundfile.read(RECORDINGS / f"{name}.flac")[0], np.zeros(16_000)) for name in names]
    file = io.BytesIO()
    soundfile.write(file, np.concatenate(pcm * 6)[: 60 * 16_000], 16_000, format="WAV")
    return file.getvalue()


def test_json(client: OpenAI) -> None:
    answer = whole(Transcription, client.audio.transcriptions.create(file=SHOPPING, model="demo"))
    assert answer.text == SAID
    assert answer.usage
    assert answer.usage.type == "duration"
    assert answer.usage.seconds == pytest.approx(soundfile.info(SHOPPING).duration)


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("text", f"{SAID}\n"),
        ("srt", f"1\n00:00:00,000 --> 00:00:02,383\n{SAID}\n"),
        ("vtt", f"WEBVTT\n\n00:00:00.000 --> 00:00:02.383\n{SAID}\n"),
    ],
)
def test_texts(client: OpenAI, form: str, expected: str) -> None:
    answer = client.audio.transcriptions.create(file=SHOPPING, model="demo", response_format=form)  # type: ignore[call-overload]
    assert answer == expected


def test_any_length(client: OpenAI, demo_engine: Engine, long: bytes) -> None:
    segments, _ = demo_engine.transcribe(long)
    expected = list(segments)
    assert len(expected) > 2
    answer = client.audio.transcriptions.create(
        file=long,
        model="demo",
        response_format="verbose_json",
        language="en",
        timestamp_granularities=["segment"],
    )
    whole(TranscriptionVerbose, answer, {"task", "notes"})
    assert (answer.language, answer.duration) == ("en", 60.0)
    assert answer.segments
    assert [(one.start, one.end, one.text, one.tokens, one.avg_logprob) for one in answer.segments] == [
        (one.start, one.end, one.text, one.token_ids, one.score) for one in expected
    ]
    assert answer.text == "\n".join(one.text.strip() for one in expected if one.text.strip())


def test_deltas_add_up(client: OpenAI, long: bytes) -> None:
    events = list(client.audio.transcriptions.create(file=long, model="demo", stream=True))
    *deltas, done = events
    assert len(deltas) > 2 * len(client.audio.transcriptions.create(file=long, model="demo").text.splitlines())
    for event in deltas:
        whole(TranscriptionTextDeltaEvent, event)
    whole(TranscriptionTextDoneEvent, done)
    assert isinstance(done, TranscriptionTextDoneEvent)
    assert "".join(event.delta for event in deltas if isinstance(event, TranscriptionTextDeltaEvent)) == done.text


def test_our_own_fields(client: OpenAI, demo_engine: Engine) -> None:
    """Tasks, instructions, beams and sampling."""

    file = RECORDINGS / "digits_and_siren.flac"

    def ask(**fields: object) -> str:
        return client.audio.transcriptions.create(file=file, model="demo", extra_body=fields).text

    segments, _ = demo_engine.transcribe(file, task="caption")
    caption = "\n".join(segment.text for segment in segments)
    assert ask(task="caption") == caption != ask()
    prompt = demo_engine.bundle.manifest.prompt.tasks["caption"][0]
    assert ask(prompt=prompt, num_beams=2)
    sampled = [ask(task="caption", temperature=2.0, seed=seed) for seed in (1, 1, 2, 3, 4, 5)]
    assert sampled[0] == sampled[1]
    assert len(set(sampled)) > 1


@pytest.mark.filterwarnings("ignore:deprecated")  # by OpenAI, in its client
def test_translations_are_a_task_or_an_instruction(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="unknown task 'translation'; this model has prompts for: asr"):
        client.audio.translations.create(file=SHOPPING, model="demo")
    answer = client.audio.translations.create(file=SHOPPING, model="demo", prompt="Write down what is said.")
    assert answer.text == SAID


@pytest.mark.parametrize(
    ("fields", "status", "code", "message"),
    [
        ({"file": b"no audio"}, 400, "invalid_audio", "not audio that libsndfile can read"),
        ({"model": "whisper-1"}, 404, "model_not_found", "'whisper-1' is not served here; known: demo"),
        ({"response_format": "diarized_json"}, 400, "invalid_request", "response_format: Input should be 'json'"),
        ({"temperature": 3.0}, 400, "invalid_request", "temperature: Input should be less than or equal to 2"),
        ({"timestamp_granularities": ["word"]}, 400, "invalid_request", "Input should be 'segment'"),
        ({"extra_body": {"num_beams": 17}}, 400, "invalid_value", "num_beams is 17, the limit is 16"),
        ({"extra_body": {"max_new_tokens": 5000}}, 400, "context_length_exceeded", "the KV cache has 2048"),
        ({"extra_body": {"task": "sing"}}, 400, "unknown_task", "unknown task 'sing'"),
        ({"extra_body": {"task": "qa"}}, 400, "invalid_prompt", "it needs question="),
        ({"extra_body": {"volume": "11"}}, 400, "invalid_request", "volume: Extra inputs are not permitted"),
    ],
    ids=str,
)
def test_refusals(client: OpenAI, fields: dict[str, object], status: int, code: str, message: str) -> None:
    given: dict[str, object] = {"file": SHOPPING, "model": "demo", **fields}
    with pytest.raises(openai.APIStatusError, match=message) as refused:
        client.audio.transcriptions.create(**given)  # type: ignore[call-overload]
    assert (refused.value.status_code, refused.value.code) == (status, code)
    assert refused.value.type == "invalid_request_error"
    assert refused.value.request_id


def test_limits_of_size_and_length(demo_engine: Engine, long: bytes) -> None:
    with serving(demo_engine, max_body_mib=1, max_audio_s=10.0) as running:
        client = OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)
        with pytest.raises(openai.APIStatusError, match="the body has more than 1 MiB") as large:
            client.audio.transcriptions.create(file=long, model="demo")
        flac = io.BytesIO()
        soundfile.write(flac, np.zeros(11 * 16_000), 16_000, format="FLAC")
        with pytest.raises(openai.APIStatusError, match="has 11 s, the limit is 10 s") as slow:
            client.audio.transcriptions.create(file=flac.getvalue(), model="demo")
        assert {large.value.status_code, slow.value.status_code} == {413}
        assert client.audio.transcriptions.create(file=SHOPPING, model="demo").text == SAID


def test_damaged_in_the_middle(client: OpenAI, server: Running) -> None:
    """What was understood before is streamed; then there is an error, and no text that looks whole."""
    pcm = np.tile(np.append(soundfile.read(SHOPPING)[0], np.zeros(16_000)), 20)
    file = io.BytesIO()
    soundfile.write(file, pcm, 16_000, format="WAV", subtype="FLOAT")
    data = bytearray(file.getvalue())
    data[-4000:] = np.full(1000, np.nan, np.float32).tobytes()
    asked = {"file": bytes(data), "model": "demo"}
    events = iter(client.audio.transcriptions.create(**asked, stream=True))  # type: ignore[call-overload]
    assert next(events).type == "transcript.text.delta"
    with pytest.raises(openai.APIError, match="finite"):
        list(events)
    with pytest.raises(openai.BadRequestError, match="finite"):
        client.audio.transcriptions.create(**asked)  # type: ignore[call-overload]
