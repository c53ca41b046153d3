"""The audio encoders as graphs, by their kind: one file for each."""

from collections.abc import Callable

from salmonrun.export.graphs.builder import GraphBuilder
from salmonrun.export.graphs.encoders.beats import build_beats
from salmonrun.export.graphs.encoders.eat import build_eat

# (config, tensors, weights, linear, max_frames, blocks) -> fbank [1, F, bins] to audio [1, tokens, dim], for F up to
# `max_frames`; with `blocks` the frames come behind others, of which the graph keeps what it needs (docs/bundle.md).
BUILDERS: dict[str, Callable[..., GraphBuilder]] = {"beats": build_beats, "eat": build_eat}
