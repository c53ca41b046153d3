"""The page as Gradio's own client sees it: answers, recordings that are kept, what is refused, its end."""

import json
import re
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("gradio_client", reason="the extra demo is not installed")

from gradio_client.exceptions import AppError
from websockets.sync.client import connect

from salmonrun.runtime import Engine, GenerationConfig
from tests.helpers.servers import Running, serving
from tests.helpers.streams import before_steps
from tests.helpers.visitors import (
    OWN,
    RECORDINGS,
    SAID,
    SHOPPING,
    Visit,
    ask,
    asking,
    eventually,
    leave,
    metric,
    readable,
)
from tests.runtime.server.test_realtime import appends, pcm16, send

QUESTION = "What can be heard?"


@pytest.mark.parametrize(
    ("task", "text", "asked"),
    [
        ("asr", "", {"task": "asr"}),
        ("qa", QUESTION, {"task": "qa", "question": QUESTION}),
        (OWN, "Say in one sentence what can be heard.", {"prompt": "Say in one sentence what can be heard."}),
    ],
)
def test_answers_are_those_of_the_engine(
    visit: Visit, paged: Running, demo_engine: Engine, task: str, text: str, asked: dict[str, str]
) -> None:
    recording = RECORDINGS / "digits_and_siren.flac"
    result = demo_engine.generate(recording, config=GenerationConfig(num_beams=2), **asked)  # type: ignore[arg-type]
    said = ask(visit(paged), recording, task, text, beams=2)
    assert result.text in said
    assert f"{len(result.token_ids)} tokens" in said
    assert "2 beams, at most 100 tokens" in said


def test_a_second_question_does_not_hear_the_recording_again(visit: Visit, paged: Running) -> None:
    client = visit(paged)
    first = ask(client, SHOPPING, "asr")
    assert re.search(r"audio [\d.]+ m?s encoders [\d.]+ m?s prompt [\d.]+ m?s decode [\d.]+ m?s", first)
    second = ask(client, SHOPPING, "qa", QUESTION)
    newest, _, before = second.partition("asr shopping.flac")
    assert "heard before prompt" in newest
    assert "encoders" not in newest
    assert before.strip() == first.partition("asr shopping.flac")[2].strip()
    other = ask(client, RECORDINGS / "bell.flac", "asr").partition("qa:")[0]
    assert "encoders" in other


def test_recordings_of_who_has_left_are_forgotten(visit: Visit, paged: Running) -> None:
    assert eventually(lambda: metric(paged, "kv_cache_usage_perc") == 0)
    client = visit(paged)
    ask(client, SHOPPING, "asr")
    assert metric(paged, "kv_cache_usage_perc") > 0
    leave(paged, client)
    assert eventually(lambda: metric(paged, "kv_cache_usage_perc") == 0)


