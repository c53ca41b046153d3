"""Foreign files that are led by coverage: python -m tests.fuzz.guided [--reader NAME] [--seconds S]

Each reader of `readers.py` is given bytes that libFuzzer makes of files that are right, and keeps those that reach code
which none before has reached: they are in build/fuzz/corpus, and the next run begins with them. An input that ends in
another error than ours, a crash, ten seconds or 4 GiB is kept in build/fuzz/found; `--again FILE` reads it alone.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.fuzz import audio, pickles, recipes
from tests.fuzz.bundle_runs import make_bundles
from tests.fuzz.guided.readers import READERS

LIMITS = ("-timeout=10", "-rss_limit_mb=4096")


def main() -> int:
    """Run all readers in turn, or one; 1 where something was found."""
    arguments = _parser().parse_args()
    names = [arguments.reader] if arguments.reader else list(READERS)
    if arguments.again and not arguments.reader:
        raise SystemExit("error: --again needs --reader, the one that reads the file")
    with tempfile.TemporaryDirectory() as folder:
        material = Path(folder) / "material"
        prepare(material)
        return max([run(name, arguments, material) for name in names])


def prepare(material: Path) -> None:
    """Files that are right, of every kind."""
    material.mkdir()
    for target in (recipes, pickles):
        target.prepare(material)
    make_bundles(material)
    for kind in range(len(audio.KINDS)):
        (material / f"{kind}.audio").write_bytes(audio.whole(kind, 0))


def run(name: str, arguments: argparse.Namespace, material: Path) -> int:
    """One reader: 1 where something was found, which is printed."""
    corpus, found = arguments.kept / "corpus" / name, arguments.kept / "found" / name
    for folder in (corpus, found):
        folder.mkdir(parents=True, exist_ok=True)
    if not any(corpus.iterdir()):
        for number, seed in enumerate(sorted(material.glob(READERS[name].seeds))):
            shutil.copyfile(seed, corpus / f"seed-{number}")
    longest = max(file.stat().st_size for file in corpus.iterdir())  # else what is above 1 MiB is cut
    options = [
        *LIMITS,
        f"-max_len={longest}",
        f"-artifact_prefix={found}/",
        "-print_final_stats=1",
        f"-runs={arguments.inputs}" if arguments.inputs else f"-max_total_time={arguments.seconds}",
    ]
    options += [f"-seed={arguments.seed}"] if arguments.seed is not None else []
    with tempfile.TemporaryDirectory() as own:
        shutil.copytree(material, own, dirs_exist_ok=True)
        given = str(arguments.again) if arguments.again else str(corpus)
        command = [sys.executable, "-m", "tests.fuzz.guided.worker", name, own, *options, given]
        same = os.environ | {"PYTHONHASHSEED": "0"}  # the order of sets is of what a seed decides
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, env=same)
    print(summary(name, done.stderr, len(list(corpus.iterdir()))), flush=True)
    if done.returncode:
        print(done.stdout + done.stderr)
    return int(done.returncode != 0)


def summary(name: str, log: str, kept: int) -> str:
    """How many inputs were read, and what they reached."""
    executed = re.search(r"stat::number_of_executed_units: (\d+)", log)
    reached = re.findall(r" cov: (\d+)", log)
    inputs, branches = executed[1] if executed else "0", reached[-1] if reached else "0"
    return f"{name}: {inputs} inputs, {branches} branches reached, {kept} files in the corpus"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz.guided", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--reader", choices=list(READERS), help="default: all, one after the other")
    parser.add_argument("--seconds", type=int, default=60, help="of each (default: 60)")
    parser.add_argument(
        "--inputs", type=int, help="so many of each in place of a time: the same ones for the same seed"
    )
    parser.add_argument("--seed", type=int, help="of libFuzzer (default: a new one)")
    parser.add_argument("--kept", type=Path, default=Path("build") / "fuzz", help="default: build/fuzz")
    parser.add_argument("--again", type=Path, metavar="FILE", help="read this one alone")
    return parser


if __name__ == "__main__":
    sys.exit(main())
