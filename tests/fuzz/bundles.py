"""Bundles that agree with themselves and are hostile all the same: graphs, tables, tokenizers and golden runs."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from tests.fuzz.bundle_runs import KINDS, ask, fresh, make_bundles, put
from tests.fuzz.drafts import Rng
from tests.fuzz.manifests import change, other_text, walk
from tests.fuzz.mutations import NUMBERS, PATTERNS, other_number
from tests.helpers.damage import manifest_data

prepare = make_bundles

Files = dict[str, bytes]
Manifest = dict[str, Any]
SPECIAL = (np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-45, 0.0)


class Case:
    """A bundle while it is changed: its manifest, and files that are replaced."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = manifest_data(folder)
        self.files: Files = {}

    def read(self, name: str) -> bytes:
        """A file as it is by now."""
        return self.files.get(name) or (self.folder / name).read_bytes()

    def listed(self, ending: str) -> list[str]:
        """Names of its files that end so."""
        return [name for name in self.manifest["files"] if name.endswith(ending)]


def run(seed: int, index: int, folder: Path, material: Path) -> str:
    """The case of this number."""
    rng = np.random.default_rng((seed, index))
    bundle = fresh(material / KINDS[index % len(KINDS)], folder)
    case = Case(bundle)
    for _ in range(int(rng.integers(1, 3))):
        CHANGES[int(rng.integers(len(CHANGES)))](rng, case)
    put(bundle, case.files, case.manifest)
    return ask(bundle)


def size_everywhere(rng: Rng, case: Case) -> None:
    """One number, wherever the manifest and the graphs have it: as if it were of another model."""
    numbers = [holder[key] for _, holder, key in walk(case.manifest["llm"]) if type(holder[key]) is int]
    old, new = int(rng.choice(numbers)), other_number(rng, int(rng.choice(numbers)))
    for where, holder, key in walk(case.manifest):
        if where not in ("files", "format_version") and type(holder[key]) is int and holder[key] == old:
            holder[key] = new
    if type(new) is int and 0 <= new < 2**63:
        for name in case.listed(".onnx"):
            _edit(case, name, lambda model: _redimension(model, old, new))


def _redimension(model: onnx.ModelProto, old: int, new: int) -> None:
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.HasField("dim_value") and dim.dim_value == old:
                dim.dim_value = new


def _edit(case: Case, name: str, edit: Callable[[onnx.ModelProto], Any]) -> None:
    model = onnx.load_model_from_string(case.read(name))
    edit(model)
    case.files[name] = model.SerializeToString()


def _any_graph(rng: Rng, case: Case, edit: Callable[[onnx.ModelProto], Any]) -> None:
    _edit(case, str(rng.choice(case.listed(".onnx"))), edit)


def signature(rng: Rng, case: Case) -> None:
    """A dimension or type of an input or output, in the graph and in the manifest."""
    name = str(rng.choice(list(case.manifest["graphs"])))
    spec = case.manifest["graphs"][name]
    kind = str(rng.choice(["inputs", "outputs"]))
    place = int(rng.integers(len(spec[kind])))
    tensor = spec[kind][place]

    def edit(model: onnx.ModelProto) -> None:
        value = (model.graph.input if kind == "inputs" else model.graph.output)[place].type.tensor_type
        if tensor["dims"] and rng.random() < 0.8:
            axis = int(rng.integers(len(tensor["dims"])))
            new = int(rng.integers(0, 200)) if rng.random() < 0.7 else str(rng.choice(["free", "frames", "batch"]))
            tensor["dims"][axis] = new
            dim = value.shape.dim[axis]
            dim.Clear()
            setattr(dim, "dim_value" if isinstance(new, int) else "dim_param", new)
        else:
            tensor["dtype"], value.elem_type = [("float16", 10), ("int64", 7), ("int32", 6)][int(rng.integers(3))]

    _edit(case, spec["file"], edit)


