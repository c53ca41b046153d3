"""Whether a bundle's graphs are what its manifest says and what the engine calls, before ONNX Runtime sees them."""

from collections.abc import Sequence
from pathlib import Path

from salmonrun.runtime.errors import BundleError
from salmonrun.runtime.manifest import MANIFEST, GraphSpec, Manifest, TensorSpec
from salmonrun.runtime.onnx_file import MAX_ONNX_BYTES, OnnxFile, OnnxFileError, read_onnx

GRAPHS = ("whisper", "qformer", "audio_encoder", "llm", "draft")
DRAFT_SYMBOLS = 257  # the bytes, and CTC's blank behind them

# Every operator that the exporter writes, by domain. What is not here has never run in this engine.
OPERATORS: dict[str, tuple[str, ...]] = {
    "": (
        "Add", "Cast", "Concat", "ConstantOfShape", "Conv", "Div", "Equal", "Gather", "Gelu", "Identity",
        "LayerNormalization", "MatMul", "Max", "Mul", "NonZero", "Pad", "Range", "ReduceSum", "Reshape", "ScatterND",
        "Shape", "Sigmoid", "SimplifiedLayerNormalization", "Slice", "Softmax", "Split", "Squeeze", "Sub", "TopK",
        "Transpose", "Unsqueeze",
    ),
    "com.microsoft": (
        "DynamicQuantizeMatMul", "GroupQueryAttention", "MatMulNBits", "MultiHeadAttention", "QuickGelu",
        "SkipSimplifiedLayerNormalization",
    ),
}  # fmt: skip


def check_graph(path: Path, spec: GraphSpec, data_size: int, heads: int | None = None) -> None:
    """Whether a graph's file is the graph that the manifest describes.

    Args:
        path: of the .onnx.
        spec: what the manifest says.
        data_size: bytes of the file beside it that holds its large tensors; 0 if there is none.
        heads: that its attention has; None: any.

    Raises:
        BundleError: it is another graph, or one that must not be run.
    """
    if path.suffix != ".onnx":  # ONNX Runtime reads an .ort as another format, which nothing here has looked at
        raise BundleError(f"{path} is used as a graph; its name must end in .onnx")
    try:
        with path.open("rb") as file:
            # No more than there is: `read` takes the memory for all that it is asked for.
            graph = read_onnx(file.read(min(path.stat().st_size, MAX_ONNX_BYTES) + 1))
    except OnnxFileError as error:
        raise BundleError(f"{path} cannot be run: {error}; export the bundle again") from error
    for kind, found, described in (("inputs", graph.inputs, spec.inputs), ("outputs", graph.outputs, spec.outputs)):
        if found != described:
            own, wanted = _without(found, described), _without(described, found)
            raise BundleError(f"{path} has {kind} {own or 'in another order'}; {MANIFEST} says {wanted or 'otherwise'}")
    if heads is not None and graph.heads != {heads}:
        raise BundleError(f"{path} has {sorted(graph.heads)} heads, {MANIFEST} says {heads}")
    _check_operators(path, graph)
    _check_external(path, Path(spec.weights).name, graph, data_size)


def _check_operators(path: Path, graph: OnnxFile) -> None:
    unknown = graph.domains - OPERATORS.keys()
    if unknown:
        raise BundleError(f"{path} uses operator sets {sorted(unknown)}; only {sorted(OPERATORS)} are run")
    for domain, kind in sorted(graph.operators):
        if kind not in OPERATORS.get(domain, ()):
            raise BundleError(
                f"{path} has the operator {kind!r} of domain {domain!r}, which no exporter of this format writes"
            )


def _check_external(path: Path, data: str, graph: OnnxFile, data_size: int) -> None:
    for tensor in graph.external:
        if tensor.location != data:
            raise BundleError(f"{path}: tensor {tensor.tensor!r} lies in {tensor.location!r}; it must lie in {data!r}")
        if tensor.offset + tensor.length > data_size:
            raise BundleError(
                f"{path}: tensor {tensor.tensor!r} ends at byte {tensor.offset + tensor.length} of {data}, "
                f"which has {data_size}"
            )


