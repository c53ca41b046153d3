"""Who visits the page without a browser: Gradio's own client."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import unescape
from pathlib import Path
from typing import Any, Protocol
from urllib.request import urlopen

import httpx
from gradio_client import Client, handle_file

from tests.helpers.servers import Running

RECORDINGS = Path(__file__).parents[2] / "demo" / "recordings"
SHOPPING = RECORDINGS / "shopping.flac"
SAID = "add paper and candles to the list"
OWN = "own instruction"


class Visit(Protocol):
    """Opens a page."""

    def __call__(self, server: Running, **options: Any) -> Client: ...


@contextmanager
def visiting() -> Iterator[Visit]:
    """Pages that are opened are closed when the context ends."""
    opened: list[tuple[Running, Client]] = []

    def visit(server: Running, **options: Any) -> Client:
        client = Client(f"{server.url}/page", verbose=False, analytics_enabled=False, **options)
        opened.append((server, client))
        return client

    try:
        yield visit
    finally:
        for server, client in opened:
            if server.thread.is_alive():
                leave(server, client)
            client.close()


def leave(server: Running, client: Client) -> None:
    """As a browser does whose page is closed; Gradio's client itself takes a quarter of a minute to be gone."""
    heart_beat = f"{server.url}/page/gradio_api/heartbeat/{client.session_hash}"
    with httpx.stream("GET", heart_beat, headers=client.headers, timeout=60) as heart:
        next(heart.iter_lines())


def asking(client: Client, recording: Path | None, task: str, text: str = "", beams: int = 1, tokens: int = 100) -> Any:
    """The job of a question; its outputs are the page's HTML as it grows."""
    return client.submit(recording and handle_file(recording), task, text, beams, tokens, api_name="/ask")


def ask(client: Client, recording: Path | None, task: str, text: str = "", beams: int = 1, tokens: int = 100) -> str:
    """What is to be read after a question."""
    return readable(asking(client, recording, task, text, beams, tokens).result(timeout=60))


def readable(html: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", html)).split())


def metric(server: Running, name: str) -> float:
    with urlopen(f"{server.url}/metrics") as answer:
        text: str = answer.read().decode()
    return float(next(line.split()[-1] for line in text.splitlines() if line.startswith(f"salmonrun_{name} ")))


def eventually(holds: Callable[[], bool], seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True
