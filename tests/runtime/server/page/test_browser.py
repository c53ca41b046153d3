"""The page in Chromium, as people use it: a mouse, a microphone, a phone, and no network beside the server."""

import re
from collections.abc import Iterator
from pathlib import Path
from shutil import which
from typing import Any

import numpy as np
import pytest
import soundfile

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("gradio_client", reason="the extra demo is not installed")
pytest.importorskip("playwright", reason="Playwright is not installed: make page-test")

from playwright.sync_api import Browser, Page, Request, expect, sync_playwright

from salmonrun.runtime import Engine
from tests.helpers.servers import Running, serving
from tests.helpers.visitors import RECORDINGS, SAID, SHOPPING, eventually, metric

pytestmark = pytest.mark.browser

PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True, "device_scale_factor": 2}
PATIENCE_MS = 60_000.0


# What the microphone hears first; of `SHOPPING` the demo says nothing before it is over (tests/test_demo.py).
SPOKEN = "make the living room nine degrees warmer"


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the microphone hears, again and again: two sentences, each with silence behind it; 48 kHz."""
    path = tmp_path_factory.mktemp("microphone") / "spoken.wav"
    parts = [
        np.append(soundfile.read(RECORDINGS / f"{name}.flac")[0], np.zeros(24_000)) for name in ("heating", "wake")
    ]
    soundfile.write(path, np.concatenate(parts), 16_000)
    return path


@pytest.fixture(scope="module")
def chromium(spoken: Path) -> Iterator[Browser]:
    arguments = ["--no-sandbox", "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=which("chromium"), args=[*arguments, f"--use-file-for-fake-audio-capture={spoken}"]
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def both(demo_engine: Engine, tiny_engine: Engine) -> Iterator[Running]:
    with serving(demo_engine, beside=tiny_engine, page=True) as server:
        yield server


def opened(browser: Browser, server: Running, **options: Any) -> tuple[Page, list[Request]]:
    """The page, and all that it asks for from now on."""
    page = browser.new_context(**options).new_page()
    page.set_default_timeout(PATIENCE_MS)
    asked: list[Request] = []
    page.on("request", lambda request: asked.append(request))
    page.goto(f"{server.url}/page")
    page.locator("#ask-button").wait_for()
    return page, asked


def upload(page: Page, recording: Path) -> None:
    page.locator("input[type=file]").first.set_input_files(recording)
    page.get_by_text("0:00").first.wait_for()


def ask(page: Page, answers: int) -> str:
    """Ask, until there are so many; what is to be read of the newest."""
    page.locator("#ask-button").click()
    expect(page.locator("#answers .sr-done")).to_have_count(answers, timeout=PATIENCE_MS)
    return page.locator("#answers .sr-card").first.inner_text()


def choose(page: Page, task: str) -> None:
    page.get_by_label("Task").first.click()
    page.get_by_role("option", name=task).click()


def fits(page: Page) -> bool:
    """Whether nothing stands beyond the edge of the screen."""
    return bool(page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"))


def test_upload_and_ask_twice(chromium: Browser, paged: Running) -> None:
    page, asked = opened(chromium, paged)
    upload(page, SHOPPING)
    first = ask(page, 1)
    assert SAID in first
    assert "encoders" in first
    choose(page, "qa")
    page.get_by_label("Question").first.fill("What can be heard?")
    second = ask(page, 2)
    assert "qa: What can be heard?" in second
    assert "heard before" in second
    assert "encoders" not in second
    elsewhere = [one.url for one in asked if not one.url.startswith((f"{paged.url}/", "data:", "blob:"))]
    assert elsewhere == []
    page.context.close()
    assert eventually(lambda: metric(paged, "kv_cache_usage_perc") == 0)


def test_the_browser_would_refuse_what_is_elsewhere(chromium: Browser, paged: Running) -> None:
    page, _ = opened(chromium, paged)
    told: list[str] = []
    page.on("console", lambda message: told.append(message.text))
    page.evaluate("fetch('https://fonts.googleapis.com/css').catch(() => 0)")
    assert any("Content Security Policy" in text for text in told)
    page.context.close()


def test_a_recording_by_the_microphone(chromium: Browser, paged: Running) -> None:
    page, _ = opened(chromium, paged)
    page.get_by_label("Record audio").first.click()
    page.get_by_role("button", name="Record", exact=True).first.click()
    page.wait_for_timeout(4500)
    page.get_by_role("button", name="Stop", exact=True).first.click()
    page.get_by_text("0:00").first.wait_for()
    said = ask(page, 1)
    assert set(SPOKEN.split()) & set(said.split())
    assert re.search(r"for [4-6]\.\d s of audio", said)
    page.context.close()


def test_live_text_while_somebody_speaks(chromium: Browser, paged: Running) -> None:
    page, _ = opened(chromium, paged)
    page.get_by_role("tab", name="Live").click()
    page.evaluate(
        """() => {
            window.tails = [];
            const tail = document.querySelector(".sr-live-tail");
            new MutationObserver(() => window.tails.push(tail.textContent)).observe(tail, { childList: true });
        }"""
    )
    page.locator(".sr-live-button").click()
    expect(page.locator(".sr-live-stable")).to_contain_text(SPOKEN, timeout=PATIENCE_MS)
    tails = page.evaluate("window.tails")
    assert any(text.strip() for text in tails)
    grey, black = (
        page.locator(f".sr-live-{name}").evaluate("(it) => getComputedStyle(it).color") for name in ("tail", "stable")
    )
    assert grey != black
    page.locator(".sr-live-button").click()
    expect(page.locator(".sr-live-state")).to_have_text("Speak again when you like.", timeout=PATIENCE_MS)
    assert eventually(lambda: metric(paged, "num_realtime_streams") == 0)
    expect(page.locator(".sr-live-problem")).to_be_hidden()
    page.context.close()


def test_a_live_stream_that_is_refused_says_why(chromium: Browser, demo_engine: Engine) -> None:
    with serving(demo_engine, page=True, max_streams=0) as server:
        page, _ = opened(chromium, server)
        page.get_by_role("tab", name="Live").click()
        page.locator(".sr-live-button").click()
        expect(page.locator(".sr-live-problem")).to_contain_text("0 live streams are open, of 0", timeout=PATIENCE_MS)
        page.context.close()


def test_errors_are_shown(chromium: Browser, paged: Running, tmp_path: Path) -> None:
    page, _ = opened(chromium, paged)
    page.locator("#ask-button").click()
    expect(page.locator("#answers [role=alert]")).to_contain_text("there is no recording yet", timeout=PATIENCE_MS)
    soundfile.write(tmp_path / "long.wav", np.random.default_rng(0).normal(0, 0.1, 16_000 * 31), 16_000)
    upload(page, tmp_path / "long.wav")
    page.locator("#ask-button").click()
    expect(page.locator("#answers [role=alert]").first).to_contain_text(
        "the audio is 31.00 s long", timeout=PATIENCE_MS
    )
    page.context.close()


def test_a_long_recording_and_its_files(chromium: Browser, paged: Running, tmp_path: Path) -> None:
    pcm = np.append(soundfile.read(SHOPPING)[0], np.zeros(16_000))
    soundfile.write(tmp_path / "talk.wav", np.tile(pcm, 12), 16_000)
    page, _ = opened(chromium, paged)
    page.get_by_role("tab", name="Long recordings").click()
    page.locator("input[type=file]").last.set_input_files(tmp_path / "talk.wav")
    page.wait_for_timeout(1500)
    page.locator("#long-button").click()
    page.locator("#long-files").get_by_text("talk").first.wait_for()
    assert page.locator("#talk").inner_text().count(SAID) >= 10
    with page.expect_download() as download:
        page.locator("#long-files a").first.click()
    assert download.value.path().read_text().count(SAID) >= 10
    page.context.close()


@pytest.mark.parametrize("options", [{}, PHONE], ids=["desk", "phone"])
def test_two_bundles_side_by_side(chromium: Browser, both: Running, options: dict[str, Any]) -> None:
    page, _ = opened(chromium, both, **options)
    upload(page, SHOPPING)
    said = ask(page, 2)
    assert said.count("first token after") == 2
    assert re.search(r"demo [\d.]+ MiB(.|\n)*tiny [\d.]+ MiB", said)
    left, right = (page.locator(".sr-sides > div").nth(place).bounding_box() for place in (0, 1))
    assert left
    assert right
    beside = right["x"] >= left["x"] + left["width"]
    below = right["y"] >= left["y"] + left["height"]
    assert (beside, below) == ((False, True) if options else (True, False))
    assert fits(page)
    page.context.close()


@pytest.mark.parametrize("tab", ["Ask", "Live", "Long recordings"])
def test_everything_fits_on_a_phone(chromium: Browser, paged: Running, tab: str) -> None:
    page, _ = opened(chromium, paged, **PHONE)
    page.get_by_role("tab", name=tab).click()
    assert fits(page)
    page.context.close()


def test_with_keys_people_show_one_and_go_on(chromium: Browser, demo_engine: Engine) -> None:
    with serving(demo_engine, page=True, api_keys=("sk-secret",)) as server:
        page = chromium.new_context().new_page()
        page.goto(server.url)
        page.get_by_label("API key").fill("sk-wrong")
        page.get_by_role("button").click()
        expect(page.locator(".problem")).to_have_text("this API key is not known")
        page.get_by_label("API key").fill("sk-secret")
        page.get_by_role("button").click()
        page.locator("#ask-button").wait_for(timeout=PATIENCE_MS)
        upload(page, SHOPPING)
        assert SAID in ask(page, 1)
        page.get_by_role("tab", name="Live").click()
        page.locator(".sr-live-button").click()
        expect(page.locator(".sr-live-stable")).to_contain_text(SPOKEN, timeout=PATIENCE_MS)
        page.context.close()
