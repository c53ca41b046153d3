"""What is compared: each engine's environment, how its model is made, and how its worker is to load it."""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks.peers.models import make_model
from benchmarks.peers.shapes import SHAPES, LanguageShape, Shape

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
CALIBRATION = REPOSITORY / "demo" / "calibration" / "annotation.json"
OURS = ("export", "training", "runtime", "kernels")
Command = tuple[str, ...]


@dataclass(frozen=True)
class Engine:
    """One row of a table."""

    name: str
    peer: str  # what --only selects
    kind: Literal["llm", "encoder"]
    environment: str
    worker: str  # in inside/
    arithmetic: Literal["fp32", "bf16", "int8"]  # of its products: which limit of the machine is its own
    bytes_per_weight: float  # in memory, generously: how many engines fit beside each other
    commands: tuple[Command, ...] = ()  # that make its model from the transformers folder; none: it reads that folder
    out: str = ""  # the folder they write, under the shape's; engines of the same commands share it
    model: str = ""  # the file or folder in it that is loaded
    options: Mapping[str, Any] = field(default_factory=dict)  # for its worker
    note: str = ""  # what a reader of its row must know
    fallback: str = ""  # another environment, and what it is, for where it crashes
    fallback_note: str = ""
    reference: bool = False  # others are compared with it
    truth: bool = False  # others' outputs are compared with its


class ConversionError(Exception):
    """A model could not be made; the message is the reason."""


def _salmonrun(kind: str, precision: str, *options: str) -> tuple[Command, ...]:
    """The other parts of the bundle are tiny ones. Random weights amplify rounding: hence the budget."""
    parts = ("{tiny_whisper}", "{source}") if kind == "llm" else ("{source}", "{tiny_llama}")
    init = (
        "-m",
        "salmonrun",
        "init",
        "{out}/checkpoint",
        "--whisper",
        parts[0],
        "--audio-encoder",
        "none",
        "--llm",
        parts[1],
    )
    export = ("-m", "salmonrun", "export", "{out}/checkpoint", "{out}/bundle", "--quiet", "--parity-budget", "3")
    llm = ("--llm-precision", precision, "--decoder", "both")
    stored = llm if kind == "llm" else ("--encoder-precision", precision, "--encoder", "both")
    return (*init, "--no-lora"), (*export, *stored, *options)


def _ctranslate2(quantization: str) -> tuple[Command, ...]:
    command = ("-c", "from ctranslate2.converters.transformers import main; main()")  # ct2-transformers-converter
    return ((*command, "--model", "{source}", "--output_dir", "{out}", "--force", "--quantization", quantization),)


GENAI = (
    *("-m", "onnxruntime_genai.models.builder", "-i", "{source}", "-o", "{out}", "-c", "{out}/cache", "-p", "int4"),
    *("-e", "cpu", "--extra_options", "block_size=32", "accuracy_level=4", "is_symmetric=true", "prune_lm_head=true"),
)
OPENVINO_WHISPER = "{inside}/openvino_whisper.py"

