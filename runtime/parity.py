"""parity.json: how near a bundle came to PyTorch when it was exported, and what it had to hold."""

import json
from dataclasses import dataclass, field

import numpy as np

from salmonrun.runtime.arrays import F32
from salmonrun.runtime.bundle import Bundle
from salmonrun.runtime.errors import BundleError, ConfigError
from salmonrun.runtime.schema import from_dict

PARITY = "parity.json"
SURE = 0.5  # probability of a token that PyTorch is sure of
LEAST_SURE = 16  # tokens that it must be sure of: of fewer, a share says little
EXACT_TOLERANCE = 1e-4  # max abs difference of an fp32 bundle, for activations of order one


@dataclass(frozen=True)
class StageError:
    """Difference of one stage, bundle against PyTorch on the same input."""

    max_abs: float
    relative: float  # rms of the difference / rms of the reference
    scale: float  # rms of the reference

    @classmethod
    def between(cls, got: F32, reference: F32) -> "StageError":
        """Compare two arrays of one shape."""
        difference = got.astype(np.float64) - reference
        scale = float(np.sqrt(np.mean(np.square(reference, dtype=np.float64))))
        relative = float(np.sqrt(np.mean(np.square(difference)))) / max(scale, 1e-30)
        return cls(float(np.abs(difference).max()), relative, scale)


@dataclass(frozen=True)
class SpeechTokens:
    """What a bundle would say next, all along PyTorch's own greedy answers to recordings of speech."""

    recordings: int
    positions: int  # tokens of the answers
    agreeing: int  # of them the bundle's choice, too
    sure: int  # positions where PyTorch gives its token at least half of the probability
    sure_agreeing: int
    largest_lead: float  # where the choices differ: how far PyTorch's logits put its own before the bundle's, at most

    @classmethod
    def between(cls, got: F32, reference: F32, recordings: int) -> "SpeechTokens":
        """Compare the logits [n, V] before each token, the bundle's and PyTorch's."""
        chosen, best = got.argmax(axis=-1), reference.argmax(axis=-1)
        leads = np.take_along_axis(reference, np.stack([best, chosen], axis=-1), axis=-1)
        lead = leads[:, 0] - leads[:, 1]
        above = np.exp(reference - reference.max(axis=-1, keepdims=True), dtype=np.float64).sum(axis=-1)
        sure, same = 1 / above >= SURE, chosen == best
        return cls(
            recordings=recordings,
            positions=len(best),
            agreeing=int(same.sum()),
            sure=int(sure.sum()),
            sure_agreeing=int((sure & same).sum()),
            largest_lead=float(lead.max()),
        )

    def agree(self, share: float) -> bool:
        """Whether, where PyTorch is sure, the bundle chooses so large a share of its tokens.

        If that is hardly anywhere, as in a model of random weights, nothing is demanded.
        """
        return self.sure < LEAST_SURE or self.sure_agreeing >= share * self.sure

    def __str__(self) -> str:
        """In a line."""
        sure = f"{self.sure_agreeing} of the {self.sure} it is sure of"
        if self.sure < LEAST_SURE:
            sure += ", which are too few to demand any"
        if self.agreeing < self.positions:
            sure += f"; its logits lead by at most {self.largest_lead:.1f} where they differ"
        return f"{self.agreeing} of {self.positions} tokens are PyTorch's choice, {sure}"


@dataclass(frozen=True)
class Tried:
    """A way to store the LLM's matrices, beside PyTorch along the answers to recordings."""

    setting: str
    bytes: int  # of the LLM's tensors for our own kernels
    kl: float  # mean Kullback-Leibler divergence from PyTorch's distribution, nats a token
    agreement: float  # share of the tokens whose likeliest one is PyTorch's
    logit_error: float  # relative (rms)

    def __str__(self) -> str:
        """In a line."""
        return (
            f"{self.setting}: {self.bytes / 2**20:.1f} MiB, kl {self.kl:.2g}, {self.agreement:.2%} of the tokens, "
            f"logits off by {self.logit_error:.3f}"
        )


