"""Does this machine compute what the exporter did? Replays the bundle's golden run."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from salmonrun.runtime.arrays import F32, Array
from salmonrun.runtime.audio import SAMPLE_RATE, load_audio
from salmonrun.runtime.decoder import prefill, step
from salmonrun.runtime.engine import Engine
from salmonrun.runtime.errors import BundleError
from salmonrun.runtime.npz_file import read_npz
from salmonrun.runtime.prompt import prompt_ids

GOLDEN = "golden.npz"
GOLDEN_TOKENS = 16
KEPT_LOGITS = 32  # of each step: the largest
MAX_GOLDEN_BYTES = 64 * 2**20  # of all arrays; half a minute has 2 MiB
MAX_PROMPT_BYTES = 2**16

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
        BundleError: the bundle has no golden run, or one that cannot be.
    """
    golden = _load_golden(engine)
    logits = _replay(engine, golden)
    most = 2 * TOLERANCE_QUANTIZED * max(1.0, float(np.sqrt(np.mean(np.square(logits, dtype=np.float64)))))
    if not golden.tolerance <= most:
        raise BundleError(
            f"{engine.bundle.folder}/{GOLDEN} tolerates {golden.tolerance:g}; at most {most:g} is credible for these "
            "logits: export the bundle again"
        )
    difference = np.abs(np.take_along_axis(logits, golden.ids, axis=1) - golden.logits).max()
    near_tie = golden.logits[:, 0] - golden.logits[:, 1] < 2 * golden.tolerance
    wrong = (logits.argmax(axis=1) != golden.ids[:, 0]) & ~near_tie
    return CheckReport(
        float(difference),
        golden.tolerance,
        len(golden.tokens),
        tuple(np.flatnonzero(wrong).tolist()),
        int(near_tie.sum()),
    )


@dataclass(frozen=True)
class _Golden:
    """A golden run, as far as it is for the encoders and the decoder that run."""

    pcm: F32  # [N] at 16 kHz
    prompt: str
    tokens: list[int]
    ids: npt.NDArray[np.int64]  # [n, KEPT_LOGITS]
    logits: F32  # of these
    tolerance: float


def _load_golden(engine: Engine) -> _Golden:
    manifest = engine.bundle.manifest
    if GOLDEN not in manifest.files:
        raise BundleError(f"{engine.bundle.folder} has no {GOLDEN}; export the bundle again")
    path = engine.bundle.path(GOLDEN)
    arrays = read_npz(path, MAX_GOLDEN_BYTES)
    decoder, encoder = engine.model.decoder.describe().name, engine.model.encoder.runtime
    known = [golden_suffix(*pair) for pair in ((decoder, encoder), ("", encoder), (decoder, ""))]
    own = next((suffix for suffix in known if f"logits{suffix}" in arrays), "")  # the first ones have none
    tokens = _take(path, arrays, "tokens", np.int64, (GOLDEN_TOKENS,))
    kept = (len(tokens), KEPT_LOGITS)
    ids = _take(path, arrays, f"logit_ids{own}", np.int64, kept)
    pcm = _take(path, arrays, "pcm", np.float32, (round(manifest.audio.max_s * SAMPLE_RATE),))
    logits = _take(path, arrays, f"logits{own}", np.float32, kept)
    tolerance = float(_take(path, arrays, "tolerance", np.float32, ()))
    if not len(tokens) or logits.shape != ids.shape or len(ids) != len(tokens) or ids.shape[1] < 2:
        raise BundleError(f"{path} has {len(tokens)} tokens and logits {list(logits.shape)}; export the bundle again")
    for name, found in (("tokens", tokens), ("logit_ids", ids)):
        if found.min() < 0 or found.max() >= manifest.llm.vocab_size:
            raise BundleError(
                f"{path}: {name} are {found.min()} to {found.max()}; the LLM has {manifest.llm.vocab_size}"
            )
    try:
        prompt = _take(path, arrays, "prompt", np.uint8, (MAX_PROMPT_BYTES,)).tobytes().decode()
    except UnicodeDecodeError as error:
        raise BundleError(f"{path}: prompt is not UTF-8 ({error.reason}); export the bundle again") from error
    return _Golden(pcm, prompt, tokens.tolist(), ids, logits, tolerance)


def _take(path: Path, arrays: dict[str, Array], name: str, dtype: npt.DTypeLike, most: tuple[int, ...]) -> Array:
    """An array of this type, and at most these sizes; numbers that are none are in no golden run."""
    array = arrays.get(name)
    if array is None:
        raise BundleError(f"{path} has no array {name!r}; export the bundle again")
    fits = array.dtype == dtype and array.ndim == len(most)
    if not fits or any(size > limit for size, limit in zip(array.shape, most, strict=True)):
        raise BundleError(
            f"{path}: {name} is {array.dtype} {list(array.shape)}, expected {np.dtype(dtype)} of at most {list(most)}"
        )
    if not np.isfinite(array).all():
        raise BundleError(f"{path}: {name} has numbers that are not finite; export the bundle again")
    return array


def _replay(engine: Engine, golden: _Golden) -> F32:
    """Logits [n, V] before each recorded token."""
    model, tokens = engine.model, golden.tokens
    audio = load_audio(golden.pcm, SAMPLE_RATE, min_s=model.bundle.manifest.audio.min_s)
    ids = prompt_ids(model.bundle.manifest.prompt, model.tokenizer, golden.prompt)
    embeds = model.inputs_embeds(ids, model.encoder.encode(audio))
    with model.decoder.open(1, len(embeds) + len(tokens)) as (slot,):
        logits = [prefill(model.decoder, slot, embeds)]
        logits += [step(model.decoder, [slot], [token])[0] for token in tokens[:-1]]
    return np.stack(logits)
