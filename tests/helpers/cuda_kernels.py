"""Kernels of ONNX Runtime's CUDA provider: which operators it computes in which types, and whether a graph's it does.

What is known lies in tests/assets/cuda_kernels.json, read from ONNX Runtime's own list of what it registers:
python -m tests.helpers.cuda_kernels onnxruntime/docs/OperatorKernels.md COMMIT
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import onnx

from salmonrun.export.graphs.builder import OPSET
from salmonrun.runtime.signature import OPERATORS

ASSET = Path(__file__).parents[1] / "assets" / "cuda_kernels.json"
DOMAINS = {"ai.onnx": "", "com.microsoft": "com.microsoft"}
Kernel = dict[str, Any]  # variants, each its inputs' and outputs' type variables; types, what each variable may be
Types = dict[str, str]  # value -> dtype, as onnx names it


class NoKernelError(Exception):
    """A node that the CUDA provider has no kernel for."""


def check_kernels(model: onnx.ModelProto) -> None:
    """Whether the provider has a kernel for every node, in the types that it has there.

    Raises:
        NoKernelError: names the first that it has none for.
    """
    kernels, graph = json.loads(ASSET.read_text())["kernels"], model.graph
    types: Types = {"": ""}
    types |= {tensor.name: _dtype(tensor.data_type) for tensor in graph.initializer}
    types |= {value.name: _dtype(value.type.tensor_type.elem_type) for value in graph.input}
    for node in graph.node:
        given = [types[name] for name in node.input]
        kernel = kernels.get(f"{node.domain}/{node.op_type}", {"variants": []})
        found = [outputs for variant in kernel["variants"] if (outputs := _outputs(node, given, variant, kernel))]
        if not found:
            raise NoKernelError(f"{node.op_type} of {given}: {kernel}")
        types |= dict(zip(node.output, found[0], strict=True))


def _outputs(node: onnx.NodeProto, given: list[str], variant: Kernel, kernel: Kernel) -> list[str] | None:
    """Types of what a variant gives; None if it does not take what it is given."""
    bound: dict[str, str] = {}
    for i, dtype in enumerate(given):
        variable = variant["inputs"][min(i, len(variant["inputs"]) - 1)]  # the last may stand for many
        if dtype and (dtype not in _allowed(variable, kernel) or bound.setdefault(variable, dtype) != dtype):
            return None
    for attribute in node.attribute:  # what no input says
        if (node.op_type, attribute.name) == ("Cast", "to"):
            bound[variant["outputs"][0]] = _dtype(attribute.i)
        if (node.op_type, attribute.name) == ("ConstantOfShape", "value"):
            bound[variant["outputs"][0]] = _dtype(attribute.t.data_type)
    outputs = []
    for i, _ in enumerate(node.output):
        variable = variant["outputs"][min(i, len(variant["outputs"]) - 1)]
        allowed = _allowed(variable, kernel)
        dtype = bound.get(variable) or (allowed[0] if len(allowed) == 1 else "")
        if dtype not in allowed and node.output[i]:
            return None
        outputs.append(dtype)
    return outputs


def _allowed(variable: str, kernel: Kernel) -> list[str]:
    """A type itself, or what a variable may be."""
    literal = re.fullmatch(r"tensor\((\w+)\)", variable)
    return [literal[1]] if literal else kernel["types"].get(variable, [])


def _dtype(kind: int) -> str:
    name: str = onnx.TensorProto.DataType.Name(kind).lower()
    return name


def read_list(page: str) -> dict[str, Kernel]:
    """What OperatorKernels.md says of the CUDA provider: the kernels of our operators, in our version of them."""
    section = page.partition('<a name="cudaexecutionprovider"/>')[2].partition("<a name=")[0]
    kernels, domain, name, parameters = {}, "", "", ""
    for line in section.splitlines():
        cells = line.split("|")
        if found := re.search(r"Operator Domain:\*\* \*([\w.]+)\*", line):
            domain = DOMAINS.get(found[1], "another")
        if len(cells) != 6 or cells[1] == "Op Name":
            continue
        name, parameters = (cells[1], cells[2]) if cells[1].strip() else (name, parameters)
        if name in OPERATORS.get(domain, ()) and _covers(cells[3], OPSET if domain == "" else 1):
            kernels[f"{domain}/{name}"] = {"variants": _variants(parameters), "types": _types(cells[4])}
    return kernels


def _covers(versions: str, opset: int) -> bool:
    """Whether "13+", "7" or "[7, 12]" has it."""
    first, *last = map(int, re.findall(r"\d+", versions))
    return first <= opset <= (last[0] if last else opset if "+" in versions else first)


def _variants(parameters: str) -> list[dict[str, list[str]]]:
    return [
        {f"{kind}puts": re.findall(rf"\*{kind}\* [\w.]+:\*\*(.+?)\*\*", variant) for kind in ("in", "out")}
        for variant in parameters.split("<br><br>or<br><br>")
    ]


def _types(cell: str) -> dict[str, list[str]]:
    found = re.findall(r"\*\*(\w+)\*\* = ((?:[\w()]+(?:, )?)+)", cell)
    return {name: re.findall(r"(?<!\()tensor\((\w+)\)", types) for name, types in found}


def main() -> None:
    """Write the asset."""
    page, commit = sys.argv[1:]
    source = f"https://github.com/microsoft/onnxruntime/blob/{commit}/docs/OperatorKernels.md"
    data = {"source": source, "opset": OPSET, "kernels": read_list(Path(page).read_text())}
    ASSET.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
