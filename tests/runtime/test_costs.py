"""What a request costs, in what can be counted: operator calls, tokens, positions copied, bytes. Never seconds."""

import json
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from salmonrun.runtime import Engine, GenerationConfig, StreamConfig
from salmonrun.runtime.arrays import F32
from salmonrun.runtime.audio import SAMPLE_RATE, load_audio
from salmonrun.runtime.decoder import prefill, step
from salmonrun.runtime.decoders.kv_cache import Rows, Slot
from salmonrun.runtime.decoders.onnx_decoder import OnnxDecoder, SessionGraph
from salmonrun.runtime.latency.recording import STORY
from salmonrun.runtime.session import Graph, load_graph, session_options

TOKENS = 12
ANSWER = GenerationConfig(max_new_tokens=TOKENS, stop_token_ids=())
BEAMS = GenerationConfig(max_new_tokens=TOKENS, num_beams=4, stop_token_ids=())
LAYERS, BEATS_LAYERS, WHISPER_LAYERS = 4, 2, 4  # of the demo checkpoint


@pytest.fixture(scope="module")
def story() -> F32:
    return load_audio(STORY).pcm[: 4 * SAMPLE_RATE]


@pytest.fixture(scope="module")
def demo_engine(demo_bundle: Path) -> Engine:
    """On ONNX Runtime, whose graphs and operators can be counted."""
    return Engine.load(demo_bundle, decoder="onnx", encoder="onnx")


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Runs of each encoder graph, runs and rows of the LLM, and positions copied between slots."""
    counts: Counter[str] = Counter()
    run, run_on, run_llm, copy = Graph.run, Graph.run_on, SessionGraph.run, Slot.copy_from

    def counted_run(graph: Graph, **inputs: Any) -> F32:
        counts[graph.name] += 1
        return run(graph, **inputs)

    def counted_run_on(graph: Graph, past: dict[str, F32], **inputs: Any) -> tuple[F32, dict[str, F32]]:
        counts[graph.name] += 1
        return run_on(graph, past, **inputs)

    def counted_run_llm(graph: SessionGraph, inputs: dict[str, Any], cache_rows: Rows, logits: F32) -> None:
        rows, positions, _ = inputs["inputs_embeds"].shape
        counts["llm"] += 1
        counts["positions"] += rows * positions
        counts["logits"] += rows * len(inputs["logit_positions"])
        run_llm(graph, inputs, cache_rows, logits)

    def counted_copy(slot: Slot, source: Slot, length: int) -> int:
        copied = copy(slot, source, length)
        counts["copied"] += copied
        return copied

    with monkeypatch.context() as patch:
        patch.setattr(Graph, "run", counted_run)
        patch.setattr(Graph, "run_on", counted_run_on)
        patch.setattr(SessionGraph, "run", counted_run_llm)
        patch.setattr(Slot, "copy_from", counted_copy)
        yield counts


def prompt_length(engine: Engine, pcm: F32) -> int:
    return engine.model.positions(engine.model.request("asr", config=ANSWER), len(pcm)) - TOKENS


def test_a_greedy_request(demo_engine: Engine, story: F32, monkeypatch: pytest.MonkeyPatch) -> None:
    with counted(monkeypatch) as counts:
        demo_engine.generate(story, sample_rate=SAMPLE_RATE, task="asr", config=ANSWER)
    assert {graph: counts[graph] for graph in ("whisper", "audio_encoder", "qformer")} == {
        "whisper": 1,
        "audio_encoder": 1,
        "qformer": 1,
    }
    assert counts["llm"] == TOKENS  # a prefill, and a step for each further token
    assert counts["positions"] == prompt_length(demo_engine, story) + TOKENS - 1
    assert counts["logits"] == TOKENS  # of the last position alone
    assert counts["copied"] == 0


def test_beams_copy_the_prompt_once(demo_engine: Engine, story: F32, monkeypatch: pytest.MonkeyPatch) -> None:
    with counted(monkeypatch) as counts:
        demo_engine.generate(story, sample_rate=SAMPLE_RATE, task="asr", config=BEAMS)
    prompt = prompt_length(demo_engine, story)
    assert counts["llm"] == TOKENS  # the four beams take a step together
    assert counts["positions"] == prompt + 4 * (TOKENS - 1)
    assert 3 * prompt <= counts["copied"] <= 3 * prompt + 3 * TOKENS * (TOKENS - 1) / 2


def test_a_question_about_what_was_heard_encodes_nothing(
    demo_engine: Engine, story: F32, monkeypatch: pytest.MonkeyPatch
) -> None:
    with demo_engine.listen(story, sample_rate=SAMPLE_RATE) as heard:
        kept = heard._lease.slots[0].length
        with counted(monkeypatch) as counts:
            heard.ask(task="asr", config=ANSWER)
    assert counts.keys() == {"llm", "positions", "logits", "copied"}
    assert counts["positions"] == prompt_length(demo_engine, story) - kept + TOKENS - 1
    assert counts["copied"] == kept


def test_a_stream_encodes_each_block_once(demo_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    pcm = load_audio(STORY).pcm[: round(5.12 * SAMPLE_RATE)]  # four blocks of 1.28 s
    config = StreamConfig(endpoint=None, block_s=1.28)
    with counted(monkeypatch) as counts, demo_engine.stream(task="asr", config=config) as stream:
        updates = [update for piece in np.array_split(pcm, 50) for update in stream.push(piece)]
        stream.finish()
    assert len(updates) == 3  # the last block is complete 15 ms after its end: it is left to finish()
    assert counts["whisper"] == counts["audio_encoder"] == counts["qformer"] == 4
    ids = demo_engine.model.request("asr").prompt
    audio = demo_engine.model.encoder.count(len(pcm))
    assert counts["copied"] == 0
    # Audio goes through the LLM once; the instruction and the draft once for each answer; the rest token by token.
    drafts = counts["positions"] - len(ids.before) - audio - 4 * len(ids.after)
    assert 0 <= drafts <= 4 * 2 * GenerationConfig().max_new_tokens


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "whisper",
            {"DynamicQuantizeMatMul": 4 * WHISPER_LAYERS, "MultiHeadAttention": WHISPER_LAYERS},
        ),
        ("audio_encoder", {"DynamicQuantizeMatMul": 4 * BEATS_LAYERS + 1, "MultiHeadAttention": BEATS_LAYERS}),
        ("llm", {"MatMulNBits": 5 * LAYERS + 1, "GroupQueryAttention": LAYERS, "MatMul": 0, "Concat": 0}),
    ],
)
def test_operators_that_run(
    demo_engine: Engine, tmp_path: Path, name: str, expected: dict[str, int], story: F32
) -> None:
    """What ONNX Runtime makes of a graph: counted by its own profiler, in one run."""
    counts = profiled(demo_engine, name, story, tmp_path)
    assert {operator: counts[operator] for operator in expected} == expected


def profiled(engine: Engine, name: str, pcm: F32, folder: Path) -> Counter[str]:
    """Operator -> how often it ran, in one run of a graph (of the LLM: a step)."""
    spec = engine.bundle.manifest.graphs[name]
    options = session_options(1)
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    session = onnxruntime.InferenceSession(str(engine.bundle.path(spec.file)), options)
    graph = Graph(name, session, spec)
    if name == "llm":
        run_step(engine, graph)
    elif name == "whisper":
        mel = np.pad(engine.model.encoder.log_mel(pcm), ((0, 0), (1, 1)))
        graph.run(log_mel=mel[None], start=np.zeros(1, np.int64))
    else:
        bank = engine.model.encoder.filter_bank(pcm)
        assert bank is not None
        graph.run(fbank=bank[None])
    events = json.loads(Path(session.end_profiling()).read_text())
    return Counter(event["args"]["op_name"] for event in events if event["name"].endswith("_kernel_time"))


def run_step(engine: Engine, graph: Graph) -> None:
    decoder = OnnxDecoder(engine.bundle, SessionGraph(graph, "cpu"))
    with decoder.open(1, 8) as (slot,):
        step(decoder, [slot], [1])


def test_a_step_allocates_little_more_than_its_logits(demo_engine: Engine, story: F32) -> None:
    """The KV is updated in place: nothing that grows with its length is allocated for a token."""
    decoder = demo_engine.model.decoder
    spec = demo_engine.bundle.manifest.llm
    cache_bytes = 2 * spec.layers * spec.kv_heads * spec.head_dim * 4 * 1000
    with decoder.open(1, 1000) as (slot,):
        prefill(decoder, slot, np.zeros((900, spec.dim), np.float32))
        step(decoder, [slot], [1])
        tracemalloc.start()
        step(decoder, [slot], [1])
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 4 * spec.vocab_size + 64 * 1024 < cache_bytes / 10


def test_bytes_of_the_bundle(demo_engine: Engine) -> None:
    """int4: half a byte a weight and a float32 scale for 32; int8 heads a byte; int8 encoders a byte."""
    files = {name: spec.size for name, spec in demo_engine.bundle.manifest.files.items()}
    llm = demo_engine.bundle.manifest.llm
    config = json.loads((Path(__file__).parents[2] / "demo" / "checkpoint" / "config.json").read_text())["llm"]
    heads = config["num_attention_heads"] + 2 * llm.kv_heads
    weights = (
        llm.dim * llm.head_dim * (heads + config["num_attention_heads"]) + 3 * llm.dim * config["intermediate_size"]
    )
    expected = LAYERS * weights * (0.5 + 4 / 32) + llm.vocab_size * llm.dim * (1 + 4 / 32)
    expected += 2 * llm.max_length * llm.head_dim / 2 * 4 + (2 * LAYERS + 1) * llm.dim * 4  # rotary tables, norms
    pages = 4096 * (4 * 5 * LAYERS + 4)  # each tensor begins a page
    assert expected <= files["llm/decoder.onnx.data"] <= expected + pages


def test_loading_reads_no_graph_twice(demo_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    plain = onnxruntime.InferenceSession

    def session(path: str, *arguments: Any, **options: Any) -> onnxruntime.InferenceSession:
        made.append(Path(path).name)
        return plain(path, *arguments, **options)

    monkeypatch.setattr(load_graph.__globals__["onnxruntime"], "InferenceSession", session)
    Engine.load(demo_engine.bundle.folder, threads=1, decoder="onnx", encoder="onnx")
    assert sorted(made) == ["audio_encoder.onnx", "decoder.onnx", "qformer.onnx", "whisper.onnx"]