@dataclass(frozen=True)
class Choice:
    """Which of several ways was the smallest within a budget."""

    budget: str
    recordings: int
    tokens: int  # of their answers
    chosen: str  # its setting
    tried: tuple[Tried, ...]  # the smallest first

    @property
    def lines(self) -> list[str]:
        """What was tried; the chosen one is marked."""
        return [f"{one}{' (chosen)' if one.setting == self.chosen else ''}" for one in self.tried]


@dataclass(frozen=True)
class EncoderProducts:
    """Which products of an int8 encoder stay in float32, on one of the runtimes: its states are within a budget."""

    part: str
    runtime: str
    budget: float  # relative error (rms) of the states, at most
    error_int8: float  # with all of them in int8
    error: float  # as it is
    products: int  # that its layers have
    fp32: tuple[str, ...]  # of them, the one that costs most in int8 first

    def __str__(self) -> str:
        """In a line."""
        return (
            f"{self.part}, {self.runtime}: {len(self.fp32)} of {self.products} products in fp32, states off by "
            f"{self.error:.2%} ({self.error_int8:.2%} with none, at most {self.budget:.2%})"
        )


@dataclass(frozen=True)
class Parity:
    """What was measured, and the budget it was held against."""

    stages: dict[str, StageError]  # each on the reference's input
    end_to_end: StageError  # logits along the greedy path, from the recording
    tokens_compared: int
    tokens_agreeing: int  # where PyTorch, after the same tokens, chooses the same next one
    greedy_tokens_equal: bool
    audio_s: float
    budget: float | None  # None: exact
    llm_pieces: int  # 1: the LLM ran as a whole; else its layers in so many pieces, one after the other
    window: StageError | None  # where the bundle trims and the checkpoint pads: what that does to PyTorch's own logits
    measured_with: dict[str, str]
    token_agreement: float | None = None  # demanded share of the tokens on speech that PyTorch is sure of
    speech: dict[str, SpeechTokens] = field(default_factory=dict)  # by decoder; empty: exact, or older than this
    choice: Choice | None = None  # None: the precision was not chosen by a budget
    encoders: tuple[EncoderProducts, ...] = ()  # empty: all of their products are alike

    @property
    def measured(self) -> dict[str, StageError]:
        """All that is held against the budget."""
        return {**self.stages, "end to end": self.end_to_end}

    @property
    def demanded(self) -> str:
        """What the bundle had to hold to be written at all."""
        if self.budget is None:
            return f"exact: {EXACT_TOLERANCE:.0e} of PyTorch or float32's rounding, and equal tokens"
        stages = f"relative error of every stage at most {self.budget:g}"
        if self.token_agreement is None:
            return stages
        return f"{stages}, and {self.token_agreement:.0%} of the tokens on speech that PyTorch is sure of"

    @property
    def on_speech(self) -> list[str]:
        """The tokens on speech, in a line for each decoder."""
        if len(self.speech) == 1:
            return [str(tokens) for tokens in self.speech.values()]
        return [f"{decoder}: {tokens}" for decoder, tokens in self.speech.items()]

    def __str__(self) -> str:
        """In a line."""
        name, error = max(self.measured.items(), key=lambda item: item[1].relative)
        tokens = f"{self.tokens_agreeing} of {self.tokens_compared} tokens are PyTorch's choice"
        return f"{self.demanded}; largest {error.relative:.1e} ({name}), {tokens}"


def read_parity(bundle: Bundle) -> Parity:
    """What the exporter wrote.

    Raises:
        BundleError: the bundle has no parity.json, or it is not as the specification says.
    """
    if PARITY not in bundle.manifest.files:
        raise BundleError(f"{bundle.folder} has no {PARITY}; export the bundle again")
    path = bundle.path(PARITY)
    try:
        return from_dict(Parity, json.loads(path.read_bytes()), str(path))
    except (ValueError, ConfigError) as error:
        raise BundleError(f"{path} is not what an exporter writes ({error}); export the bundle again") from error
