"""The engine runs without what training and export need, and importing it has no surprises."""

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "transformers", "peft", "onnx", "safetensors", "triton", "fastapi", "uvicorn", "gradio", "ray")
ROOT = Path(__file__).parents[2]


def python(code: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in an interpreter of its own."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, env=environment or None
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.onnx
def test_a_bundle_runs_without_heavy_modules(tiny_bundle: Path, speech: Path) -> None:
    code = f"""
import sys
for name in {HEAVY}:
    sys.modules[name] = None  # importing it now raises ImportError
from salmonrun.runtime import Engine, GenerationConfig
from salmonrun.runtime.golden import check
engine = Engine.load(sys.argv[1])
result = engine.generate(sys.argv[2], task="asr", config=GenerationConfig(max_new_tokens=5))
assert len(result.token_ids) == 5, result
assert check(engine).passed
"""
    python(code, tiny_bundle, speech)


def test_the_heavy_modules_would_be_found() -> None:
    """Else the test above would prove nothing."""
    with pytest.raises(AssertionError, match="import of torch halted"):
        python("import sys; sys.modules['torch'] = None; import salmonrun.training.checkpoint")


@pytest.mark.parametrize(
    "module", ["salmonrun", "salmonrun.runtime", "salmonrun.runtime.__main__", "salmonrun.runtime.golden"]
)
def test_importing_the_engine_imports_nothing_heavy(module: str) -> None:
    heavy = (*HEAVY, "tqdm", "salmonrun.training", "salmonrun.export")
    code = f"import sys, {module}; print(*sorted(set({heavy}) & set(sys.modules)))"
    assert python(code).stdout.strip() == ""


WATCH_ONNXRUNTIME = """
import os, sys
seen = []
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "onnxruntime":
            seen.append(os.environ.get("ORT_DISABLE_TELEMETRY"))
sys.meta_path.insert(0, Watch())
from salmonrun.runtime import Engine
print(seen, os.environ["ORT_DISABLE_TELEMETRY"])
"""


def test_telemetry_is_off_before_onnxruntime_is_imported() -> None:
    assert python(WATCH_ONNXRUNTIME, PATH="").stdout.strip() == "['1'] 1"


def test_the_users_own_choice_of_telemetry_is_kept() -> None:
    assert python(WATCH_ONNXRUNTIME, PATH="", ORT_DISABLE_TELEMETRY="0").stdout.strip() == "['0'] 0"


def test_loading_leaves_the_callers_arithmetic_alone(tiny_bundle: Path) -> None:
    """A session that flushes denormals must not make the thread that loads it do so ever after."""
    code = """
import sys
import numpy as np
from salmonrun.runtime import Engine
tiny = np.array([5e-324, 1e-310])
assert (tiny * 1.0 > 0).all()
Engine.load(sys.argv[1])
assert (tiny * 1.0 > 0).all(), "denormals are zero now"
"""
    python(code, tiny_bundle)


# There alone the folder `kernels` can be imported by that name.
in_a_checkout = pytest.mark.skipif(not (ROOT / "kernels").is_dir(), reason="no checkout")


@in_a_checkout
def test_kernels_has_the_version_that_keeps_transformers_quiet() -> None:
    import kernels

    assert kernels.__version__ == "0.0.0"


@in_a_checkout
def test_transformers_does_not_mistake_our_kernels_for_another_package() -> None:
    code = """
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils.import_utils import is_kernels_available
import kernels
assert not is_kernels_available()
assert kernels.__version__ == "0.0.0", kernels
model = LlamaForCausalLM(LlamaConfig(
    vocab_size=16, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
))
assert model(torch.tensor([[1, 2]])).logits.shape == (1, 2, 16)
"""
    assert "kernels" not in python(code).stderr.lower()
