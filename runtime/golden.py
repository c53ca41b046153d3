"""Does this machine compute what the exporter did? Replays the bundle's golden run."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from salmonrun.runtime.audio import SAMPLE_RATE, load_audio
from salmonrun.runtime.decoder import prefill, step
from salmonrun.runtime.engine import Engine
from salmonrun.runtime.errors import BundleError
from salmonrun.runtime.prompt import prompt_ids

F32 = npt.NDArray[np.float32]
GOLDEN = "golden.npz"
GOLDEN_TOKENS = 16
KEPT_LOGITS = 32  # of each step: the largest

# How far logits may move on another processor, as a share of their rms. Quantized bundles round activations, and
# processors without VNNI sum in another order and, for int8 encoders, saturate.
TOLERANCE_EXACT = 1e-3
TOLERANCE_QUANTIZED = 0.1


@dataclass(frozen=True)
class CheckReport:
    """Outcome of a check."""

    logits_difference: float  # largest, over the kept logits of all steps
    tolerance: float
    tokens: int
    differing: tuple[int, ...]  # positions where another token won, near-ties left out
    near_ties: int  # positions where the exporter's first and second were closer than twice the tolerance

    @property
    def passed(self) -> bool:
        """Whether this machine computes what the exporter did."""
        return self.logits_difference <= self.tolerance and not self.differing


def save_golden(
    path: Path, pcm: F32, prompt: str, tokens: list[int], logits: F32, others: Mapping[str, F32], exact: bool
) -> None:
    """Write the golden run: of the first encoders and the first decoder that the bundle has weights for, and others.

    Args:
        path: of the file.
        pcm: the recording [N] at 16 kHz.
        prompt: what is asked about it.
        tokens: the greedy tokens [n].
        logits: [n, V] they were chosen from.
        others: logits [n, V] before the same tokens of what else can run the bundle, by `golden_suffix`.
        exact: whether the bundle computes what PyTorch does.
    """
    share = TOLERANCE_EXACT if exact else TOLERANCE_QUANTIZED
    kept = _largest(logits)
    for name, own in others.items():
        kept |= {f"{key}{name}": array for key, array in _largest(own).items()}
    np.savez_compressed(
        path,
        pcm=pcm,
        prompt=np.frombuffer(prompt.encode(), np.uint8),
        tokens=np.array(tokens, np.int64),
        tolerance=np.float32(share * max(1.0, float(np.sqrt(np.mean(np.square(logits)))))),
        **kept,  # type: ignore[arg-type]  # names that are none of the function's own
    )


def golden_suffix(decoder: str = "", encoder: str = "") -> str:
    """Of the names of arrays that further decoders and encoders gave; empty of the first ones."""
    return (f".{decoder}" if decoder else "") + (f".encoder-{encoder}" if encoder else "")


def _largest(logits: F32) -> dict[str, npt.NDArray[Any]]:
    ids = np.argsort(-logits, axis=1, kind="stable")[:, :KEPT_LOGITS]
    return {"logit_ids": ids, "logits": np.take_along_axis(logits, ids, axis=1)}


def check(engine: Engine) -> CheckReport:
    """Replay the golden run with the recorded tokens, and compare the logits of every step with those recorded.

    These are of the same encoders and decoder, where the bundle has them.

    Raises:
        BundleError: the bundle has no golden run.
    """
    golden = _load_golden(engine)
    decoder, encoder = engine.model.decoder.describe().name, engine.model.encoder.runtime
    known = [golden_suffix(*pair) for pair in ((decoder, encoder), ("", encoder), (decoder, ""))]
    own = next((suffix for suffix in known if f"logits{suffix}" in golden), "")  # the first ones have none
    tokens, ids, expected = golden["tokens"].tolist(), golden[f"logit_ids{own}"], golden[f"logits{own}"]
    tolerance = float(golden["tolerance"])
    logits = _replay(engine, golden, tokens)
    difference = np.abs(np.take_along_axis(logits, ids, axis=1) - expected).max()
    near_tie = expected[:, 0] - expected[:, 1] < 2 * tolerance
    wrong = (logits.argmax(axis=1) != ids[:, 0]) & ~near_tie
    return CheckReport(
        float(difference), tolerance, len(tokens), tuple(np.flatnonzero(wrong).tolist()), int(near_tie.sum())
    )


def _load_golden(engine: Engine) -> dict[str, npt.NDArray[Any]]:
    if GOLDEN not in engine.bundle.manifest.files:
        raise BundleError(f"{engine.bundle.folder} has no {GOLDEN}; export the bundle again")
    with np.load(engine.bundle.path(GOLDEN), allow_pickle=False) as file:
        return dict(file)


def _replay(engine: Engine, golden: dict[str, npt.NDArray[Any]], tokens: list[int]) -> F32:
    """Logits [n, V] before each recorded token."""
    model = engine.model
    audio = load_audio(golden["pcm"], SAMPLE_RATE, min_s=model.bundle.manifest.audio.min_s)
    ids = prompt_ids(model.bundle.manifest.prompt, model.tokenizer, golden["prompt"].tobytes().decode())
    embeds = model.inputs_embeds(ids, model.encoder.encode(audio))
    with model.decoder.open(1, len(embeds) + len(tokens)) as (slot,):
        logits = [prefill(model.decoder, slot, embeds)]
        logits += [step(model.decoder, [slot], [token])[0] for token in tokens[:-1]]
    return np.stack(logits)