LLMS = (
    Engine(
        *("salmonrun int4", "salmonrun", "llm", "salmonrun", "salmonrun_worker", "int8", 1.5),
        commands=_salmonrun("llm", "int4"),
        out="salmonrun-int4",
        model="bundle",
        options={"decoder": "native"},
        reference=True,
    ),
    Engine(
        *("salmonrun int4, calibrated", "salmonrun", "llm", "salmonrun", "salmonrun_worker", "int8", 1.5),
        commands=_salmonrun("llm", "int4", "--calibration-speech", str(CALIBRATION), "--token-agreement", "0"),
        out="salmonrun-int4-calibrated",
        model="bundle",
        options={"decoder": "native"},
    ),
    Engine(
        *("salmonrun int4, ONNX Runtime", "salmonrun", "llm", "salmonrun", "salmonrun_worker", "int8", 1.5),
        commands=_salmonrun("llm", "int4"),
        out="salmonrun-int4",
        model="bundle",
        options={"decoder": "onnx"},
    ),
    Engine(
        *("llama.cpp Q4_0", "llama.cpp", "llm", "llama_cpp", "llama_cpp_worker", "int8", 1.2),
        commands=(("{inside}/gguf_q4_0.py", "{source}", "{out}"),),
        out="gguf",
        model="q4_0.gguf",
        fallback="llama_cpp_without_amx",
        fallback_note="built without AMX",
    ),
    Engine(
        *("ik_llama.cpp Q4_0", "ik_llama.cpp", "llm", "ik_llama", "ik_llama_worker", "int8", 2.4),
        commands=(("{inside}/gguf_q4_0.py", "{source}", "{out}"),),
        out="gguf",
        model="q4_0.gguf",
    ),
    Engine(
        *("onnxruntime-genai int4", "onnxruntime-genai", "llm", "genai", "genai_worker", "int8", 2.0),
        commands=(GENAI,),
        out="genai-int4",
    ),
    Engine(
        *("OpenVINO int4", "openvino", "llm", "openvino", "openvino_worker", "int8", 2.0),
        commands=(("{inside}/openvino_llm.py", "{source}", "{out}"),),
        out="openvino-int4",
        model="model.xml",
    ),
    Engine(
        *("CTranslate2 int8", "ctranslate2", "llm", "torch", "ctranslate2_worker", "int8", 1.5),
        commands=_ctranslate2("int8"),
        out="ctranslate2-int8",
    ),
    Engine(
        *("bitsandbytes nf4", "bitsandbytes", "llm", "torch", "pytorch_worker", "bf16", 3.0),
        options={"dtype": "bfloat16", "nf4": True},
    ),
    Engine("PyTorch bf16", "pytorch", "llm", "torch", "pytorch_worker", "bf16", 3.0, options={"dtype": "bfloat16"}),
    Engine(
        *("PyTorch bf16, compiled steps", "pytorch-compiled", "llm", "torch", "pytorch_worker", "bf16", 4.0),
        options={"dtype": "bfloat16", "compiled": True},
    ),
    Engine(
        *("PyTorch fp32", "pytorch", "llm", "torch", "pytorch_worker", "fp32", 5.0),
        options={"dtype": "float32"},
        truth=True,
    ),
)
ENCODERS = (
    Engine(
        *("salmonrun int8", "salmonrun", "encoder", "salmonrun", "salmonrun_worker", "int8", 2.0),
        commands=_salmonrun("encoder", "int8"),
        out="salmonrun-int8",
        model="bundle",
        options={"encoder": "native"},
        reference=True,
    ),
    Engine(
        *("salmonrun int8, ONNX Runtime", "salmonrun", "encoder", "salmonrun", "salmonrun_worker", "int8", 2.0),
        commands=_salmonrun("encoder", "int8"),
        out="salmonrun-int8",
        model="bundle",
        options={"encoder": "onnx"},
    ),
    Engine(
        *("salmonrun fp32", "salmonrun", "encoder", "salmonrun", "salmonrun_worker", "fp32", 6.0),
        commands=_salmonrun("encoder", "fp32"),
        out="salmonrun-fp32",
        model="bundle",
        options={"encoder": "native"},
    ),
    Engine(
        *("salmonrun fp32, ONNX Runtime", "salmonrun", "encoder", "salmonrun", "salmonrun_worker", "fp32", 6.0),
        commands=_salmonrun("encoder", "fp32"),
        out="salmonrun-fp32",
        model="bundle",
        options={"encoder": "onnx"},
    ),
    Engine(
        *("OpenVINO int8 weights", "openvino", "encoder", "openvino", "openvino_worker", "fp32", 3.0),
        commands=((OPENVINO_WHISPER, "{source}", "{out}", "int8"),),
        out="openvino-int8",
        model="model.xml",
        options={"precision": "f32"},
    ),
    Engine(
        *("OpenVINO bf16", "openvino", "encoder", "openvino", "openvino_worker", "bf16", 5.0),
        commands=((OPENVINO_WHISPER, "{source}", "{out}", "fp32"),),
        out="openvino-fp32",
        model="model.xml",
        options={"precision": "bf16"},
    ),
    Engine(
        *("OpenVINO fp32", "openvino", "encoder", "openvino", "openvino_worker", "fp32", 6.0),
        commands=((OPENVINO_WHISPER, "{source}", "{out}", "fp32"),),
        out="openvino-fp32",
        model="model.xml",
        options={"precision": "f32"},
    ),
    Engine(
        *("CTranslate2 int8", "ctranslate2", "encoder", "torch", "ctranslate2_worker", "int8", 2.0),
        commands=_ctranslate2("int8"),
        out="ctranslate2-int8",
        options={"precision": "int8_float32"},
        note="always hears 30 s",
    ),
    Engine(
        *("CTranslate2 fp32", "ctranslate2", "encoder", "torch", "ctranslate2_worker", "fp32", 5.0),
        commands=_ctranslate2("float32"),
        out="ctranslate2-fp32",
        options={"precision": "float32"},
        note="always hears 30 s",
    ),
    Engine("PyTorch bf16", "pytorch", "encoder", "torch", "pytorch_worker", "bf16", 3.0, options={"dtype": "bfloat16"}),
    Engine(
        *("PyTorch bf16, compiled", "pytorch-compiled", "encoder", "torch", "pytorch_worker", "bf16", 4.0),
        options={"dtype": "bfloat16", "compiled": True},
    ),
    Engine(
        *("PyTorch fp32", "pytorch", "encoder", "torch", "pytorch_worker", "fp32", 5.0),
        options={"dtype": "float32"},
        truth=True,
    ),
)
ENGINES = LLMS + ENCODERS


