"""Schemathesis, as anybody runs it: what it asks, by the schema or against it, is answered by the schema."""

import base64
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")
schemathesis: Any = pytest.importorskip("schemathesis", reason="schemathesis is not installed")

from salmonrun.runtime import Engine  # noqa: E402
from tests.helpers.servers import Running, serving  # noqa: E402

ROOT = Path(__file__).parents[3]
SHOPPING = ROOT / "demo" / "recordings" / "shopping.flac"
FORMATS = ("json", "text", "verbose_json", "srt", "vtt")
EXAMPLES = os.environ.get("EXAMPLES", "6")  # of each route; make conformance asks more


@pytest.fixture(scope="module")
def schema(server: Running) -> Any:
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


def test_every_answer_is_by_the_schema(demo_engine: Engine, tmp_path: Path) -> None:
    """Statuses, types, headers and bodies; what is wrong is refused, and so is who has no key."""
    config = ROOT / "tests" / "assets" / "schemathesis" / "schemathesis.toml"
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(config), "run", "--no-color"]
    command += ["--max-examples", EXAMPLES, "--header", "Authorization: Bearer secret", "--continue-on-failure"]
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": "tests.helpers.schemathesis_hooks", "PYTHONPATH": str(ROOT)}
    with serving(demo_engine, api_keys=("secret",), max_waiting=200) as running:
        command.append(f"{running.url}/openapi.json")
        ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "Selected: 7/7" in ended.stdout


@pytest.mark.parametrize("path", ["/v1/audio/transcriptions", "/v1/audio/translations"])
@pytest.mark.parametrize("fields", [{"response_format": name} for name in FORMATS] + [{"stream": True}], ids=str)
def test_transcriptions(schema: Any, path: str, fields: dict[str, Any]) -> None:
    """What it invents is hardly ever a recording and a task that there is: so it is given some."""
    body = {"file": SHOPPING.read_bytes(), "prompt": "Write down what is said.", **fields}
    asked(schema, path, body, "multipart/form-data")


@pytest.mark.parametrize("stream", [False, True])
def test_completions(schema: Any, stream: bool) -> None:
    data = base64.b64encode(SHOPPING.read_bytes()).decode()
    content = [{"type": "input_audio", "input_audio": {"data": data, "format": "flac"}}]
    body = {"messages": [{"role": "user", "content": content}], "task": "asr", "stream": stream}
    asked(schema, "/v1/chat/completions", body, "application/json")


def asked(schema: Any, path: str, body: dict[str, Any], media_type: str) -> None:
    case = schema[path]["POST"].Case(body=body, media_type=media_type)
    assert case.call_and_validate().status_code == 200
