"""Every command by one name, `salmonrun`: listed and explained where nothing is installed, started without delay."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from salmonrun import __version__
from salmonrun.__main__ import main
from salmonrun.export.commands import EXPORTING
from salmonrun.runtime.commands import RUNNING
from salmonrun.training.commands import TRAINING

GROUPS = {"training": TRAINING, "export": EXPORTING, "runtime": RUNNING}
COMMANDS = {command.name: command for group in GROUPS.values() for command in group.commands}
EXTRAS = (
    *("torch", "transformers", "onnx", "peft", "safetensors", "onnxruntime", "jiwer", "whisper_normalizer", "yaml"),
    *("fastapi", "uvicorn", "prometheus_client", "huggingface_hub"),
)
ROOT = Path(__file__).parents[1]

NO_ONNX_RUNTIME = (
    "ONNX Runtime is not installed: pip install 'salmonrun[cpu]', or on an NVIDIA GPU 'salmonrun[cuda]', never both"
)

# Importing one of them now raises ModuleNotFoundError, as if it were not installed.
WITHOUT = """
import sys
sys.modules |= dict.fromkeys({missing})
from salmonrun.__main__ import main
sys.exit(main({argv}))
"""

IMPORTED = """
import sys
from salmonrun.__main__ import main
try:
    main({argv})
except SystemExit as stopped:
    print(*sys.modules, file=sys.stderr)
    raise
"""


def python(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=cwd, check=False)


def without(missing: tuple[str, ...], *argv: str) -> subprocess.CompletedProcess[str]:
    return python("-c", WITHOUT.format(missing=missing, argv=list(argv)))


def test_all_commands_are_listed_in_groups(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "usage: salmonrun [-h] [--version] COMMAND ..."
    assert set(COMMANDS) == {
        *("transcribe", "stream", "serve", "latency", "check", "export", "sign", "push", "convert", "init", "inspect"),
        *("synthesize", "data", "finetune", "distill", "prune", "evaluate", "report", "baseline", "batch", "doctor"),
    }
    for group in GROUPS.values():
        assert f"{group.title}:" in lines
    for command in COMMANDS.values():
        assert [line.split(maxsplit=1)[1] for line in lines if line.split()[:1] == [command.name]] == [command.summary]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"salmonrun {__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_needs_no_extra(name: str) -> None:
    done = without(EXTRAS, name, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: salmonrun {name} [-h]")
    assert "python -m" not in done.stdout


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_imports_nothing_heavy(name: str) -> None:
    """`None` in the test above would not show an import that somebody catches."""
    done = python("-c", IMPORTED.format(argv=[*name.split(), "--help"]))
    assert done.returncode == 0, done.stderr
    imported = set(done.stderr.split())
    assert imported.isdisjoint({*EXTRAS, "tqdm", "matplotlib"})
    assert {command.name for command in COMMANDS.values() if command.module in imported} == set(name.split())
    if not name:
        assert "numpy" not in imported
        ours = sorted(module for module in imported if module.startswith("salmonrun."))
        assert len(ours) <= 12, ours


def test_the_engine_needs_no_pytorch_to_start() -> None:
    """What `transcribe` loads when it has work, up to the bundle that is not there."""
    done = without(("torch", "transformers", "onnx", "tqdm", "yaml"), "transcribe", "no-bundle", "talk.wav")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: bundle no-bundle does not exist")


@pytest.mark.parametrize(
    ("missing", "argv", "message"),
    [
        ("torch", ["finetune", "--cfg-path", "x"], "salmonrun finetune needs PyTorch"),
        ("torch", ["init", "new", "--window-frames", "0.33s"], "salmonrun init needs PyTorch"),
        ("torch", ["baseline", "checkpoint", "--threads", "1"], "salmonrun baseline needs PyTorch"),
        ("jiwer", ["evaluate", "model", "test.json", "--out", "a"], "salmonrun evaluate needs jiwer"),
        ("onnx", ["export", "checkpoint", "bundle"], "salmonrun export needs onnx"),
        ("fastapi", ["serve", "bundle"], "salmonrun serve needs fastapi"),
        ("onnxruntime", ["synthesize", "data"], "salmonrun synthesize needs ONNX Runtime"),
        ("tokenizers", ["check", "bundle"], "salmonrun check needs tokenizers"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_missing_extra_is_named_in_a_line(missing: str, argv: list[str], message: str) -> None:
    extra = COMMANDS[argv[0]].extra or "cpu"
    done = without((missing,), *argv)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: {message}, which is not installed: pip install 'salmonrun[{extra}]'\n"


@pytest.mark.parametrize("argv", [["check", "b"], ["transcribe", "b", "a.wav"], ["stream", "b", "-"]], ids=" ".join)
def test_the_base_install_says_which_onnx_runtime_to_install(argv: list[str]) -> None:
    done = without(("onnxruntime",), *argv)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"error: {NO_ONNX_RUNTIME}\n")


@pytest.mark.parametrize(
    "statement", ["from salmonrun import Engine", "import salmonrun.runtime.session", "import salmonrun.runtime.vad"]
)
def test_an_app_is_told_which_onnx_runtime_to_install(statement: str) -> None:
    done = python("-c", f"import sys; sys.modules['onnxruntime'] = None; {statement}")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"salmonrun.runtime.errors.MissingExtraError: {NO_ONNX_RUNTIME}"


def test_a_module_of_ours_that_is_missing_is_no_matter_of_extras() -> None:
    done = without(("salmonrun.training.finetuning.finetune",), "finetune", "--cfg-path", "x")
    assert "Traceback" in done.stderr
    assert "pip install" not in done.stderr


@pytest.mark.parametrize("argv", [[], ["sing"], ["--loud"], ["check"], ["data"], ["data", "sing"]], ids=" ".join)
def test_wrong_arguments(capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("usage: salmonrun")
    assert printed.out == ""


def test_interrupted(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("salmonrun.training.inspection.inspect.inspect_path", interrupt)
    assert main(["inspect", "file"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("argv", [["--help"], ["stream", "--help"], ["inspect", "README.md"]], ids=" ".join)
def test_a_reader_that_has_enough_is_no_error(argv: list[str]) -> None:
    """Gone before the first line: nothing is complained about, here or when the interpreter ends."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "salmonrun", *argv], stdout=writing, stderr=subprocess.PIPE, cwd=ROOT, check=False
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


