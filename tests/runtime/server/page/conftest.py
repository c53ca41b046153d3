"""A server with its page; the demo's model."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from salmonrun.runtime import Engine, Limits

if TYPE_CHECKING:
    from tests.helpers.servers import Running
    from tests.helpers.visitors import Visit


@pytest.fixture(scope="session")
def demo_engine(demo_bundle: Path) -> Engine:
    """With a limit, so that it tells how much of its memory is promised."""
    return Engine.load(demo_bundle, limits=Limits(max_cache_mib=256))


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
