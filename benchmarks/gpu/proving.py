"""`make test-gpu`: whether a device computes what the CPU does; a step that finds otherwise fails."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.models import loaded
from benchmarks.gpu.plan import Plan
from salmonrun.runtime import Engine, GenerationConfig
from salmonrun.runtime.arrays import F32
from salmonrun.runtime.audio import load_audio
from salmonrun.runtime.decoder import Chunk, prefill, step
from salmonrun.runtime.doctor import examine
from salmonrun.runtime.golden import check
from salmonrun.runtime.latency.machine import describe_machine
from salmonrun.runtime.parity import StageError

RECORDINGS = sorted(Path("demo/recordings").glob("*.flac"))
# Relative errors (rms) by what the encoders are in: float32 in another order of sums; 16 bits beside float32.
STAGE_ERRORS = {"fp32": 1e-3, "fp16": 1e-2}
LLM_ERROR = 5e-2  # of logits in bfloat16 beside float32
PROMPTS = (5, 70, 300, 17, 1)  # tokens


def machine(plan: Plan) -> dict[str, Any]:
    """What there is."""
    diagnosis = examine()
    assert not plan.on_gpu or diagnosis.runs_on("gpu"), "no bundle runs on a GPU here: salmonrun doctor says why"
    return {"machine": describe_machine(), "findings": [asdict(finding) for finding in diagnosis.findings]}


def stages(plan: Plan, bundle: str) -> dict[str, Any]:
    """Relative errors of every stage of a recording beside the same bundle on the CPU, each given what the CPU has."""
    with loaded(plan, bundle, plan.device) as there, loaded(plan, bundle, "cpu") as here:
        audio = load_audio(RECORDINGS[0])
        mel, bank = here.model.encoder.features(audio.pcm)
        assert bank is not None, "the demo has an audio encoder"
        encoders = [engine.model.encoder for engine in (there, here)]
        pairs = {"whisper": [encoder.whisper(mel) for encoder in encoders]}
        pairs["audio_encoder"] = [encoder.audio_encoder(bank) for encoder in encoders]
        states = pairs["whisper"][1], pairs["audio_encoder"][1]
        pairs["qformer"] = [encoder.qformer(*states) for encoder in encoders]
        pairs["all, without leaving the device"] = [encoder.encode(audio) for encoder in encoders]
        limits = dict.fromkeys(pairs, STAGE_ERRORS[here.bundle.manifest.precision.whisper])
        embeds = here.model.inputs_embeds(here.model.request(None, "?").prompt, pairs["qformer"][1])
        pairs["llm"], limits["llm"] = [_prefilled(engine, embeds) for engine in (there, here)], LLM_ERROR
        errors = {name: StageError.between(*pair).relative for name, pair in pairs.items()}
        wrong = {name: error for name, error in errors.items() if not error <= limits[name]}
        assert not wrong, f"relative errors are {wrong}; expected at most {limits}"
        return {"relative": errors, "report": asdict(there.report())}


def tokens(plan: Plan, bundle: str) -> dict[str, Any]:
    """Whether the golden run passes, and how many answers are the CPU's, of which half precision may change some."""
    with loaded(plan, bundle, plan.device) as there, loaded(plan, bundle, "cpu") as here:
        golden = check(there)
        assert golden.passed, f"the golden run differs: {golden}"
        answers = [[_answer(engine, path) for path in RECORDINGS] for engine in (there, here)]
        equal = sum(one == other for one, other in zip(*answers, strict=True))
        assert equal >= 0.9 * len(RECORDINGS), f"{equal} of {len(RECORDINGS)} answers are the CPU's"
        return {"logits_difference": golden.logits_difference, "answers": len(RECORDINGS), "equal": equal}


def rounds(plan: Plan, bundle: str) -> dict[str, Any]:
    """Whether steps together choose the tokens of steps alone, and a round again gives the same bits."""
    with loaded(plan, bundle, plan.device) as engine:
        together, again, alone = (_logits(engine, how) for how in (True, True, False))
        assert np.array_equal(together, again), "a round again gives other bits"
        error = StageError.between(together, alone).relative
        assert error <= LLM_ERROR, f"steps together are {error:.1e} from steps alone; expected at most {LLM_ERROR:g}"
        return {"relative": error, "agreeing": float(np.mean(together.argmax(-1) == alone.argmax(-1)))}


def _prefilled(engine: Engine, embeds: F32) -> F32:
    with engine.model.decoder.open(1, len(embeds)) as (slot,):
        return prefill(engine.model.decoder, slot, embeds)


def _logits(engine: Engine, together: bool) -> F32:
    """Of three steps behind several prompts: [3, prompts, V]."""
    decoder, rng = engine.model.decoder, np.random.default_rng(0)
    prompts = [rng.integers(0, 200, count).tolist() for count in PROMPTS]
    with decoder.open(len(prompts), 512) as slots:
        for slot, ids in zip(slots, prompts, strict=True):
            prefill(decoder, slot, decoder.embed(ids))
        if together:
            return np.stack([step(decoder, slots, [7] * len(slots)) for _ in range(3)])
        return np.stack([np.concatenate([decoder.forward([Chunk(slot, [7])])[0] for slot in slots]) for _ in range(3)])


def _answer(engine: Engine, path: Path) -> list[int]:
    return engine.generate(path, task="asr", config=GenerationConfig(max_new_tokens=32)).token_ids
