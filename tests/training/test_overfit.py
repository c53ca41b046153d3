"""The whole way at its smallest: eight utterances are learnt by heart, and the exported bundle says them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from salmonrun.export import ExportOptions, export_bundle
from salmonrun.runtime import Engine
from salmonrun.training.data.config import DataConfig, DataSet
from salmonrun.training.finetuning.finetune import finetune
from salmonrun.training.finetuning.recipe import Recipe, RunConfig, TrainedParts
from salmonrun.training.starting.init import init_checkpoint
from salmonrun.training.starting.presets import preset
from salmonrun.training.synthesis.plan import Plan
from salmonrun.training.synthesis.synthesize import synthesize

MISSING = [program for program in ("espeak-ng", "flite") if shutil.which(program) is None]
STEPS = 120


@pytest.mark.skipif(bool(MISSING), reason=f"not installed: apt-get install {' '.join(MISSING)}")
def test_eight_utterances_are_learnt_by_heart(tmp_path: Path) -> None:
    annotation = synthesize(tmp_path / "data", Plan(speech=8, sounds=0, mixtures=0, seed=1))
    tiny = preset("tiny")
    init_checkpoint(replace(tiny, audio=replace(tiny.audio, window="trimmed")), tmp_path / "start", fresh=True)
    run = RunConfig(
        str(tmp_path / "run"),
        steps=STEPS,
        batch_size=8,
        optimizer="muon",
        lr=5e-3,
        min_lr=5e-4,
        warmup_steps=10,
        weight_decay=0.0,
        ctc_weight=0.1,
        log_every=STEPS // 4,
        save_every=STEPS,
    )
    everything = TrainedParts(whisper=True, audio_encoder=True, qformer=True, llm=True)
    data = DataConfig((DataSet(str(annotation)),), cache=str(tmp_path / "cache"))
    final = finetune(Recipe(str(tmp_path / "start"), data, run, everything))
    history = json.loads((tmp_path / "run" / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())["log_history"]
    assert [entry["answer_loss"] for entry in history if "answer_loss" in entry][-1] < 0.05

    export_bundle(final, tmp_path / "bundle", ExportOptions(encoder_precision="int8", llm_precision="int8"))
    engine = Engine.load(tmp_path / "bundle")
    for entry in json.loads(annotation.read_text())["annotation"]:
        assert engine.generate(annotation.parent / entry["path"], task="asr").text == entry["text"]
