"""The audio encoders as graphs, by their kind: one file for each."""

from collections.abc import Callable

from export.encoders.beats import build_beats
from export.encoders.eat import build_eat
from export.graph import GraphBuilder

# (config, tensors, weights, linear, max_frames, blocks) -> fbank [1, F, bins] to audio [1, tokens, dim], for F up to
# `max_frames`; with `blocks` the frames come behind others, of which the graph keeps what it needs (docs/bundle.md).
BUILDERS: dict[str, Callable[..., GraphBuilder]] = {"beats": build_beats, "eat": build_eat}
