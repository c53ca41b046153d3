"""A cluster of Ray on this machine. These tests have an environment of their own: make ray-test."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RECORDINGS = ROOT / "demo" / "recordings"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--bundle", default=str(ROOT / "build" / "ray" / "bundle"), help="of the demo checkpoint")


@pytest.fixture(scope="session")
def bundle(request: pytest.FixtureRequest) -> Path:
    return Path(request.config.getoption("--bundle"))


@pytest.fixture
def cluster() -> Iterator[None]:
    """With room for four engines of a thread each, however many cores there are."""
    ray = pytest.importorskip("ray")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"] = "salmonrun.runtime.server.ray.proxy:middlewares"
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()
