"""A bundle's LLM run in pieces: the same graph and weights, of which memory holds a few layers at a time."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from salmonrun.export.graphs.llm import layer_start
from salmonrun.runtime.arrays import F32, Array
from salmonrun.runtime.bundle import Bundle
from salmonrun.runtime.cores import usable_cores
from salmonrun.runtime.decoder import DecoderReport
from salmonrun.runtime.decoders.kv_cache import Rows
from salmonrun.runtime.decoders.onnx_decoder import named_buffers
from salmonrun.runtime.session import session_options

PIECE_BYTES = 2**30  # of weights; ONNX Runtime packs them anew, so that a session takes twice that while it is made


@dataclass(frozen=True)
class Piece:
    """A part of a graph, as a graph of its own on the same weight file."""

    model: bytes
    size: int  # bytes of its weights


def cut(path: Path, layers: int, limit: int) -> list[Piece]:
    """Cut an LLM's graph in front of layers, or of what is behind the last one, into pieces of at most `limit` bytes.

    A single layer may be larger. What one piece computes and another needs becomes an output and an input.
    """
    model = onnx.load(path, load_external_data=False)
    nodes = list(model.graph.node)
    first = {node.output[0]: i for i, node in enumerate(nodes)}
    starts = [0, *(first[layer_start(i, layers)] for i in range(1, layers + 1)), len(nodes)]
    sizes = {tensor.name: _external_bytes(tensor) for tensor in model.graph.initializer}
    pieces: list[tuple[list[onnx.NodeProto], int]] = []
    for start, end in pairwise(starts):
        section = nodes[start:end]
        size = sum(sizes.get(name, 0) for name in {name for node in section for name in node.input})
        if pieces and pieces[-1][1] + size <= limit:
            pieces[-1] = (pieces[-1][0] + section, pieces[-1][1] + size)
        else:
            pieces.append((section, size))
    return [Piece(_part(model, section), size) for section, size in pieces]


def _external_bytes(tensor: onnx.TensorProto) -> int:
    return next((int(entry.value) for entry in tensor.external_data if entry.key == "length"), 0)


def _part(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> bytes:
    """These nodes of a graph, with what they need as inputs and what they give to others as outputs."""
    graph = model.graph
    inside = {id(node) for node in nodes}
    needed = {name for node in nodes for name in node.input if name}
    given = {name for node in nodes for name in node.output if name}
    others = {name for node in graph.node if id(node) not in inside for name in node.input}
    known = {value.name: value for value in (*graph.input, *graph.output)}
    weights = [tensor for tensor in graph.initializer if tensor.name in needed]
    activations = next(value.type.tensor_type.elem_type for value in graph.input if value.name == "inputs_embeds")

    def values(names: Iterable[str]) -> list[onnx.ValueInfoProto]:
        return [known.get(name) or helper.make_tensor_value_info(name, activations, None) for name in sorted(names)]

    part = helper.make_graph(
        nodes,
        "piece",
        values(needed - given - {tensor.name for tensor in weights}),
        values(name for name in given if name in others or name in known),
        weights,
    )
    made = helper.make_model(part, ir_version=model.ir_version, opset_imports=model.opset_import)
    return bytes(made.SerializeToString())


class PiecewiseGraph:
    """Satisfies `LlmGraph`: each run loads the pieces one after the other. Slow."""

    def __init__(self, bundle: Bundle, pieces: list[Piece], progress: Callable[[int], object]) -> None:
        self._folder = bundle.path(bundle.manifest.graphs["llm"].file).parent
        self._pieces = pieces
        self._progress = progress

    def run(self, inputs: dict[str, Array], rows: Rows, logits: F32) -> None:
        """What one piece gives, those behind it take."""
        values = {**inputs, **named_buffers(rows)}
        for piece in self._pieces:
            values |= self._run_piece(piece, values)
            self._progress(piece.size)
        logits[:] = values["logits"]

    def describe(self) -> DecoderReport:
        """It is ONNX Runtime all the same."""
        return DecoderReport("onnx", "cpu", ("CPUExecutionProvider",), usable_cores())

    def _run_piece(self, piece: Piece, values: dict[str, Array]) -> dict[str, Array]:
        """What the piece gives but keys and values, which it writes where they are."""
        options = session_options(usable_cores())
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(self._folder))
        session = onnxruntime.InferenceSession(piece.model, options, providers=["CPUExecutionProvider"])
        binding = session.io_binding()
        for name in (node.name for node in session.get_inputs()):
            value = onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(values[name]))
            binding.bind_ortvalue_input(name, value)
            if name.startswith("past_"):
                binding.bind_ortvalue_output(name.replace("past_", "present_"), value)
        names = [node.name for node in session.get_outputs() if not node.name.startswith("present_")]
        for name in names:
            binding.bind_output(name)
        session.run_with_iobinding(binding)
        found = binding.get_outputs()[-len(names) :]  # in the order they were bound
        return {name: value.numpy() for name, value in zip(names, found, strict=True)}
