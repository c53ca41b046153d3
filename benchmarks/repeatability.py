"""Do two runs say the same? python -m benchmarks.repeatability BUNDLE [options of salmonrun latency]

Runs the latency command twice, and compares the headline of every case: two runs agree where their intervals overlap.
Ends with 1 if a case does not agree.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from salmonrun.runtime.commands.main import guarded

Interval = tuple[float, float, float]  # median, and its 95 % interval


def main(arguments: list[str]) -> int:
    """Run twice, print, compare."""
    first, second = (measure(arguments) for _ in range(2))
    differing = 0
    print(f"{'case':<32}{'first run':>30}{'second run':>30}")
    for case, one in first.items():
        other = second[case]
        agree = one[1] <= other[2] and other[1] <= one[2]
        differing += not agree
        print(f"{case:<32}{show(one):>30}{show(other):>30}   {'agree' if agree else 'DIFFER'}")
    print(f"{len(first) - differing} of {len(first)} cases agree")
    return 1 if differing else 0


def measure(arguments: list[str]) -> dict[str, Interval]:
    """The headline of each case."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "latency.json"
        command = [sys.executable, "-m", "salmonrun", "latency", *arguments, "--json", str(output)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        found = json.loads(output.read_text())
    intervals = {}
    for protocol in found["protocols"]:
        for case in protocol["cases"]:
            summary = case["summary"][case["headline"]]
            intervals[f"{protocol['name']} {case['name']}"] = (summary["p50"], *summary["median_interval"])
    return intervals


def show(interval: Interval) -> str:
    """In milliseconds."""
    median, low, high = (1000 * value for value in interval)
    return f"{median:.1f} ({low:.1f} - {high:.1f}) ms"


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:])))
