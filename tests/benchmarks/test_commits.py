"""Commits compared: in a repository of the test's own, so that it does not matter what is committed in this one."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.commits import recordings
from benchmarks.commits.bundles import same_weights_and_graphs
from benchmarks.commits.cases import KINDS, Case, token_cases
from benchmarks.commits.compare import main
from benchmarks.commits.latency import Method, latency_cases, stage_rows
from benchmarks.commits.models import MODELS, SHAPES
from benchmarks.commits.random_models import random_config
from benchmarks.commits.tables import differences_list, latency_table, tokens_summary
from benchmarks.commits.tokens import Outcome, chosen, differences, margin_request, stop_string

ROOT = Path(__file__).parents[2]
Json = dict[str, Any]
Compare = Callable[..., tuple[int, str, Json]]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that the comparison needs of this one, in one commit."""
    folder = tmp_path_factory.mktemp("commits") / "repository"
    folder.mkdir()
    for name in ("runtime", "export", "training", "kernels", "salmonrun", "benchmarks", "demo/recordings"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignored)
    (folder / ".gitignore").write_text("build/\n__pycache__/\n")
    author = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    for command in (("init", "--quiet"), ("add", "--all"), (*author, "commit", "--quiet", "--message", "all")):
        subprocess.run(("git", *command), cwd=folder, check=True)
    return folder


@pytest.fixture(scope="module")
def compare(repository: Path) -> Compare:
    """Exit code, output and results of the comparison with the commit."""

    def run(*options: str) -> tuple[int, str, Json]:
        command = (sys.executable, "-m", "benchmarks.commits.compare", "HEAD", "--threads", "1", *options)
        variables = os.environ | {"PYTHONPATH": str(repository)}
        done = subprocess.run(command, cwd=repository, env=variables, capture_output=True, text=True)
        assert done.returncode in (0, 1), done.stderr
        results: Json = json.loads((repository / "build" / "commits" / "results.json").read_text())
        return done.returncode, done.stdout, results

    return run


@pytest.mark.tools
@pytest.mark.timeout(900)
def test_a_commit_is_equal_to_itself_and_a_tampered_one_is_found(repository: Path, compare: Compare) -> None:
    code, output, results = compare("--tokens", "--only", "tiny", "--latency", "--shape", "tiny", *FEW)
    assert code == 0, output
    summary = results["tokens"]["summary"]
    assert summary["answers"] > 100
    assert (summary["differ"], summary["errors"]) == (0, 0)
    assert not any(checkout["changed"] for checkout in results["checkouts"])
    assert results["same_bundles"] == {"tiny": True}
    check_latency(results["latency"]["rows"])
    worktrees = subprocess.run(("git", "worktree", "list"), cwd=repository, capture_output=True, text=True, check=True)
    assert len(worktrees.stdout.splitlines()) == 1

    with (repository / "runtime" / "engine.py").open("a") as engine:
        engine.write(TAMPERED)
    code, output, results = compare("--only", "tiny", "--keep-bundles", "--kind", "greedy,beams")
    assert code == 1
    assert [checkout["changed"] for checkout in results["checkouts"]] == [False, True]
    cases = {case["case"]: case for case in results["tokens"]["cases"]}
    assert not cases["beams, bell"]["differences"]
    (found,) = cases["greedy, bell"]["differences"]
    assert (found["field"], found["position"]) == ("token_ids", 2)
    assert found["margin"] > 0
    assert found["best"] == found["base"]
    assert found["near_tie"] == (found["margin"] < 0.01)
    assert f"tiny: greedy, bell, answer 0: token 2: {found['base']} / {found['new']}" in output


# The third token of an answer without beams is another one.
TAMPERED = """

_generate = Engine.generate


def _tampered(self, *audio, config=None, **asked):
    result = _generate(self, *audio, config=config, **asked)
    if config.num_beams == 1:
        result.token_ids[2:3] = [5 if token != 5 else 6 for token in result.token_ids[2:3]]
    return result


Engine.generate = _tampered
"""

FEW = ("--rounds", "2", "--min-rounds", "2", "--answer-tokens", "4", "--transcribe-s", "35")


