"""One server with the demo's model for all tests that leave it as it is."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from salmonrun.runtime import Engine

if TYPE_CHECKING:
    from openai import OpenAI

    from tests.helpers.servers import Running

NEEDED = ("fastapi", "uvicorn", "websockets", "multipart", "prometheus_client", "openai", "httpx2")


@pytest.fixture(scope="session")
def server(demo_engine: Engine) -> "Iterator[Running]":
    for name in NEEDED:
        pytest.importorskip(name, reason=f"{name} is not installed: pip install 'salmonrun[serve]' openai")
    from tests.helpers.servers import serving

    with serving(demo_engine, max_waiting=200) as running:
        yield running


@pytest.fixture
def client(server: "Running") -> "OpenAI":
    """OpenAI's own, as it comes."""
    from openai import OpenAI

    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
