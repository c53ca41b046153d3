"""`salmonrun synthesize`: its options, and what it does with them."""

import argparse

from salmonrun.training.synthesis.plan import Plan
from salmonrun.training.synthesis.programs import DEFAULT_SYNTHESIZERS

ENGINES = """engines, to be given one after another:
  espeak-ng         the program: 36 speakers, each in 7 accents of English
  flite             the program: four speakers
  piper=FOLDER      the Python package piper-tts, and voices NAME.onnx with NAME.onnx.json in a folder
  kokoro=FOLDER     Kokoro-82M in a folder: one .onnx, config.json, voices/NAME.bin; needs espeak-ng for the phonemes
  command=TEMPLATE  any other program: {text} and {out} stand for the text and the WAV file to write,
                    {voice:anna,ben} for one of these voices; no shell is involved

The voices of piper, kokoro and command are parted by a hash of the speaker's name: a tenth, at least one, is held out;
an engine with a single voice speaks in training sets alone. Make both sets with the same engines and folders, or a
voice may be in both. The same plan gives the same recordings; with command, if the program repeats itself.

example: %(prog)s data/ --speech 500 --engines flite piper=voices/ \\
    command='mytts --speaker {voice:anna,ben} --output {out} {text}'
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what it does and what it takes."""
    plan = Plan()
    parser.description = "Write synthetic speech, sound events and mixtures of both with an annotation JSON."
    parser.epilog = ENGINES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("out", metavar="OUT", help="folder to create")
    parser.add_argument("--speech", type=int, default=plan.speech, help=f"spoken sentences (default: {plan.speech})")
    parser.add_argument("--sounds", type=int, default=plan.sounds, help=f"sound events (default: {plan.sounds})")
    parser.add_argument("--mixtures", type=int, default=plan.mixtures, help=f"both (default: {plan.mixtures})")
    parser.add_argument(
        "--others",
        type=int,
        default=plan.others,
        help=f"speech in other words and languages, and music, to be answered with --nothing (default: {plan.others})",
    )
    parser.add_argument(
        "--nothing",
        metavar="TEXT",
        default=plan.nothing,
        help="what is to be written down of sounds and others, such as '(nothing)' (default: they are not asked about)",
    )
    parser.add_argument(
        "--pauses",
        type=float,
        metavar="SHARE",
        default=plan.pauses,
        help=f"share of the sentences that are spoken in pieces, with pauses between (default: {plan.pauses:g})",
    )
    parser.add_argument(
        "--fragments",
        type=float,
        metavar="SHARE",
        default=plan.fragments,
        help=f"share of the sentences of which one to three words are spoken (default: {plan.fragments:g})",
    )
    parser.add_argument("--seed", type=int, default=plan.seed, help=f"default: {plan.seed}")
    low, high = plan.snr_db
    parser.add_argument(
        "--snr",
        type=float,
        nargs=2,
        default=plan.snr_db,
        metavar=("LOW", "HIGH"),
        help=f"dB of speech over noise, which half of the spoken sentences get (default: {low:g} {high:g})",
    )
    parser.add_argument(
        "--speed",
        type=float,
        default=plan.speed,
        help="play voices faster or slower by up to this share, which moves pitch and formants too "
        f"(default: {plan.speed:g})",
    )
    names = [engine.name for engine in DEFAULT_SYNTHESIZERS]
    parser.add_argument(
        "--engines", nargs="+", default=names, metavar="ENGINE", help=f"see below (default: {' '.join(names)})"
    )
    parser.add_argument("--held-out", action="store_true", help="voices and sentences that no training set has")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    """Make the data set."""
    from salmonrun.training.synthesis.synthesize import synthesize
    from salmonrun.training.synthesis.voices import parse_synthesizers

    names = ("speech", "sounds", "mixtures", "others", "seed", "pauses", "fragments", "nothing", "speed")
    low, high = arguments.snr
    plan = Plan(**{name: getattr(arguments, name) for name in names}, snr_db=(low, high))
    engines = parse_synthesizers(arguments.engines)
    path = synthesize(arguments.out, plan, arguments.held_out, arguments.workers, progress=True, synthesizers=engines)
    print(f"{path}: annotation of the data set")
    if plan.speech or plan.mixtures or plan.others:
        for engine in engines:
            if not engine.voices(held_out=True):
                print(f"{engine.name} has a single voice: it speaks in training sets, not in held-out ones")
    return 0
