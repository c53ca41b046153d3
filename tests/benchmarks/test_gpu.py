"""The plan for GPUs: steps that are done are not done again, those that die or hang are kept as failures."""

import json
import os
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import half, models, page, plan, proving, step, steps, vllm
from benchmarks.gpu.plan import Plan
from salmonrun.export import ExportOptions, export_bundle
from salmonrun.runtime.bundle import open_bundle
from salmonrun.runtime.decoders.torch_decoder.attention import Attention, sdpa

PYTHON = sys.executable
QUICK = ("--device", "cpu", "--seconds", "0.1")


def plan_in(folder: Path) -> Plan:
    return Plan("cpu", folder, "tiny", 0.1)


@pytest.fixture
def instead(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Have a script run instead of a step: it knows the step's `name` and the `file` of its outcome."""

    def replace_it(script: str) -> None:
        begin = "name, out = sys.argv[3], sys.argv[sys.argv.index('--out') + 1]\nfile = f'{out}/cpu/{name}.json'"
        path = tmp_path / "python"
        path.write_text(f"#!{PYTHON} -S\nimport os, sys, time\n{begin}\n{textwrap.dedent(script)}\n")
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))

    return replace_it


def test_it_goes_on_where_it_was(
    instead: Callable[[str], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    instead(
        """
        print(name, file=open(f"{out}/ran", "a"))
        if name == "half":
            sys.exit(7)
        os.makedirs(os.path.dirname(file), exist_ok=True)
        print('{"ok": true, "seconds": 1.0, "found": {}}', file=open(file, "w"))
        """
    )
    arguments = ["test", *QUICK, "--out", str(tmp_path), "--only", "machine", "half", "rounds-nf4"]
    assert command.main(arguments) == 1
    ran = tmp_path / "ran"
    assert ran.read_text().split() == ["machine", "half", "rounds-nf4"]
    assert "half: it ended with status 7" in capsys.readouterr().out
    assert command.main(arguments) == 1
    assert ran.read_text().split()[3:] == ["half"]  # what failed, and nothing else
    plan_in(tmp_path).file("machine").unlink()
    instead("""print('{"ok": true, "seconds": 1.0, "found": {}}', file=open(file, "w"))""")
    assert command.main(arguments) == 0
    assert json.loads(plan_in(tmp_path).file("half").read_text())["ok"]


def test_what_takes_too_long_is_ended_with_all_it_started(instead: Callable[[str], None], tmp_path: Path) -> None:
    instead(
        """
        child = os.fork()
        if child:
            print(child, file=open(f"{out}/child", "w"))
        time.sleep(1000)
        """
    )
    outcome = plan.run(plan_in(tmp_path), ["machine"], limit_s=1.0)["machine"]
    assert (outcome["ok"], outcome["error"]) == (False, "it took more than 1 s")
    child = Path("/proc", (tmp_path / "child").read_text().strip(), "stat")
    for _ in range(100):
        if not child.exists() or child.read_text().split(") ")[1][0] == "Z":
            return
        time.sleep(0.1)
    raise AssertionError("it still runs")


def test_steps_that_do_not_exist_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["bench", *QUICK, "--out", str(tmp_path), "--only", "rounds-nf4"])
    assert (
        "no step 'rounds-nf4' in bench; there are machine, checkpoint, export-sized-fp32, " in capsys.readouterr().err
    )


def test_a_step_keeps_what_it_found_or_why_it_failed(tmp_path: Path) -> None:
    for name in ("machine", "stages-nf4"):
        step.main([name, *QUICK, "--out", str(tmp_path)])
    found = plan.outcome_of(plan_in(tmp_path), "machine")
    assert found["ok"]
    assert found["found"]["machine"]["cores"] >= 1
    failed = plan.outcome_of(plan_in(tmp_path), "stages-nf4")
    assert (failed["ok"], failed["seconds"] > 0) == (False, True)
    assert failed["error"].endswith("bundles/demo-nf4 is not there: the step export-demo-nf4 makes it")


def test_what_the_plans_consist_of() -> None:
    assert {name.partition("-")[0] for name in step.TEST} == {"machine", "export", "half", "stages", "tokens", "rounds"}
    kinds = {"machine", "checkpoint", "export", "steps", "memory", "latency", "load", "streams"}
    assert {name.partition("-")[0] for name in step.BENCH} == kinds
    assert set(steps.WAYS) == {"as chosen", "without CUDA graphs", "sdpa"}


@pytest.fixture(scope="module")
def made(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """A plan whose bundles are there, of a tiny model."""
    made = plan_in(tmp_path_factory.mktemp("plan"))
    options = ExportOptions(
        target="cuda", decoder="torch", encoder_precision="fp16", llm_precision="nf4", parity_budget=2
    )
    for name in ("demo-nf4", "tiny-sized-nf4"):
        folder = made.out / "bundles" / name
        if name.startswith("demo"):
            folder.parent.mkdir(parents=True)
            export_bundle(tiny_checkpoint, folder, options)
        else:
            os.symlink(made.out / "bundles" / "demo-nf4", folder)
    return made


def test_a_cpu_agrees_with_itself(made: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proving, "RECORDINGS", proving.RECORDINGS[:1])
    found = {
        "stages-nf4": proving.stages(made, "demo-nf4"),
        "tokens-nf4": proving.tokens(made, "demo-nf4"),
        "rounds-nf4": proving.rounds(made, "demo-nf4"),
    }
    assert set(found["stages-nf4"]["relative"].values()) == {0.0}
    assert (found["tokens-nf4"]["equal"], found["tokens-nf4"]["answers"]) == (1, 1)
    assert found["rounds-nf4"]["agreeing"] == 1
    for name, outcome in found.items():
        plan.keep(made, name, {"ok": True, "seconds": 1.0, "found": outcome})
    lines = page.parity(made).splitlines()
    assert lines[0].startswith("| relative error beside the CPU | whisper | audio_encoder | qformer | all, without ")
    assert lines[2].startswith("| nf4 | 0.0e+00 | 0.0e+00 | 0.0e+00 | 0.0e+00 | 0.0e+00 | 1 of 1 | ")
    assert len(lines) == 3


def test_what_differs_fails(made: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proving, "RECORDINGS", proving.RECORDINGS[:1])
    whole = models.loaded

    def distorted(made: Plan, bundle: str, device: str) -> Any:
        engine = whole(made, bundle, device)
        if not seen:
            real = engine.model.encoder.qformer
            monkeypatch.setattr(engine.model.encoder, "qformer", lambda *states: 1.02 * real(*states))
        seen.append(device)
        return engine

    seen: list[str] = []
    monkeypatch.setattr(proving, "loaded", distorted)
    with pytest.raises(AssertionError, match=r"errors are {'qformer': 0\.0[12]\d*, 'all, .*}; expected at most"):
        proving.stages(made, "demo-nf4")


def test_steps_are_timed_once_for_each_way_there_is(made: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "BATCHES", (1, 3))
    monkeypatch.setattr(steps, "PROMPT", 8)
    found = steps.decoder_steps(made, "sized-nf4")
    assert list(found) == ["as chosen"]  # on a CPU there is but one
    assert list(found["as chosen"]["ms"]) == ["1", "3"]
    other = Attention("another", False, sdpa)
    monkeypatch.setattr(steps, "WAYS", {"as chosen": {}, "by another": {"attention": other, "captured": False}})
    found = steps.decoder_steps(made, "sized-nf4")
    assert {way: each["kernels"]["attention"] for way, each in found.items()} == {
        "as chosen": "sdpa",
        "by another": "another",
    }
    memory = steps.memory(made, "sized-nf4")
    assert memory["cache_mib"] > 1
    plan.keep(made, "steps-nf4", {"ok": True, "seconds": 1.0, "found": found})
    plan.keep(made, "memory-nf4", {"ok": True, "seconds": 1.0, "found": memory})
    plan.keep(made, "steps-vllm", {"ok": True, "seconds": 1.0, "found": vllm.steps(made)})
    text = page.tables(made)
    assert "| a step of the LLM | computed by | 1 at once | 3 at once |" in text
    assert "| nf4, by another | float32, another, " in text
    assert "vLLM is not installed: it was not compared." in text
    assert "| MiB of the process | bundle | loaded |" in text


def test_vllm_is_timed_by_what_further_tokens_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that stands for it: here it cannot be installed."""
    clock = SimpleNamespace(now=0.0)

    class Llm:
        def __init__(self, model: str, **settings: Any) -> None:
            assert (Path(model) / "config.json").exists()
            assert settings["max_num_seqs"] == 16

        def generate(self, prompts: list[Any], settings: Any, use_tqdm: bool) -> None:
            assert {len(prompt["prompt_token_ids"]) for prompt in prompts} == {steps.PROMPT}
            clock.now += 5.0 + 0.002 * len(prompts) * settings.max_tokens

    module = SimpleNamespace(__version__="1.0", LLM=Llm, SamplingParams=lambda **settings: SimpleNamespace(**settings))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr("importlib.import_module", lambda name: module)
    monkeypatch.setattr(vllm, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    found = vllm.steps(plan_in(tmp_path))
    assert found["version"] == "1.0"
    assert found["ms"] == pytest.approx({"1": 2.0, "4": 8.0, "16": 32.0})


def test_float16_that_is_not_safe_fails(made: Plan, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(half, "checkpoint", lambda made, name: tiny_checkpoint)
    monkeypatch.setattr(half, "folder", lambda made, name: made.out / "bundles" / "demo-nf4")
    monkeypatch.setattr(half, "SECONDS", 1.0)
    found = half.safety(made)
    plan.keep(made, "half", {"ok": True, "seconds": 1.0, "found": found})
    lines = page.half(made).splitlines()
    assert len(lines) == 2 + 4 * len(half.AUDIO)
    assert lines[2].startswith("| whisper | speech | ")
    monkeypatch.setattr(half, "LIMIT", 1e-9)
    monkeypatch.setattr(half, "measure", lambda *arguments: found)
    with pytest.raises(AssertionError, match=r"within 1e-09, .*; whisper, speech: {'relative': "):
        half.safety(made)
    assert models.precision("demo-int4").encoder == "fp16"
    assert open_bundle(models.folder(made, "demo-nf4")).manifest.precision.qformer == "fp16"


def test_float16_of_any_checkpoint(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["half", str(tiny_checkpoint)])
    monkeypatch.setattr(half, "SECONDS", 1.0)
    assert half.main() == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("nothing is too large, and every relative error is within 0.002")
    monkeypatch.setattr(half, "LIMIT", 1e-9)
    assert half.main() == 1
    assert "whisper, speech: {'relative': " in capsys.readouterr().out


def test_float16_is_held_to_what_it_costs_pytorch() -> None:
    def wrong(audio: str, relative: float, pytorch: float) -> bool:
        each = {"relative": relative, "pytorch": pytorch, "overflows": False}
        return bool(half.problems({"whisper": {audio: each}}))

    assert not wrong("silent", 0.0049, 0.004)
    assert wrong("silent", 0.0051, 0.004)
    assert wrong("speech", 0.0021, 0.004)  # which no weights excuse
    assert wrong("silent", 0.0021, float("nan")), "something was too large for PyTorch: that excuses nothing"
    assert wrong("silent", float("nan"), 0.004)
