"""The bundles that cases are changes of: tiny ones, made by the real exporter."""

from dataclasses import replace
from pathlib import Path

from salmonrun.export import ExportOptions, export_bundle
from salmonrun.training.model.config import ModelConfig
from salmonrun.training.starting.init import init_checkpoint
from salmonrun.training.starting.presets import preset
from tests.helpers.streams import block_causal


def export_bundles(folder: Path) -> None:
    """For ONNX Runtime alone, for our own kernels, and of encoders that hear in blocks."""
    ours = ExportOptions(encoder="native", decoder="native", encoder_precision="int8", llm_precision="int8")
    _export(folder, "onnx", preset("tiny"), ExportOptions(encoder="onnx"))
    # Random weights amplify what 8 bits round off.
    _export(folder, "native", preset("tiny"), replace(ours, parity_budget=9.0, token_agreement=0.0))
    _export(folder, "blocks", block_causal(max_s=4.0), ExportOptions(encoder="onnx"))


def _export(folder: Path, kind: str, config: ModelConfig, options: ExportOptions) -> None:
    checkpoint = folder / f"{kind}-checkpoint"
    init_checkpoint(config, checkpoint)
    export_bundle(checkpoint, folder / kind, options)
