"""Questions about a recording, as chat completions through OpenAI's own client."""

import base64
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")
openai = pytest.importorskip("openai", reason="OpenAI's client is not installed")

from openai import OpenAI  # noqa: E402
from openai.types.chat import ChatCompletion, ChatCompletionChunk  # noqa: E402

from salmonrun.runtime import Engine, GenerationConfig  # noqa: E402
from tests.helpers.openai_shapes import whole  # noqa: E402

RECORDINGS = Path(__file__).parents[3] / "demo" / "recordings"
SHOPPING = RECORDINGS / "shopping.flac"
PROMPT = "Write down what is said."


def messages(recording: bytes, *texts: str) -> Any:
    data = base64.b64encode(recording).decode()
    audio = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
    return [{"role": "user", "content": [audio, *({"type": "text", "text": text} for text in texts)]}]


def test_an_answer(client: OpenAI, demo_engine: Engine) -> None:
    expected = demo_engine.generate(SHOPPING, prompt=PROMPT)
    answer = client.chat.completions.create(model="demo", messages=messages(SHOPPING.read_bytes(), PROMPT))
    whole(ChatCompletion, answer)
    assert answer.choices[0].message.content == expected.text
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage
    assert answer.usage.completion_tokens == len(expected.token_ids)
    model = demo_engine.model
    request = model.request(prompt=PROMPT, config=GenerationConfig(max_new_tokens=1))
    prompt = model.positions(request, len(model.load_audio(SHOPPING, None).pcm)) - 1
    assert answer.usage.prompt_tokens == prompt
    assert answer.usage.total_tokens == prompt + len(expected.token_ids)


def test_it_grows(client: OpenAI, demo_engine: Engine) -> None:
    pieces = list(demo_engine.generate_iter(SHOPPING, prompt=PROMPT))
    chunks = list(
        client.chat.completions.create(
            model="demo",
            messages=messages(SHOPPING.read_bytes(), PROMPT),
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    for chunk in chunks:
        whole(ChatCompletionChunk, chunk)
    first, *middle, end, usage = chunks
    assert first.choices[0].delta.role == "assistant"
    assert [chunk.choices[0].delta.content for chunk in middle] == pieces
    assert end.choices[0].finish_reason == "stop"
    assert usage.usage
    assert usage.choices == []


def test_length_stop_and_task(client: OpenAI) -> None:
    def ask(*texts: str, **fields: Any) -> Any:
        recording = messages(SHOPPING.read_bytes(), *texts)
        return client.chat.completions.create(model="demo", messages=recording, **fields).choices[0]

    assert ask(PROMPT, max_completion_tokens=3).finish_reason == "length"
    assert ask(PROMPT, stop=" candles").message.content == "add paper and"
    assert ask(extra_body={"task": "asr", "num_beams": 2}).message.content == "add paper and candles to the list"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("Who?", "0 input_audio parts; this model answers about exactly one recording"),
        ([{"type": "input_audio", "input_audio": {"data": "@", "format": "wav"}}], "is not base64"),
        ([{"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}], "is empty"),
        ([{"type": "image_url", "image_url": {"url": "x"}}], "does not match any of the expected tags"),
    ],
    ids=["no recording", "no base64", "nothing", "a picture"],
)
def test_refusals(client: OpenAI, content: Any, message: str) -> None:
    with pytest.raises(openai.BadRequestError, match=message):
        client.chat.completions.create(model="demo", messages=[{"role": "user", "content": content}])


def test_a_conversation_is_refused(client: OpenAI) -> None:
    """Its former turns would not be heard."""
    history = [{"role": "assistant", "content": "Paper."}, *messages(SHOPPING.read_bytes(), PROMPT)]
    with pytest.raises(openai.BadRequestError, match="Input should be 'system', 'developer' or 'user'"):
        client.chat.completions.create(model="demo", messages=history)