def engines_for(shape: Shape, only: tuple[str, ...]) -> list[Engine]:
    """Those that run a shape, of all peers or of the named ones."""
    engines = LLMS if isinstance(shape, LanguageShape) else ENCODERS
    return [engine for engine in engines if not only or engine.peer in only]


def prepare_model(root: Path, shape: Shape, engine: Engine, python: Path) -> Path:
    """Make what an engine loads, unless it is there, made by the same commands and, for our own, by the same code.

    Raises:
        ConversionError: one of its commands failed.
    """
    folder = root / "models"
    source = make_model(folder / shape.name / "transformers", shape)
    if not engine.commands:
        return source
    out = folder / shape.name / engine.out
    stamp, wanted = out / "made-by.txt", made_by(engine)
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(out, ignore_errors=True)
        scratch = out.with_name(f".{out.name}")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        places = {
            "source": source,
            "out": scratch,
            "inside": HERE / "inside",
            "tiny_llama": make_model(folder / "tiny-llama" / "transformers", SHAPES["tiny-llama"]),
            "tiny_whisper": make_model(folder / "tiny-whisper" / "transformers", SHAPES["tiny-whisper"]),
        }
        log = root / "logs" / f"model-{shape.name}-{engine.out}.log"
        for command in engine.commands:
            _run(python, tuple(part.format(**places) for part in command), engine, log)
        (scratch / stamp.name).write_text(wanted)
        scratch.rename(out)
    return out / engine.model


def made_by(engine: Engine) -> str:
    """The commands that make an engine's model, and a hash of the packages behind them if they are ours."""
    lines = [" ".join(command) for command in engine.commands]
    if engine.environment == "salmonrun":
        files = [file for package in OURS for file in sorted((REPOSITORY / package).rglob("*.py"))]
        lines.append(hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest())
    return "\n".join(lines)


def _run(python: Path, command: Command, engine: Engine, log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    # The repository's packages are for our own commands alone.
    where = REPOSITORY if engine.environment == "salmonrun" else log.parent
    variables = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with log.open("w") as output:
        done = subprocess.run((str(python), *command), cwd=where, env=variables, stdout=output, stderr=output)
    if done.returncode:
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        raise ConversionError(lines[-1] if lines else f"{' '.join(command[:2])}: exit code {done.returncode}")
