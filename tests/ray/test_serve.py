"""The Serve application: the server's own answers from several replicas, one of which dies under load."""

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="the extra ray is not installed")
import httpx2
import numpy as np
import psutil
from pydantic import ValidationError
from ray import serve

from salmonrun.runtime import Engine
from salmonrun.runtime.errors import ConfigError
from salmonrun.runtime.server.ray.app import NAME, Arguments, build
from salmonrun.runtime.server.ray.proxy import REASON, RESTART
from tests.ray.clients import Requests, Stream
from tests.ray.conftest import RECORDINGS

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]
PORT = 8517
URL = f"http://127.0.0.1:{PORT}"
SENTENCE = RECORDINGS / "shopping.flac"
STREAMS, CLIENTS = 6, 2
BEFORE_S, AFTER_S = 15.0, 15.0


@pytest.fixture
def application(cluster: None, bundle: Path) -> Iterator[Arguments]:
    arguments = Arguments(bundle=str(bundle), min_replicas=2, max_replicas=2, max_streams=8)
    serve.start(http_options={"port": PORT})
    serve.run(build(arguments), name=NAME)
    yield arguments
    serve.shutdown()


def replicas() -> list[psutil.Process]:
    processes = psutil.Process().children(recursive=True)
    return [one for one in processes if f"ServeReplica:{NAME}" in " ".join(one.cmdline())]


def running() -> int:
    """How many replicas Serve has that answer."""
    states: dict[str, int] = serve.status().applications[NAME].deployments[NAME].replica_states
    return states.get("RUNNING", 0)


def p95_ms(seconds: list[float]) -> str:
    return f"p95 {1000 * np.percentile(seconds, 95):.0f} ms of {len(seconds)}" if seconds else "none"


def test_only_the_streams_of_a_replica_that_is_killed_fail(
    application: Arguments, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Engine.load(bundle, threads=1) as engine:
        said = " ".join(part.text for part in engine.transcribe(SENTENCE)[0])
    stop = threading.Event()
    streams = [Stream(URL, SENTENCE, stop) for _ in range(STREAMS)]
    clients = [Requests(URL, SENTENCE, stop) for _ in range(CLIENTS)]
    work = [one.run for one in streams] + [one.run for one in clients]
    threads = [threading.Thread(target=run) for run in work]
    for thread in threads:
        thread.start()
        time.sleep(0.4)  # replicas are chosen by what they do already
    time.sleep(BEFORE_S)
    victim, _ = replicas()
    killed = time.monotonic()
    os.kill(victim.pid, signal.SIGKILL)
    while running() == 2:  # until the controller has noticed
        time.sleep(0.1)
    while running() < 2:
        time.sleep(0.1)
    replaced = time.monotonic()
    time.sleep(AFTER_S)
    stop.set()
    for thread in threads:
        thread.join()

    lost = [stream for stream in streams if stream.error]
    kept = [stream for stream in streams if not stream.error]
    assert lost, "no stream was on the replica that was killed"
    assert kept, "no stream was on the other one"
    answers = [answer for client in clients for answer in client.answers]
    failed = [answer for answer in answers if answer[2] != 200]
    with capsys.disabled():
        sys.stdout.write(
            f"\n{len(kept)} of {STREAMS} streams went on; others: {sorted({str(one.error) for one in lost})}\n"
        )
        sys.stdout.write(f"{len(answers)} requests, {len(failed)} failed: {[one[2:] for one in failed]}\n")
        for what, times in (
            ("requests", [answer[:2] for answer in answers if answer[2] == 200]),
            ("streams that went on", [end[:2] for stream in kept for end in stream.ends]),
        ):
            for when, first, last in (
                ("before", 0.0, killed),
                ("while another replica starts", killed, replaced),
                ("then", replaced, math.inf),
            ):
                sys.stdout.write(f"{what}, {when}: {p95_ms([s for t, s in times if first <= t < last])}\n")
    for stream in kept:
        assert {text for _, _, text in stream.ends} == {said}
        assert max(sent for sent, _, _ in stream.ends) > killed
        assert stream.told == []
    for stream in lost:
        assert stream.error
        assert stream.error.rcvd, "the socket was cut without a word"
        assert (stream.error.rcvd.code, stream.error.rcvd.reason) == (RESTART, REASON)
        assert {text for _, _, text in stream.ends} <= {said}
    assert {text for _, _, status, text in answers if status == 200} == {said}
    assert all(begun <= killed <= begun + took for begun, took, _, _ in failed), "more failed than were under way"
    assert all(status == 500 for _, _, status, _ in failed)
    assert httpx2.get(f"{URL}/health").json() == {"status": "ready"}
    assert len(replicas()) == 2  # Serve has started another


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({}, "bundle"),
        ({"bundle": "b", "port": 80}, "port"),
        ({"bundle": "b", "threads": 0}, "threads"),
        ({"bundle": "b", "max_replicas": 0}, "max_replicas"),
        ({"bundle": "b", "device": "tpu"}, "device"),
    ],
)
def test_arguments_are_checked(given: dict[str, object], what: str) -> None:
    """As Serve makes them, of a config or a command line."""
    with pytest.raises(ValidationError, match=what):
        Arguments.model_validate(given)


def test_settings_of_the_server_are_checked_before_a_replica_is_made() -> None:
    with pytest.raises(ConfigError, match="max_running is 0"):
        build(Arguments.model_validate({"bundle": "b", "max_running": "0"}))


def test_serve_is_told_what_a_replica_takes() -> None:
    built = build(
        Arguments(bundle="b", threads=4, max_replicas=3, max_running=2, max_waiting=5, timeout_s=60, device="cuda")
    )
    deployment = built._bound_deployment
    assert deployment.ray_actor_options == {"num_cpus": 4, "num_gpus": 1}
    config = deployment._deployment_config
    scaling = config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (1, 3, 2)
    assert (config.max_ongoing_requests, config.max_queued_requests, config.graceful_shutdown_timeout_s) == (7, 5, 60)


def test_keys_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a cluster keeps secrets, and not in a config."""
    monkeypatch.setenv("SALMONRUN_API_KEYS", "a,b")
    (arguments,) = build(Arguments(bundle="b", api_keys=("c",)))._bound_deployment.init_args
    assert arguments.api_keys == ("c", "a", "b")