def attribute(rng: Rng, case: Case) -> None:
    """A setting of a node: heads, axes, pads."""

    def edit(model: onnx.ModelProto) -> None:
        found = [a for node in model.graph.node for a in node.attribute if a.type in (1, 2, 7)]
        if not found:
            return
        one = found[int(rng.integers(len(found)))]
        number = NUMBERS[int(rng.integers(len(NUMBERS)))]
        near = int(rng.integers(-3, 40)) if rng.random() < 0.7 or abs(number) >= 2**63 else number
        if one.type == 1:
            one.f = float(SPECIAL[int(rng.integers(len(SPECIAL)))])
        elif one.type == 2:
            one.i = near
        elif one.ints:
            one.ints[int(rng.integers(len(one.ints)))] = near

    _any_graph(rng, case, edit)


def wiring(rng: Rng, case: Case) -> None:
    """A node takes what another one takes or gives, is of another kind, or is gone."""

    def edit(model: onnx.ModelProto) -> None:
        nodes = model.graph.node
        one, other = (nodes[int(i)] for i in rng.integers(0, len(nodes), 2))
        kind = rng.random()
        if kind < 0.6 and one.input:
            names = [*other.input, *other.output, *(tensor.name for tensor in model.graph.initializer)]
            one.input[int(rng.integers(len(one.input)))] = names[int(rng.integers(len(names)))]
        elif kind < 0.8:
            one.op_type, one.domain = other.op_type, other.domain
        elif kind < 0.9:
            nodes.remove(one)
        else:
            nodes.append(other)

    _any_graph(rng, case, edit)


def constant(rng: Rng, case: Case) -> None:
    """A small tensor of a graph: its values, its type, its shape."""

    def edit(model: onnx.ModelProto) -> None:
        inside = [tensor for tensor in model.graph.initializer if tensor.data_location != TensorProto.EXTERNAL]
        if not inside:
            return
        tensor = inside[int(rng.integers(len(inside)))]
        kind = rng.random()
        if kind < 0.3 and tensor.dims:
            tensor.dims[int(rng.integers(len(tensor.dims)))] = int(rng.choice([0, 1, 2, 7, 64, 2**20, 2**31 - 1]))
        elif kind < 0.4:
            tensor.data_type = int(rng.choice([1, 2, 3, 6, 7, 10]))
        else:
            values = np.atleast_1d(numpy_helper.to_array(tensor).copy())
            if values.size:
                flat = values.reshape(-1)
                special = SPECIAL if values.dtype.kind == "f" else (-(2**31), -1, 0, 1, 5, 1000, 2**31 - 1)
                with np.errstate(all="ignore"):
                    flat[int(rng.integers(flat.size))] = np.array(special[int(rng.integers(len(special)))]).astype(
                        values.dtype
                    )
                tensor.CopyFrom(numpy_helper.from_array(values.reshape(tuple(tensor.dims)), tensor.name))

    _any_graph(rng, case, edit)


def external(rng: Rng, case: Case) -> None:
    """Where a large tensor lies."""

    def edit(model: onnx.ModelProto) -> None:
        outside = [tensor for tensor in model.graph.initializer if tensor.data_location == TensorProto.EXTERNAL]
        if not outside:
            return
        tensor = outside[int(rng.integers(len(outside)))]
        entry = tensor.external_data[int(rng.integers(len(tensor.external_data)))]
        if entry.key == "location":
            entry.value = str(rng.choice(["../secret", "/etc/passwd", "bundle.json", "tokenizer.json", ""]))
        else:
            entry.value = str(other_number(rng, int(entry.value)))

    _any_graph(rng, case, edit)


