"""A stage whose output is no number: one error, which names it, however it is asked and whatever runs it."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from salmonrun.runtime import Engine, GenerationConfig, StreamConfig, TranscribeConfig
from salmonrun.runtime.bundle import open_bundle
from salmonrun.runtime.decoder import Chunk
from salmonrun.runtime.errors import NotFiniteError
from salmonrun.runtime.finite import check_finite
from salmonrun.runtime.rounds import run_together
from salmonrun.runtime.search import StopRules, decode
from tests.helpers.fakes import FakeDecoder, random_logits
from tests.helpers.streams import noise

STAGES = {"whisper": "Whisper encoder", "audio_encoder": "audio encoder", "qformer": "Q-Former", "llm": "LLM"}
# A second of nearly nothing, and one of what may be speech.
RECORDING = np.concatenate([noise(16_000) / 1000, noise(16_000, 1)])
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "sampling": {"do_sample": True, "seed": 0, "top_p": 0.9},
}


def weights_of(bundle: Path, stage: str, native: bool) -> Path:
    manifest = open_bundle(bundle, verify=False).manifest
    if native and stage == "llm":
        assert manifest.llm.weights.native
        return bundle / manifest.llm.weights.native.file
    if native and stage != "qformer":
        assert manifest.encoders
        return bundle / manifest.encoders.parts[stage].file
    return bundle / manifest.graphs[stage].weights


def spoilt(bundle: Path, stage: str, native: bool, folder: Path) -> Path:
    """A copy of which the second half of a stage's weights is ones: NaN in every precision of floats."""
    copy = Path(shutil.copytree(bundle, folder / "bundle"))
    file = weights_of(copy, stage, native)
    size = file.stat().st_size
    with file.open("r+b") as content:
        content.seek(size // 2)
        content.write(b"\xff" * (size - size // 2))
    return copy


def transcribe_all(engine: Engine, generation: GenerationConfig) -> None:
    config = TranscribeConfig(overlap_s=1.0, vad="energy")
    list(engine.transcribe(RECORDING, sample_rate=16_000, generation=generation, config=config)[0])


def stream_all(engine: Engine, policy: Any) -> None:
    with engine.stream(config=StreamConfig(policy=policy, endpoint=None)) as stream:
        stream.push(RECORDING)
        stream.finish()


@pytest.mark.onnx
@pytest.mark.parametrize("runtime", ["onnx", "native"])
@pytest.mark.parametrize("stage", STAGES)
def test_the_stage_is_named_by_all_ways_to_ask(
    runtime: str, stage: str, runtimes: dict[str, Path], tmp_path: Path
) -> None:
    if runtime not in runtimes:
        pytest.skip("the native kernels were not built")
    bundle = spoilt(runtimes[runtime], stage, runtime == "native", tmp_path)
    engine = Engine.load(bundle, verify=False, decoder=runtime, encoder=runtime)  # type: ignore[arg-type]
    message = rf"the output of the {STAGES[stage]} has \d+ values of \d+ that are not finite, the first is -?(nan|inf)"
    for way, settings in WAYS.items():
        with pytest.raises(NotFiniteError, match=message):
            engine.generate(RECORDING, sample_rate=16_000, config=GenerationConfig(**settings))
        if way != "sampling":
            with pytest.raises(NotFiniteError, match=message):
                transcribe_all(engine, GenerationConfig(**settings))
    with pytest.raises(NotFiniteError, match=message), engine.listen(RECORDING, sample_rate=16_000) as heard:
        heard.ask(task="asr")
    for policy in ("agreement", "block"):
        with pytest.raises(NotFiniteError, match=message):
            stream_all(engine, policy)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_others_of_a_round_go_on(value: float) -> None:
    """Of three searches one gets a single value that is none after two tokens."""
    clean = random_logits(20, 1)

    def logits(history: tuple[int, ...]) -> np.ndarray:
        row = clean(history)
        if history[0] == 2 and len(history) == 4:
            row[7] = value
        return row

    def answers(decoder: FakeDecoder, first: list[int]) -> list[Any]:
        with decoder.open(len(first), 20) as slots:
            config, stop = GenerationConfig(max_new_tokens=6), StopRules(frozenset())
            prompts = [Chunk(slot, [token, 0]) for slot, token in zip(slots, first, strict=True)]
            return [run.tokens for run in run_together(decoder, [decode(prompt, config, stop) for prompt in prompts])]

    expected = answers(FakeDecoder(clean), [1, 3])
    decoder = FakeDecoder(logits)
    assert answers(decoder, [1, 3]) == expected
    with pytest.raises(NotFiniteError, match="the LLM has 1 values of"):
        answers(decoder, [1, 2, 3])
    assert max(len(chunks) for chunks in decoder.rounds) == 3


def test_large_values_and_none_at_all_are_finite() -> None:
    check_finite(np.full(10, 3e38, np.float32), "LLM")
    check_finite(np.zeros((0, 5), np.float32), "LLM")