def check_signatures(manifest: Manifest) -> None:
    """Whether the graphs that the manifest describes are called as docs/bundle.md says.

    Raises:
        BundleError: names the graph and what is wrong with it.
    """
    names = set(manifest.graphs)
    missing, unknown = {"qformer"} - names, names - set(GRAPHS)
    if not manifest.encoder_runtimes:
        missing.add("whisper")
    if missing or unknown:
        raise BundleError(f"has no graph {sorted(missing)}, or unknown ones {sorted(unknown)}; known are {GRAPHS}")
    hears = any(spec.name == "audio" for spec in manifest.graphs["qformer"].inputs)
    if ("audio_encoder" in names) != (hears and "whisper" in names):
        raise BundleError("the inputs of qformer and the graph audio_encoder do not fit together")
    if hears != (manifest.fbank is not None):
        raise BundleError("fbank and the inputs of qformer do not fit together")
    _check_native_encoders(manifest, hears)
    if ("llm" in names) != ("onnx" in manifest.llm.weights.decoders):
        raise BundleError("llm.weights.onnx and the graph llm do not fit together: a bundle has both or neither")
    for name, graph in manifest.graphs.items():
        inputs, outputs = _expected(manifest, name)
        _compare(f"inputs of {name}", graph.inputs, inputs)
        _compare(f"outputs of {name}", graph.outputs, outputs)


def _check_native_encoders(manifest: Manifest, hears: bool) -> None:
    """Whether they are the encoders that the rest of the bundle is for; `hears`: there is an audio encoder."""
    if manifest.encoders is None:
        return
    if hears != (manifest.encoders.audio_encoder is not None):
        raise BundleError("encoders.audio_encoder and the inputs of qformer do not fit together")
    if manifest.target != "cpu":
        raise BundleError(f"encoders are for CPUs, the target is {manifest.target}")
    if manifest.streaming and manifest.encoders.audio_encoder and manifest.encoders.audio_encoder.kind == "eat":
        raise BundleError("streaming and encoders.audio_encoder do not fit together: EAT does not hear in blocks")
    for name, part in manifest.encoders.parts.items():
        said = getattr(manifest.precision, name)
        if part.precision != said:
            raise BundleError(f"encoders.{name} is {part.precision}, precision.{name} is {said}")


def _compare(what: str, found: Sequence[TensorSpec], expected: Sequence[TensorSpec]) -> None:
    """Names and types must be equal, and dimensions where a number is expected; a name means a free one."""
    by_name = {spec.name: spec for spec in expected}
    for spec in found:
        wanted = by_name.pop(spec.name, None)
        if wanted is None or not _fits(spec, wanted):
            described = "no such tensor" if wanted is None else _show(wanted)
            raise BundleError(f"{what}: {_show(spec)} is there; expected {described}")
    if by_name:
        raise BundleError(f"{what}: {_show(next(iter(by_name.values())))} is missing")


def _fits(found: TensorSpec, wanted: TensorSpec) -> bool:
    sizes = zip(found.dims, wanted.dims, strict=False)
    return (found.dtype, len(found.dims)) == (wanted.dtype, len(wanted.dims)) and all(
        size == expected if isinstance(expected, int) else isinstance(size, str) for size, expected in sizes
    )


def _show(spec: TensorSpec) -> str:
    return f"{spec.name} {spec.dtype} {list(spec.dims)}"


Signature = tuple[list[TensorSpec], list[TensorSpec]]  # inputs, outputs


