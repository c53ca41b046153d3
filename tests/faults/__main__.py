"""`python -m tests.faults`: the n-th open, read, write, map, rename or large allocation fails, for one n after another.

As SQLite is tested. Each run has to end with an error of ours and leave nothing half-made that opens; the run after all
of them is as one that was not disturbed.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.faults.process import FOREIGN
from tests.kill_storm import Victim, half_made, prepare

HERE = Path(__file__).parent
KINDS = {"open": 1, "read": 2, "write": 4, "map": 8, "rename": 16, "allocate": 32}


def main() -> int:
    """All kinds for all commands; 1 where a fault was not answered as it should be."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--command", action="append", help="only this one, or several (default: all)")
    parser.add_argument("--kind", action="append", choices=KINDS, help="only this one, or several (default: all)")
    parser.add_argument(
        "--most", type=int, default=40, help="faults of a kind in a command, evenly spread (default: 40)"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, serving(Path(name)) as process:
        root = Path(name)
        faults = 0
        for victim in prepare(root):
            if not arguments.command or victim.name in arguments.command:
                faults += attack(process, victim, root, arguments.kind or KINDS, arguments.most)
    print(f"{faults} faults that were not answered well")
    return int(faults > 0)


def attack(process: "Process", victim: Victim, root: Path, kinds: Sequence[str] | dict[str, int], most: int) -> int:
    """Faults of one command that were not answered well."""
    whole, out = root / "whole" / victim.name / victim.out, root / victim.name / victim.out
    wrong = 0
    for path in (whole, out):
        path.parent.mkdir(parents=True)
    for kind in kinds:
        calls = process.run(victim, whole, root, kind, 0)
        assert calls["status"] == 0, calls
        expected = victim.digest(whole / victim.product)
        remove(whole)
        ended: Counter[str] = Counter()
        for number in spread(calls["seen"], most):
            answer = process.run(victim, out, root, kind, number)
            found = [*judged(answer, number), *half_made((out / victim.product).parent, out / victim.product)]
            ended["aborted" if aborted(answer) else "done" if answer["status"] == 0 else "refused"] += 1
            wrong += bool(found)
            for what in found:
                print(f"{victim.name}, {kind} {number}: {what}", flush=True)
            remove(out)
        again = process.run(victim, out, root, kind, 0)
        same = again["status"] == 0 and victim.digest(out / victim.product) == expected
        remove(out)
        print(
            f"{victim.name}, {kind}: {calls['seen']} calls, {dict(ended)}, afterwards {'the same' if same else again}"
        )
        wrong += not same
    return wrong


def spread(count: int, most: int) -> list[int]:
    """At most so many of 1 to `count`, the first and the last among them."""
    if count <= most:
        return list(range(1, count + 1))
    return sorted({1 + round(at * (count - 1) / (most - 1)) for at in range(most)})


def aborted(answer: dict[str, Any]) -> bool:
    """Whether Rust's runtime, that of `tokenizers` and `safetensors`, got no memory: it ends the process, always."""
    return answer["status"] == -signal.SIGABRT and "memory allocation of" in answer["said"]


def judged(answer: dict[str, Any], number: int) -> list[str]:
    """What is wrong with how a command ended: 0, where it did without, and else 1 and a line that says why."""
    status, last = answer["status"], (answer["said"].strip().splitlines() or ["nothing"])[-1]
    if (answer["seen"] < number and status == 0) or aborted(answer):
        return []  # it did not come so far this time: threads; or nobody could have said more
    if status not in (0, 1):
        return [f"status {status} ({'foreign' if status == FOREIGN else 'a signal'}): {last}"]
    if status == 1 and ("Traceback" in answer["said"] or not last.startswith("error: ")):
        return [f"no line that says why: {last}"]
    return []


def remove(out: Path) -> None:
    """The output, and leave what lies hidden beside it to the next run."""
    if out.is_dir():
        shutil.rmtree(out)
    else:
        out.unlink(missing_ok=True)


class Process:
    """tests.faults.process, with the injector in front of libc."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def run(self, victim: Victim, out: Path, folder: Path, kind: str, number: int) -> dict[str, Any]:
        """The command with its `number`-th call of a kind failing; 0: with none."""
        assert self._process.stdin
        assert self._process.stdout
        argv = [str(part) for part in victim.arguments(out)]
        asked = {"argv": argv, "folder": str(folder), "kinds": KINDS[kind], "number": number}
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


@contextmanager
def serving(folder: Path) -> Iterator[Process]:
    """Compile the injector, start the process."""
    library = folder / "injector.so"
    compiler = os.environ.get("CC", "cc")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, HERE / "injector.c", "-ldl"], check=True)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.process"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"LD_PRELOAD": str(library)},
    )
    try:
        yield Process(process)
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    sys.exit(main())