def test_file_names_that_are_not_text() -> None:
    name = os.fsdecode(b"caf\xe9.pth")
    done = python("-m", "salmonrun", "inspect", name)
    assert done.returncode == 1
    assert re.match(r"error: .*caf\\udce9\.pth", done.stderr), done.stderr


@pytest.mark.parametrize("where", ["elsewhere", "checkout"])
@pytest.mark.parametrize("package", GROUPS)
def test_the_packages_own_command_lines(package: str, where: str, tmp_path: Path) -> None:
    """python -m runtime, where that is a folder of a checkout, and python -m salmonrun.runtime: the same commands."""
    if where == "checkout" and not (ROOT / package).is_dir():
        pytest.skip("no checkout: the packages are in salmonrun alone")
    module, folder = (package, ROOT) if where == "checkout" else (f"salmonrun.{package}", tmp_path)
    done = python("-m", module, "--help", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: python -m {module} [-h]")
    if package != "export":
        listed = re.findall(r"^  (\w+)", done.stdout, re.MULTILINE)
        assert listed == [command.name for command in GROUPS[package].commands]


def test_a_folder_with_modules_of_the_same_names(tmp_path: Path, speech: Path, tiny_bundle: Path) -> None:
    """A project's own export.py and runtime/ have nothing to do with ours, where a command or Python is started."""
    for package in (*GROUPS, "kernels"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(f"raise AssertionError('{package} of the project')\n")
    (tmp_path / "commands.py").write_text("raise AssertionError('commands of the project')\n")
    argv = [str(tiny_bundle), str(speech), "--max-new-tokens", "3"]
    done = python("-m", "salmonrun", "transcribe", *argv, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{speech}: ")
    for name in COMMANDS:
        done = python("-m", "salmonrun", name, "--help", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
