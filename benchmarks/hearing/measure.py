"""Is everybody heard? Joined recordings, pauses, sounds, noise, telephones, in every way to hear them.

    python -m benchmarks.hearing.measure [--quick] [--bundle BUNDLE] [--docs docs]

Needs espeak-ng and flite. The bundle is the demo's unless another is given; people who speak after minutes of sounds
come from Debian's packages, where apt-get is at hand. Tables go to stdout, and to DOCS/performance.md with --docs; JSON
to ROOT/hearing.json.
"""

import argparse
import json
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from benchmarks.hearing import page, people
from benchmarks.hearing.attention import Heard, attention
from benchmarks.hearing.scenes import Scene, scenes
from benchmarks.hearing.scores import score
from benchmarks.hearing.speech import speak
from benchmarks.hearing.ways import hear, ways
from benchmarks.tables import replace_marked
from salmonrun.runtime import Engine
from salmonrun.runtime.commands.main import guarded

REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    sentences: int
    sounds_s: tuple[float, ...]
    only_sounds_s: float
    people: int | None  # None: all that there are


FULL = Size(sentences=210, sounds_s=(60.0, 180.0), only_sounds_s=600.0, people=None)
QUICK = Size(sentences=32, sounds_s=(60.0,), only_sounds_s=120.0, people=16)


def main() -> None:
    """Make, hear, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=REPOSITORY / "build" / "hearing", help="default: build/hearing")
    parser.add_argument("--bundle", type=Path, help="default: the demo's, exported anew")
    parser.add_argument("--quick", action="store_true", help="a minute or two")
    parser.add_argument("--only", help="scenes whose names have this in them")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--docs", type=Path, help="folder with performance.md to write the tables to")
    arguments = parser.parse_args()
    size = QUICK if arguments.quick else FULL
    engine = Engine.load(arguments.bundle or demo_bundle(arguments.root))
    made = scenes(speak(size.sentences, arguments.seed), arguments.seed, size.sounds_s, size.only_sounds_s)
    wanted = [scene for scene in made if (arguments.only or "") in scene.name]
    understood = understand(engine, wanted)
    heard: dict[str, dict[str, Heard]] = {}
    if people.fetch(arguments.root / "people"):
        heard = attention(arguments.root / "people", arguments.seed, size.sounds_s, size.people)
    else:
        print("no recordings of people: Debian's packages are not at hand", file=sys.stderr)
    finish(understood, heard, arguments.root, arguments.docs)


def demo_bundle(root: Path) -> Path:
    """Exported anew: the checkpoint or the format may have changed."""
    bundle = root / "bundle"
    shutil.rmtree(bundle, ignore_errors=True)
    demo = REPOSITORY / "demo"
    options = ["--encoder-precision", "int8", "--llm-precision", "int4"]
    options += ["--calibration-speech", str(demo / "calibration" / "annotation.json")]
    command = [sys.executable, "-m", "export", str(demo / "checkpoint"), str(bundle), *options]
    subprocess.run(command, cwd=REPOSITORY, check=True)
    return bundle


def understand(engine: Engine, wanted: list[Scene]) -> page.Table:
    """Every scene in every way."""
    scores: page.Table = {scene.name: {} for scene in wanted}
    pairs = [(scene, way) for scene in wanted for way in ways(engine)]
    with tqdm(pairs, desc="scenes") as bar:
        for scene, way in bar:
            bar.set_postfix_str(f"{scene.name}: {way.name}")
            scores[scene.name][way.name] = score(scene, hear(engine, scene, way))
    return scores


def finish(understood: page.Table, heard: dict[str, dict[str, Heard]], root: Path, docs: Path | None) -> None:
    """Write what was found."""
    tables = {"hearing-words": page.understanding(understood)}
    if heard:
        tables["hearing-people"] = page.attention(heard)
    print("\n\n".join(tables.values()))
    words = {scene: {way: asdict(score) for way, score in row.items()} for scene, row in understood.items()}
    people_heard = {name: {way: asdict(counts) for way, counts in row.items()} for name, row in heard.items()}
    (root / "hearing.json").write_text(json.dumps({"words": words, "people": people_heard}, indent=1) + "\n")
    if docs:
        path = docs / "performance.md"
        path.write_text(replace_marked(path.read_text(), tables))


if __name__ == "__main__":
    sys.exit(guarded(main))