def check_latency(rows: list[Json]) -> None:
    cases = {(row["case"], row["stage"]): row for row in rows}
    stages = ("prompt", "audio", "features", "whisper", "audio_encoder", "qformer", "prefill", "decode", "total")
    assert {stage for case, stage in cases if case == "10 s, greedy"} == set(stages)
    others = {case for case, _ in cases} - {"10 s, greedy", "10 s, 4 beams"}
    assert len(others) == 4  # tiny does not hear in blocks
    assert cases["8 threads, mixed", "one token"]
    assert cases["stream of 10 s, agreement", "update"]
    for row in rows:
        assert row["same_answers"]
        assert len(row["samples"]["base"]) == len(row["samples"]["new"]) == 2
    table = latency_table(rows)
    assert "| tiny | 8 threads, mixed | one token |" in table
    assert "tokens/s)" in table
    assert len(table.splitlines()) == len(rows) + 2


def answer(*token_ids: int, **changes: Any) -> Json:
    return {"text": "a", "token_ids": list(token_ids), "finish_reason": "stop"} | changes


@pytest.mark.parametrize(
    ("base", "new", "expected"),
    [
        (answer(1, 2), answer(1, 2), None),
        (answer(1, 2, 3), answer(1, 4, 3), ("token_ids", 1, 2, 4)),
        (answer(1), answer(1, 5), ("token_ids", 1, None, 5)),
        (answer(1), answer(1, text="b"), ("text", None, "a", "b")),
        (answer(1), answer(1, pieces=["a"]), ("pieces", None, None, ["a"])),
        (answer(1), {"error": "ValueError: no"}, ("token_ids", 0, 1, None)),
        (answer(1, window=[0, 9]), answer(2, window=[0, 8]), ("windows", None, [[0, 9]], [[0, 8]])),
        (answer(1, window=[0, 9]), answer(2, window=[0, 9]), ("token_ids", 0, 1, 2)),
        (
            answer(1, segments=[{"window": [0, 9]}]),
            answer(2, segments=[{"window": [0, 5]}, {"window": [5, 9]}]),
            ("windows", None, [[0, 9]], [[0, 5], [5, 9]]),
        ),
        ({"updates": [["a", "b"]]}, {"updates": [["a", "c"]]}, ("updates", None, [["a", "b"]], [["a", "c"]])),
    ],
)
def test_what_differs_first(base: Json, new: Json, expected: tuple[Any, ...] | None) -> None:
    found = differences([answer(7), base], [answer(7), new])
    if expected is None:
        assert found == []
        return
    ((index, difference),) = found
    assert index == 1
    assert tuple(difference[name] for name in ("field", "position", "base", "new")) == expected


def test_a_missing_answer_differs() -> None:
    assert [index for index, _ in differences([answer(1)], [answer(1), answer(2)])] == [1]


def test_a_margin_is_asked_for_where_the_best_logit_is_the_next_token() -> None:
    def place(request: Json, index: int = 0) -> Json | None:
        outcome = Outcome(MODELS["tiny"], Case("", "", request), request, [answer(1, window=[3, 9])] * 2, [])
        return margin_request(outcome, index)

    request = {"do": "generate", "audio": "x.wav", "ask": {"task": "asr"}, "config": {"max_new_tokens": 4}}
    assert place(request) == {"audio": "x.wav", "window": None, "ask": {"task": "asr"}}
    assert place(request | {"config": {"num_beams": 4}}) is None
    assert place(request | {"config": {"do_sample": True, "seed": 1}}) is None
    assert place(request, 2) is None  # the base has no such answer
    asks = {"do": "listen", "audio": "x.wav", "asks": [{"task": "asr"}, {"prompt": "?"}], "config": {}}
    assert place(asks, 1) == {"audio": "x.wav", "window": None, "ask": {"prompt": "?"}}
    long = {"do": "transcribe", "audio": "x.wav", "generation": {}, "config": {"batch_size": 1}}
    assert place(long, 1) == {"audio": "x.wav", "window": [3, 9], "ask": {"task": "asr"}}
    assert place({"do": "together", "requests": [request]}) is None


def test_no_margin_where_an_answer_is_an_error_or_has_no_tokens() -> None:
    case = Case("transcribe", "long", {"do": "transcribe", "audio": "x.wav", "generation": {}, "config": {}})
    outcome = Outcome(MODELS["tiny"], case, case.request, [{"windows": 3}, {"error": "no"}], [answer(1)] * 2)
    assert [margin_request(outcome, index) for index in range(3)] == [None] * 3