def _expected(manifest: Manifest, name: str) -> Signature:
    """How a graph is called: docs/bundle.md, Graphs."""
    if name == "llm":
        return _llm(manifest)
    speech = TensorSpec("speech", "float32", (1, "frames", _width(manifest, "whisper", "speech")))
    audio = TensorSpec("audio", "float32", (1, "audio_tokens", _width(manifest, "audio_encoder", "audio")))
    if name == "whisper":
        given = [TensorSpec("log_mel", "float32", (1, manifest.audio.n_mels, "mel_frames"))]
        if manifest.streaming:
            given.append(TensorSpec("start", "int64", (1,)))
        return _with_past(manifest, name, given, speech)
    if name == "audio_encoder":
        bins = manifest.fbank.bins if manifest.fbank else 0
        return _with_past(manifest, name, [TensorSpec("fbank", "float32", (1, "fbank_frames", bins))], audio)
    if name == "draft":
        return [speech], [TensorSpec("draft_logits", "float32", (1, "frames", DRAFT_SYMBOLS))]
    embeds = TensorSpec("audio_embeds", "float32", (1, "audio_embeds", manifest.llm.dim))
    return [speech, audio] if manifest.fbank else [speech], [embeds]


def _width(manifest: Manifest, name: str, output: str) -> int:
    """Of an encoder's states; 0 if it has none, which no graph can then fit."""
    if manifest.encoders and name in manifest.encoders.parts:
        return manifest.encoders.parts[name].dim
    outputs = manifest.graphs[name].outputs if name in manifest.graphs else ()
    last = next((spec.dims[-1] for spec in outputs if spec.name == output and spec.dims), 0)
    return last if isinstance(last, int) else 0


def _with_past(manifest: Manifest, name: str, given: list[TensorSpec], result: TensorSpec) -> Signature:
    """An encoder's inputs and outputs, with what it keeps from block to block if it hears in blocks."""
    if not manifest.streaming:
        return given, [result]
    own, width = manifest.graphs[name].inputs, result.dims[-1]
    conv: tuple[int | str, ...] = (1, width, 1) if name == "whisper" else (1, _conv_steps(own), width)
    layers = sum(spec.name.startswith("past_key.") for spec in own)
    names = [f"{kind}.{layer}" for layer in range(layers) for kind in ("key", "value")]
    inputs, outputs = (
        [
            TensorSpec(f"{when}_conv", "float32", conv),
            *(TensorSpec(f"{when}_{name}", "float32", (1, when, width)) for name in names),
        ]
        for when in ("past", "present")
    )
    return given + inputs, [result, *outputs]


def _conv_steps(inputs: Sequence[TensorSpec]) -> int:
    """Steps that the audio encoder's convolution looks back; only the graph itself says so."""
    steps = next((spec.dims[1] for spec in inputs if spec.name == "past_conv" and len(spec.dims) == 3), 0)
    return steps if isinstance(steps, int) else 0


def _llm(manifest: Manifest) -> Signature:
    llm = manifest.llm
    dtype = llm.weights.onnx.dtype if llm.weights.onnx else ""
    cache = ("batch", llm.kv_heads, "capacity", llm.head_dim)
    names = [f"{kind}.{layer}" for layer in range(llm.layers) for kind in ("key", "value")]
    inputs = [
        TensorSpec("inputs_embeds", dtype, ("batch", "positions", llm.dim)),
        TensorSpec("seqlens_k", "int32", ("batch",)),
        TensorSpec("total_sequence_length", "int32", ()),
        TensorSpec("logit_positions", "int64", ("logits",)),
        *(TensorSpec(f"past_{name}", dtype, cache) for name in names),
    ]
    logits = TensorSpec("logits", "float32", ("batch", "logits", llm.vocab_size))
    return inputs, [logits, *(TensorSpec(f"present_{name}", dtype, cache) for name in names)]


def _without(some: Sequence[TensorSpec], others: Sequence[TensorSpec]) -> str:
    """The first few of some that are not among others."""
    known = set(others)
    differing = [_show(spec) for spec in some if spec not in known]
    return "; ".join(differing[:4]) + (f" and {len(differing) - 4} more" if len(differing) > 4 else "")
