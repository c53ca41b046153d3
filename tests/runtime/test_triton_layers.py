"""The torch decoder's steps by kernels of our own: the tokens of PyTorch's operations, in five launches a layer."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton", reason="Triton is not installed: pip install 'salmonrun[triton]'")

from salmonrun.kernels.gpu.launch import Launch
from salmonrun.runtime.arrays import F32
from salmonrun.runtime.bundle import Bundle
from salmonrun.runtime.config import Limits
from salmonrun.runtime.decoder import prefill, step
from salmonrun.runtime.decoders.torch_decoder.attention import Places
from salmonrun.runtime.decoders.torch_decoder.decoder import Kernels, TorchDecoder
from salmonrun.runtime.decoders.torch_decoder.model import Pool
from salmonrun.runtime.decoders.torch_decoder.pages import PAGE
from salmonrun.runtime.decoders.torch_decoder.triton_layers import triton_layers
from salmonrun.runtime.decoders.torch_decoder.weights import load_model
from salmonrun.runtime.errors import ConfigError
from tests.helpers.llms import BASE, LLMS, random_llm, tokens_of, write_torch_llm

LIMITS = Limits(max_cache_mib=1)
# What layers may have, between them.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "nf4, norms of heads, a window, biases, odd sizes": (
        "nf4",
        LLMS["qwen3 sliding, biases, untied"] | {"intermediate_size": 101},
    ),
    "int8, experts": ("int8", LLMS["qwen2_moe"] | {"num_hidden_layers": 1}),
}
LAYER = ["product_kernel", "attention_kernel", "product_kernel", "product_kernel", "product_kernel"]


def bundle_of(folder: Path, precision: str, config: dict[str, Any]) -> Bundle:
    return write_torch_llm(random_llm(config), config, folder, precision)  # type: ignore[arg-type]


def greedy(decoder: TorchDecoder) -> tuple[list[list[int]], F32]:
    """Tokens of two sequences, and the logits that chose them: together, then one by itself."""
    tokens, logits = [], []
    with decoder.open(2, 40) as slots:
        chosen = []
        for seed, (slot, length) in enumerate(zip(slots, (21, 1), strict=True)):
            chosen.append(int(np.argmax(prefill(decoder, slot, decoder.embed(tokens_of(seed, length))))))
        for count in (2, 1):
            found = step(decoder, slots[:count], chosen[:count])
            chosen = [int(np.argmax(row)) for row in found]
            tokens.append(chosen)
            logits.append(found)
    return tokens, np.concatenate(logits)


@pytest.mark.parametrize("name", CASES)
def test_tokens_are_those_of_pytorchs_operations(tmp_path: Path, name: str) -> None:
    precision, own = CASES[name]
    bundle = bundle_of(tmp_path, precision, BASE | own)
    made: list[tuple[Any, ...]] = [
        greedy(TorchDecoder.load(bundle, "cpu", 1, LIMITS, kernels=kernels)) for kernels in ("torch", "triton")
    ]
    (expected, logits), (found, own_logits) = made
    assert found == expected
    np.testing.assert_allclose(own_logits, logits, atol=2e-5, rtol=0)


def test_five_launches_a_layer_and_nothing_of_pytorch(tmp_path: Path) -> None:
    """Beside allocations and views. What is in front of the layers and behind them does not grow with their number."""
    launched, called = [], []
    for layers in (1, 3):
        folder = tmp_path / str(layers)
        folder.mkdir()
        bundle = bundle_of(folder, "nf4", BASE | {"num_hidden_layers": layers})
        names, operations = launches_and_operations(bundle)
        launched.append(names)
        called.append(operations)
    behind = ["add_norm_kernel", "product_kernel"]
    assert launched == [[*LAYER, *behind], [*LAYER * 3, *behind]]
    free = {"aten.empty.memory_format", "aten.empty_like.default", "aten.new_empty.default", "aten.select.int"}
    assert {name for name in called[1] - called[0] if name not in free} == set()
    assert called[0]["aten.sum.dim_IntList"] == 1  # the parts of the logits: what is called is seen


class Operations(TorchDispatchMode):
    """Counts PyTorch's operations."""

    def __init__(self) -> None:
        super().__init__()
        self.called: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.called[str(func)] += 1
        return func(*args, **(kwargs or {}))


def launches_and_operations(bundle: Bundle) -> tuple[list[str], Counter[str]]:
    """Of a step of three sequences; nothing is launched."""
    llm, made = bundle.manifest.llm, list[Launch]()
    with torch.inference_mode():
        layers = triton_layers(load_model(bundle, torch.device("cpu"), torch.float32), made.append)
        shape = (llm.layers, 2, PAGE, llm.kv_heads, llm.head_dim)
        pool = Pool(torch.zeros(shape), torch.zeros(shape))
        places = Places(torch.zeros(3, 1).long(), torch.zeros(3).long(), torch.ones(3).int(), torch.zeros(3, 1).int())
        embeds = torch.zeros(3, 1, llm.dim)
        with Operations() as operations:
            layers.logits(embeds, pool, places)
    return [launch.kernel.__name__ for launch in made], operations.called


def test_the_report_names_them(tmp_path: Path) -> None:
    import triton

    bundle = bundle_of(tmp_path, "fp32", BASE | {"num_hidden_layers": 1})
    names: dict[Kernels, str] = {"torch": "torch", "triton": f"triton {triton.__version__}, interpreted"}
    for kernels, expected in names.items():
        found = TorchDecoder.load(bundle, "cpu", 1, LIMITS, kernels=kernels).describe().kernels
        assert found["step kernels"] == expected
    with pytest.raises(ConfigError, match="kernels is 'cuda'; expected 'torch' or 'triton'"):
        TorchDecoder.load(bundle, "cpu", 1, LIMITS, kernels="cuda")  # type: ignore[arg-type]


def test_where_they_do_not_run_the_error_says_what_to_do() -> None:
    program = (
        "import sys, torch\n"
        "from types import SimpleNamespace as N\n"
        "from salmonrun.runtime.decoders.torch_decoder.decoder import _choose_layers\n"
        "from salmonrun.runtime.errors import DeviceError, MissingExtraError\n"
        "model = N(cos=torch.zeros(1))\n"
        "sys.modules['triton'] = None\n"
        "try: _choose_layers('triton', model, None)\n"
        "except MissingExtraError as error: print(error)\n"
        "del sys.modules['triton']\n"
        "try: _choose_layers('triton', model, None)\n"
        "except DeviceError as error: print(error)\n"
    )
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    without, interpreted = run.stdout.splitlines()
    assert without == "kernels is 'triton', and Triton is not installed: pip install 'salmonrun[triton]'"
    assert interpreted.startswith("kernels is 'triton' and the device a CPU")
    assert "set TRITON_INTERPRET=1" in interpreted
