"""Ask a bundle about the demo's recordings: python demo/answer.py BUNDLE. It was not trained on any of them."""

import json
import sys
from pathlib import Path

from salmonrun.runtime import Engine

RECORDINGS = Path(__file__).parent / "recordings"
ASKED = {"asr": "what is said", "caption": "what can be heard"}


def main(bundle: str) -> None:
    """Print each answer, and what would be right where it is not."""
    engine = Engine.load(bundle)
    entries = json.loads((RECORDINGS / "annotation.json").read_text())["annotation"]
    right = 0
    print(f"{'recording':<24}{'asked':<36}{'answer':<42}{'ms':>5}")
    for entry in entries:
        question = entry["Q"] or None
        result = engine.generate(RECORDINGS / entry["path"], task=entry["task"], question=question)
        as_it_is = result.text == entry["text"]
        right += as_it_is
        remark = "" if as_it_is else f"   right would be: {entry['text']}"
        milliseconds = round(1000 * result.timings.total_s)
        print(f"{entry['path']:<24}{question or ASKED[entry['task']]:<36}{result.text:<42}{milliseconds:>5}{remark}")
    print(f"{right} of {len(entries)} answers are right")


if __name__ == "__main__":
    main(*sys.argv[1:])
