"""Who may see the page, and what its browser is told."""

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("gradio_client", reason="the extra demo is not installed")
httpx = pytest.importorskip("httpx", reason="the extra demo is not installed")

from websockets.exceptions import ConnectionClosed  # noqa: E402
from websockets.sync.client import connect  # noqa: E402

from salmonrun.runtime import Engine  # noqa: E402
from tests.helpers.servers import Running, serving  # noqa: E402
from tests.helpers.visitors import SAID, SHOPPING, Visit, ask  # noqa: E402

KEY = "sk-secret"


@pytest.fixture(scope="module")
def guarded(demo_engine: Engine) -> Iterator[Running]:
    with serving(demo_engine, page=True, api_keys=("other", KEY), max_body_mib=1) as server:
        yield server


def get(server: Running, path: str, **options: Any) -> Any:
    return httpx.get(server.url + path, **options)


def test_without_keys_the_front_leads_to_the_page(paged: Running) -> None:
    answer = get(paged, "/", follow_redirects=True)
    assert (answer.status_code, answer.url.path.rstrip("/")) == (200, "/page")
    assert "salmonrun" in answer.text


def test_nothing_comes_from_elsewhere(paged: Running) -> None:
    policy = get(paged, "/page", follow_redirects=True).headers["content-security-policy"]
    assert "http" not in policy
    assert "default-src 'self'" in policy


def test_with_keys_the_page_asks_for_one(guarded: Running) -> None:
    answer = get(guarded, "/page", follow_redirects=True)
    assert (answer.status_code, answer.url.path) == (200, "/page/login")
    assert "gradio_config" not in answer.text
    with httpx.Client(base_url=guarded.url, follow_redirects=True) as browser:
        wrong = browser.post("/page/login", data={"key": "sk-wrong"})
        assert (wrong.status_code, "this API key is not known" in wrong.text) == (401, True)
        right = browser.post("/page/login", data={"key": KEY})
        assert (right.status_code, right.url.path.rstrip("/")) == (200, "/page")
        assert "gradio_config" in right.text
        cookie = right.history[0].headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=lax" in cookie
        assert KEY not in cookie


@pytest.mark.parametrize(
    "path", ["/page/config", "/page/gradio_api/info", "/page/gradio_api/queue/data?session_hash=x"]
)
def test_all_of_it_is_behind_the_key(guarded: Running, path: str) -> None:
    assert get(guarded, path).status_code == 401
    assert get(guarded, path, headers={"Cookie": "salmonrun_page=guess"}).status_code == 401


def test_uploads_are_behind_the_key_and_bounded(guarded: Running) -> None:
    upload = f"{guarded.url}/page/gradio_api/upload"
    assert httpx.post(upload, files={"files": b"x"}).status_code == 401
    headers = {"Authorization": f"Bearer {KEY}"}
    assert httpx.post(upload, files={"files": b"x"}, headers=headers).status_code == 200
    assert httpx.post(upload, files={"files": b"x" * 2**21}, headers=headers).status_code == 413


def test_programs_send_the_key_as_ever(visit: Visit, guarded: Running) -> None:
    assert SAID in ask(visit(guarded, headers={"Authorization": f"Bearer {KEY}"}), SHOPPING, "asr")


def test_live_text_is_behind_the_key(guarded: Running) -> None:
    address = f"ws://127.0.0.1:{guarded.port}/page/live?rate=16000"
    with connect(address) as socket:
        assert "an API key is missing" in str(socket.recv(timeout=30))
        with pytest.raises(ConnectionClosed):
            socket.recv(timeout=30)
    answer = httpx.post(f"{guarded.url}/page/login", data={"key": KEY})
    with connect(address, additional_headers={"Cookie": answer.headers["set-cookie"].partition(";")[0]}) as socket:
        assert "session.created" in str(socket.recv(timeout=30))


def test_pages_from_elsewhere_may_not_ask(paged: Running) -> None:
    foreign = get(paged, "/page/config", headers={"Origin": "https://elsewhere.example"})
    assert (foreign.status_code, foreign.json()["error"]["code"]) == (403, "foreign_origin")
    assert get(paged, "/page/config", headers={"Origin": paged.url}).status_code == 200


def test_without_the_option_there_is_no_page(demo_engine: Engine) -> None:
    with serving(demo_engine) as server:
        assert get(server, "/page").status_code == 404
        assert get(server, "/page/login").status_code == 404