def weights(rng: Rng, case: Case) -> None:
    """Special numbers among the weights or embeddings."""
    name = str(rng.choice([*case.listed(".data"), *case.listed(".bin")]))
    content = bytearray(case.read(name))
    begin = 4 * int(rng.integers(len(content) // 4))
    size = int(rng.integers(1, min(len(content) - begin, 20000) + 1))
    pattern = PATTERNS[int(rng.integers(len(PATTERNS)))]
    content[begin : begin + size] = (pattern * (size // len(pattern) + 1))[:size]
    case.files[name] = bytes(content)


def tokenizer(rng: Rng, case: Case) -> None:
    """Ids, merges, settings, anything of its JSON."""
    data = json.loads(case.read("tokenizer.json"))
    if rng.random() < 0.4 and data["model"].get("vocab"):
        words = list(data["model"]["vocab"])
        data["model"]["vocab"][words[int(rng.integers(len(words)))]] = int(rng.choice([0, 5, 300, 5000, 2**31, 2**32]))
    elif rng.random() < 0.3 and data.get("added_tokens"):
        token = data["added_tokens"][int(rng.integers(len(data["added_tokens"])))]
        token["id"], token["special"] = int(rng.choice([0, 300, 5000, 2**31])), bool(rng.random() < 0.5)
    else:
        change(rng, data)
    case.files["tokenizer.json"] = json.dumps(data).encode()


def golden(rng: Rng, case: Case) -> None:
    """Another shape, type or number in an array of the golden run; an archive that is large when it is unpacked."""
    with np.load(case.folder / "golden.npz") as file:
        arrays = dict(file)
    name = str(rng.choice(list(arrays)))
    old, kind = arrays[name], int(rng.integers(8))
    if kind == 0:
        del arrays[name]
    elif kind == 1:
        arrays[name] = np.zeros(400_000_000, np.uint8)
    elif kind == 2:
        arrays[name] = old.reshape(-1)[: int(rng.integers(0, 5))]
    elif kind == 3:
        arrays[name] = old.astype(rng.choice(["float64", "int8", "U3", "complex64", "bool"]))
    elif kind == 4:
        arrays["tolerance"] = np.float32(SPECIAL[int(rng.integers(len(SPECIAL)))])
    elif old.size and old.dtype.kind in "iu":
        changed = np.atleast_1d(old.astype(np.int64))
        changed.reshape(-1)[int(rng.integers(old.size))] = int(rng.choice([-1, 2**31, 5000, 255]))
        arrays[name] = changed.astype(old.dtype)
    elif old.size and old.dtype.kind == "f":
        changed = np.atleast_1d(old.copy())
        changed.reshape(-1)[int(rng.integers(old.size))] = SPECIAL[int(rng.integers(len(SPECIAL)))]
        arrays[name] = changed
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    damaged = bytearray(content.getvalue())
    if rng.random() < 0.2:
        damaged[int(rng.integers(len(damaged)))] ^= 1 << int(rng.integers(8))
    case.files["golden.npz"] = bytes(damaged)


def archive(rng: Rng, case: Case) -> None:
    """A header of an array that claims what is not there."""
    content = io.BytesIO()
    shape = str(tuple(int(n) for n in rng.choice([0, 1, 16, 2**20, 2**40], 2)))
    header = f"{{'descr': '{rng.choice(['<f4', '|O', '<i8', '<U9'])}', 'fortran_order': False, 'shape': {shape}}}"
    with zipfile.ZipFile(content, "w") as file:
        for name in ("pcm", "prompt", "tokens", "logit_ids", "logits", "tolerance"):
            raw = header.encode().ljust(118) + b"\n"
            file.writestr(f"{name}.npy", b"\x93NUMPY\x01\x00" + len(raw).to_bytes(2, "little") + raw)
    case.files["golden.npz"] = content.getvalue()


def prompt(rng: Rng, case: Case) -> None:
    """Templates, tasks, ids."""
    data = case.manifest["prompt"]
    kind = int(rng.integers(4))
    if kind == 0:
        data["template"] = other_text(rng, data["template"])
    elif kind == 1:
        data["tasks"] = {other_text(rng, "asr"): [other_text(rng, "<Speech><SpeechHere></Speech> Say it.")]}
    elif kind == 2:
        data["end_symbol"] = other_text(rng, "</s>")
    else:
        data["stop_token_ids"] = [int(n) for n in rng.choice([0, 2, 255, 256, 5000], 2)]


def front_end(rng: Rng, case: Case) -> None:
    """Seconds, frames, scales: what features are made by."""
    section = case.manifest[str(rng.choice([key for key in ("audio", "window", "fbank") if case.manifest[key]]))]
    key = str(rng.choice(list(section)))
    section[key] = other_number(rng, section[key])


CHANGES: tuple[Callable[[Rng, Case], None], ...] = (
    *(size_everywhere, signature, attribute, wiring, constant, external, weights),
    *(tokenizer, golden, archive, prompt, front_end),
)