def test_the_answer_grows(visit: Visit, paged: Running, demo_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    before_steps(monkeypatch, demo_engine, lambda: time.sleep(0.1))
    job = asking(visit(paged), SHOPPING, "caption")
    final = readable(job.result(timeout=60))
    seen = [readable(html) for html in job.outputs()]
    answer = demo_engine.generate(SHOPPING, task="caption").text
    assert answer in final
    grown = [text for text in seen if answer not in text and answer.split()[0] in text.partition("tokens")[2]]
    assert len(grown) >= 2
    assert "waits" in seen[0]


def test_an_answer_can_be_stopped(
    visit: Visit, paged: Running, demo_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, client = threading.Event(), visit(paged)

    def slowly() -> None:
        begun.set()
        time.sleep(0.2)

    before_steps(monkeypatch, demo_engine, slowly)
    job = asking(client, SHOPPING, "caption")
    assert begun.wait(30)
    client.predict(api_name="/stop")
    said = readable(job.result(timeout=60))
    assert "(stopped)" in said
    assert demo_engine.generate(SHOPPING, task="caption").text not in said


def test_who_leaves_stops_the_work(
    visit: Visit, paged: Running, demo_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, steps = threading.Event(), [0]

    def slowly() -> None:
        begun.set()
        steps[0] += 1
        time.sleep(0.3)

    before_steps(monkeypatch, demo_engine, slowly)
    client = visit(paged)
    asking(client, SHOPPING, OWN, "Say in one sentence what can be heard.")
    assert begun.wait(30)
    leave(paged, client)
    assert eventually(lambda: metric(paged, "num_requests_running") == 0)
    monkeypatch.undo()
    assert steps[0] < len(demo_engine.generate(SHOPPING, task="caption").token_ids) + 2


def test_errors_are_our_messages(visit: Visit, paged: Running, tmp_path: Path) -> None:
    client = visit(paged)
    (tmp_path / "talk.wav").write_text("no sound at all")
    assert "there is no recording yet: upload a file" in ask(client, None, "asr")
    said = ask(client, tmp_path / "talk.wav", "asr")
    assert "is not audio that libsndfile can read" in said
    assert str(tmp_path) not in said
    assert "salmonrun-page-" not in said
    assert "the prompt is empty; write an instruction such as" in ask(client, SHOPPING, OWN, " ")
    soundfile.write(tmp_path / "long.wav", np.random.default_rng(0).normal(0, 0.1, 16_000 * 31), 16_000)
    assert "the audio is 31.00 s long; this model hears 30 s at once: Long recordings, above, takes any length" in ask(
        client, tmp_path / "long.wav", "asr"
    )
    assert SAID in ask(client, SHOPPING, "asr")  # and goes on


def test_what_a_model_says_is_text_and_no_markup(visit: Visit, paged: Running) -> None:
    job = asking(visit(paged), SHOPPING, OWN, "<img src=x onerror=alert(1)>")
    html = job.result(timeout=60)
    assert "<img" not in html
    assert "&lt;img src=x onerror=alert(1)&gt;" in html


def test_long_recordings_have_segments_and_files(
    visit: Visit, paged: Running, demo_engine: Engine, tmp_path: Path
) -> None:
    pause = np.zeros(16_000)
    parts = [np.append(soundfile.read(RECORDINGS / f"{name}.flac")[0], pause) for name in ("shopping", "wake")]
    soundfile.write(tmp_path / "talk.wav", np.concatenate(parts * 6), 16_000)
    segments, info = demo_engine.transcribe(tmp_path / "talk.wav")
    texts = [segment.text for segment in segments]
    assert info.duration_s > 30
    from gradio_client import handle_file

    job = visit(paged).submit(handle_file(tmp_path / "talk.wav"), "asr", "", 1, 100, api_name="/transcribe")
    html, files = job.result(timeout=120)
    assert html.count("<tr>") == len(texts)
    assert readable(html).count(SAID) == sum(SAID in text for text in texts) > 0
    paths = files["value"] if isinstance(files, dict) else files
    written = {Path(path).suffix: Path(path).read_text() for path in paths}
    assert written[".txt"].splitlines() == texts
    assert written[".srt"].startswith("1\n00:00:0")
    assert written[".vtt"].startswith("WEBVTT")


def test_two_bundles_answer_side_by_side(visit: Visit, demo_engine: Engine, tiny_engine: Engine) -> None:
    with serving(demo_engine, beside=tiny_engine, page=True) as server:
        client = visit(server)
        said = ask(client, SHOPPING, "asr", tokens=20)
        other = tiny_engine.generate(SHOPPING, task="asr", config=GenerationConfig(max_new_tokens=20))
        assert SAID in said
        assert f"{len(other.token_ids)} tokens" in said
        assert said.count("encoders") == 2
        assert re.search(r"demo [\d.]+ MiB .* tiny [\d.]+ MiB", said), said
        refused = ask(client, SHOPPING, "qa", QUESTION, tokens=20).partition("asr shopping")[0]
        assert refused.count("heard before") == (2 if "qa" in tiny_engine.tasks else 1)


def test_visitors_wait_in_the_line_of_requests(
    visit: Visit, demo_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def held() -> None:
        begun.set()
        go_on.wait(30)

    with serving(demo_engine, page=True, max_running=1, max_waiting=0) as server:
        before_steps(monkeypatch, demo_engine, held)
        first = asking(visit(server), SHOPPING, "caption")
        assert begun.wait(30)
        assert metric(server, "num_requests_running") == 1
        said = ask(visit(server), SHOPPING, "asr")
        go_on.set()
        assert "1 requests are being answered and 0 wait, the most: ask again later" in said
        assert "first token after" in readable(first.result(timeout=60))


def test_a_question_is_a_span_with_its_stages(visit: Visit, demo_engine: Engine) -> None:
    sdk = pytest.importorskip("opentelemetry.sdk.trace", reason="the extra otel is not installed")
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), sdk.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with serving(demo_engine, spans=provider, page=True) as server:
        assert SAID in ask(visit(server), SHOPPING, "asr")
        assert eventually(lambda: any(span.name == "page" for span in exporter.get_finished_spans()))
    spans = exporter.get_finished_spans()
    (page,) = (span for span in spans if span.name == "page")
    assert page.context
    children = {span.name for span in spans if span.parent and span.parent.span_id == page.context.span_id}
    assert {"queue", "audio", "whisper", "qformer", "prefill", "decode"} <= children
    assert not any("candles" in str(span.to_json()) for span in spans)


def test_memory_that_is_kept_is_given_to_who_needs_it(visit: Visit, demo_bundle: Path) -> None:
    from salmonrun.runtime.config import Limits

    with Engine.load(demo_bundle, limits=Limits(max_cache_mib=1)) as engine, serving(engine, page=True) as server:
        clients = [visit(server) for _ in range(12)]
        for client in clients:
            assert SAID in ask(client, SHOPPING, "asr", tokens=60)
        assert metric(server, "kv_cache_usage_perc") <= 1


def test_open_pages_do_not_keep_a_server_from_ending(visit: Visit, demo_engine: Engine) -> None:
    with serving(demo_engine, page=True, drain_s=30.0) as server:
        assert SAID in ask(visit(server), SHOPPING, "asr")
        started = time.monotonic()
        server.server.drain()
        server.thread.join(30)
    assert time.monotonic() - started < 10


def test_addresses_are_not_fetched(visit: Visit, paged: Running) -> None:
    file = {"path": f"{paged.url}/health", "meta": {"_type": "gradio.FileData"}}
    with pytest.raises(AppError, match="a recording is a file, and not an address: upload it"):
        visit(paged).predict(file, "asr", "", 1, 100, api_name="/ask")


def test_live_text_has_its_unstable_tail(paged: Running) -> None:
    pcm = np.append(soundfile.read(SHOPPING)[0], np.zeros(16_000))
    with connect(f"ws://127.0.0.1:{paged.port}/page/live?rate=44100") as socket:
        send(socket, *appends(pcm16(pcm, 44_100)))
        told: list[dict[str, Any]] = []
        while not told or not told[-1]["type"].endswith("transcription.completed"):
            told.append(json.loads(socket.recv(timeout=30)))
    assert told[-1]["transcript"] == SAID
    assert any(event["type"].endswith(".partial") and event["text"] for event in told)


@pytest.mark.parametrize(
    ("rate", "max_streams", "code"),
    [(100, 8, "invalid_value"), (48_000, 0, "realtime_capacity_exceeded")],
)
def test_live_streams_that_are_refused_are_told_why(
    demo_engine: Engine, rate: int, max_streams: int, code: str
) -> None:
    with (
        serving(demo_engine, page=True, max_streams=max_streams) as server,
        connect(f"ws://127.0.0.1:{server.port}/page/live?rate={rate}") as socket,
    ):
        assert json.loads(socket.recv(timeout=30))["error"]["code"] == code