def test_bundles_are_the_same_but_for_what_was_measured(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for bundle in (one, other):
        (bundle / "llm").mkdir(parents=True)
        (bundle / "llm" / "decoder.onnx").write_bytes(b"graph")
        (bundle / "parity.json").write_text(bundle.name)
    assert same_weights_and_graphs(one, other)
    (other / "llm" / "decoder.onnx").write_bytes(b"grape")
    assert not same_weights_and_graphs(one, other)
    shutil.copy(one / "llm" / "decoder.onnx", other / "llm")
    (other / "more").touch()
    assert not same_weights_and_graphs(one, other)


def test_errors_in_both_are_equal_and_counted() -> None:
    case = Case("greedy", "greedy, bell", {})
    same = [{"error": "no"}]
    assert differences(same, same) == []
    outcome = Outcome(MODELS["tiny"], case, {}, same, same)
    counts = {"answers": 1, "differ": 0, "near_ties": 0, "other_audio": 0, "notes": 0, "errors": 1}
    assert tokens_summary([outcome]) == counts
    assert differences_list([outcome]) == []


def test_a_stop_string_is_of_the_text() -> None:
    assert stop_string("abcdef") == "de"
    assert stop_string("") == "?"


def test_every_case_has_a_name_of_its_own_and_takes_its_stop_string_from_an_earlier_one(tmp_path: Path) -> None:
    for blocks in (False, True):
        cases = token_cases(tmp_path, blocks, every_recording=blocks)
        names = [case.name for case in cases]
        assert len(set(names)) == len(names)
        assert {case.kind for case in cases} == set(KINDS)
        for index, case in enumerate(cases):
            assert not case.stops_in or case.stops_in in names[:index]
        policies = {case.request["stream"]["policy"] for case in cases if case.kind == "stream"}
        assert policies == ({"agreement", "block"} if blocks else {"agreement"})


def test_measured_answers_have_one_length(tmp_path: Path) -> None:
    cases = latency_cases(tmp_path, True, Method(1, 1, 1.0, 1, tokens=9, transcribed_s=2.0))
    assert cases[0].request["config"] == {"max_new_tokens": 9, "min_new_tokens": 9}
    assert [case.name for case in cases if case.kind == "stream"] == [
        "stream of 10 s, agreement",
        "stream of 10 s, block",
    ]
    assert len(cases[-1].request["requests"]) == 8


def test_models_are_of_every_kind() -> None:
    assert len(MODELS) == 24
    assert {model.group for model in MODELS.values()} == {"demo", "demo-fp32", "golden", "tiny", "random"}
    assert {"demo", "1b-llm", "1b-streaming"} < set(SHAPES)
    configs = [random_config(seed) for seed in range(20)]
    families = [config.llm["model_type"] for config in configs]
    assert families.count("llama") >= 6
    assert len(set(families)) >= 4
    assert sum(config.streaming is not None for config in configs) == 10
    assert len({config.audio.window for config in configs}) == 2


def test_recordings_are_made_the_same_each_time(tmp_path: Path) -> None:
    first, second = (recordings.joined(tmp_path / name, 3, told=True).read_bytes() for name in "ab")
    assert first == second
    assert len(recordings.sentences()) == 9


def test_a_commit_that_does_not_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nowhere"]) == 2
    assert "'nowhere' is no commit" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--only", "--kind", "--shape"])
def test_unknown_names_are_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["HEAD", option, "tiny,dream"])
    assert "dream" in capsys.readouterr().err


def test_cases_of_some_kinds_bring_those_whose_answers_they_need(tmp_path: Path) -> None:
    cases = chosen(token_cases(tmp_path, False, every_recording=False), ["stop strings"])
    assert {case.kind for case in cases} == {"stop strings", "greedy", "beams"}
    assert {case.kind for case in chosen(cases, ["beams"])} == {"beams"}


def test_a_stage_that_only_one_commit_has_is_told() -> None:
    samples = {"base": [{"prefill": 1.0, "total": 2.0}] * 2, "new": [{"total": 1.0}] * 2}
    rows = {row["stage"]: row for row in stage_rows(MODELS["tiny"], Case("", "ask", {}), True, samples)}
    assert (rows["prefill"]["new"], rows["prefill"]["ratio"]) == (None, None)
    assert rows["total"]["ratio"]["median"] == 0.5
    assert "| tiny | ask | prefill | 1 s | no such stage |  |" in latency_table([*rows.values()])
