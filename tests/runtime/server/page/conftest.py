"""A server with its page; the demo's model."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from salmonrun.runtime import Engine

if TYPE_CHECKING:
    from tests.helpers.servers import Running
    from tests.helpers.visitors import Visit


@pytest.fixture(scope="session")
def paged(demo_engine: Engine) -> "Iterator[Running]":
    for name in ("fastapi", "uvicorn", "gradio", "gradio_client"):
        pytest.importorskip(name, reason=f"{name} is not installed: pip install 'salmonrun[demo]'")
    from tests.helpers.servers import serving

    with serving(demo_engine, page=True) as running:
        yield running


@pytest.fixture
def visit() -> "Iterator[Visit]":
    from tests.helpers.visitors import visiting

    with visiting() as visit:
        yield visit
