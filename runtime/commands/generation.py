"""How an answer is decoded: the fields of GenerationConfig, as options."""

import argparse
from typing import Any

from salmonrun.runtime.config import GenerationConfig
from salmonrun.runtime.errors import ConfigError

SAMPLING = ("temperature", "top_k", "top_p")  # one of them is enough to have tokens drawn
EARLY_STOPPING: dict[str, bool | str] = {"true": True, "false": False, "never": "never"}


def add_greedy_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """What there is to say where the likeliest token is always taken, as in a stream; the group of options."""
    default = GenerationConfig()
    group = parser.add_argument_group("how it is decoded", "as GenerationConfig has it, and transformers' generate")
    group.add_argument(
        "--max-new-tokens",
        type=int,
        default=default.max_new_tokens,
        metavar="N",
        help=f"longest answer, in tokens (default: {default.max_new_tokens})",
    )
    group.add_argument(
        "--min-new-tokens",
        type=int,
        default=default.min_new_tokens,
        metavar="N",
        help=f"shortest answer (default: {default.min_new_tokens})",
    )
    group.add_argument(
        "--repetition-penalty",
        type=float,
        default=default.repetition_penalty,
        metavar="X",
        help="above 1: tokens that were said become less likely (default: 1, off)",
    )
    group.add_argument(
        "--no-repeat-ngram-size",
        type=int,
        default=default.no_repeat_ngram_size,
        metavar="N",
        help="no so many tokens in a row are said twice (default: 0, off)",
    )
    group.add_argument(
        "--stop-repetition",
        action=argparse.BooleanOptionalAction,
        default=default.stop_repetition,
        help="end an answer that repeats itself without end (default: it is ended)",
    )
    group.add_argument(
        "--nothing-threshold",
        type=float,
        default=default.nothing_threshold,
        metavar="P",
        help="probability from which on a model is believed that there is nothing to be transcribed "
        f"(default: {default.nothing_threshold:g})",
    )
    group.add_argument(
        "--stop-token-ids", type=_ids, metavar="IDS", help="that end it, with commas (default: the bundle's)"
    )
    return group


def add_generation_arguments(parser: argparse.ArgumentParser) -> None:
    """All there is to say: beams and sampling, too."""
    default = GenerationConfig()
    group = add_greedy_arguments(parser)
    group.add_argument(
        "--stop-string",
        action="append",
        dest="stop_strings",
        metavar="TEXT",
        help="the text is cut before it; may be given several times",
    )
    group.add_argument(
        "--num-beams", type=int, default=default.num_beams, metavar="N", help="beams of the search (default: 1, greedy)"
    )
    group.add_argument(
        "--length-penalty",
        type=float,
        default=default.length_penalty,
        metavar="X",
        help=f"of beams: above 0, longer answers are preferred (default: {default.length_penalty:g})",
    )
    group.add_argument(
        "--early-stopping", choices=tuple(EARLY_STOPPING), help="of beams: once so many are complete (default: false)"
    )
    group.add_argument(
        "--temperature", type=float, metavar="X", help="draw tokens, below 1 rather likely ones (default: greedy)"
    )
    group.add_argument("--top-k", type=int, metavar="N", help="draw tokens, of the N likeliest alone")
    group.add_argument("--top-p", type=float, metavar="P", help="draw tokens, of the likeliest that together have P")
    group.add_argument("--seed", type=int, metavar="N", help="of what is drawn (default: another in each run)")


def generation_config(arguments: argparse.Namespace) -> GenerationConfig:
    """What the options say.

    Raises:
        ConfigError: a value out of range, or options that have nothing to do with each other.
    """
    given: dict[str, Any] = {
        name: value
        for name in GenerationConfig.__dataclass_fields__
        if (value := getattr(arguments, name, None)) is not None
    }
    drawn = [f"--{name.replace('_', '-')}" for name in SAMPLING if name in given]
    if drawn and arguments.num_beams > 1:
        raise ConfigError(
            f"{', '.join(drawn)} with --num-beams {arguments.num_beams}: beams are not sampled; leave out one of them"
        )
    if "seed" in given and not drawn:
        raise ConfigError("--seed without --temperature, --top-k or --top-p, which draw tokens: it has no effect")
    if "early_stopping" in given:
        given["early_stopping"] = EARLY_STOPPING[given["early_stopping"]]
    if "stop_strings" in given:
        given["stop_strings"] = tuple(given["stop_strings"])
    return GenerationConfig(**given, do_sample=bool(drawn))


def _ids(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} are no token ids; expected numbers and commas, as 2,13") from None
