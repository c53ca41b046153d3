"""What a server carries, for docs/performance.md: python -m benchmarks.serving BUNDLE [--docs docs]

Live streams, paced as people speak: more and more of them, until they are not in real time any more, and the most that
are once more and again; then the same at a server whose rounds have room for one search alone. Then recordings: one
client, several at once, and the same several at a server that answers one after the other.
"""

import argparse
import datetime
import sys
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from benchmarks.peers.machine import machine
from benchmarks.quiet import add_busy_option, refuse_busy
from benchmarks.serving import requests, streams
from benchmarks.serving.page import best, requests_table, streams_table
from benchmarks.serving.server import serving
from benchmarks.tables import place_marked
from salmonrun.runtime.commands.main import guarded

Run = tuple[int, float, streams.Told]
ONE_BY_ONE = "benchmarks.serving.one_by_one"
MANY = "100000"  # streams and requests: nothing is refused, so that it is seen where real time ends


def main() -> None:
    """Measure, print, and write into the page."""
    parser = _parser()
    arguments = parser.parse_args()
    busy = refuse_busy(parser, arguments)
    limits = ("--max-streams", MANY, "--max-waiting", MANY)
    running = ("--max-running", str(arguments.clients))
    if arguments.url:
        runs = {"as it serves": _climbed(arguments, arguments.url)}
        asked = [_asked(arguments, arguments.url, "as it serves", count) for count in (1, arguments.clients)]
    else:
        with serving(arguments.bundle, arguments.threads, *limits, *running) as url:
            runs = {"together": _climbed(arguments, url)}
            asked = [_asked(arguments, url, "together", count) for count in (1, arguments.clients)]
        with serving(arguments.bundle, arguments.threads, *limits, module=ONE_BY_ONE) as url:
            runs["one search a round"] = _climbed(arguments, url)
        with serving(arguments.bundle, arguments.threads, *limits, "--max-running", "1") as url:
            asked.append(_asked(arguments, url, "one after the other", arguments.clients))
    where = _where(arguments, busy)
    most = "; ".join(f"{how}: {best(found)} streams" for how, found in runs.items())
    made = {
        "serving-streams": f"{where}\n\n{streams_table(runs)}\n\nIn real time, {most}.",
        "serving-requests": f"{where}\n\n{requests_table(asked)}",
    }
    print("\n\n".join(made.values()))
    if arguments.docs:
        page, case = arguments.docs / "performance.md", f"{_served(arguments)}, {machine()['kind']}"
        page.write_text(place_marked(page.read_text(), {f"{name}, {case}": text for name, text in made.items()}))


def climb(measure: Callable[[int], Run], most: int, trials: int) -> list[Run]:
    """Twice as many streams each time, until they are late; then between, to the most that are not, in all trials.

    Samples of all trials of a number are taken together, so that chance has no say in which number is the last.
    """
    runs, count = [measure(1)], 1
    while runs[-1][2].real_time and count < most:
        count = min(2 * count, most)
        runs.append(measure(count))
    found = {count: told for count, _, told in runs}
    while True:
        good = best(runs)
        late = [count for count in found if count > good]
        if good and found[good].trials < trials:
            found[good].add(measure(good)[2])
        elif late and min(late) - good > max(1, good // 8):
            runs.append(measure((good + min(late)) // 2))
            found[runs[-1][0]] = runs[-1][2]
        else:
            return sorted(runs, key=lambda run: run[0])


def _climbed(arguments: argparse.Namespace, url: str) -> list[Run]:
    return climb(lambda count: _streams(arguments, url, count), arguments.most, arguments.trials)


def _streams(arguments: argparse.Namespace, url: str, count: int) -> Run:
    tqdm.write(f"{count} streams ...")
    return count, arguments.seconds, streams.measure(url, count, arguments.seconds, arguments.utterance)


def _asked(arguments: argparse.Namespace, url: str, how: str, clients: int) -> tuple[str, int, requests.Answered]:
    tqdm.write(f"{clients} clients, {how} ...")
    return how, clients, requests.measure(url, clients, arguments.requests, arguments.length)


def _where(arguments: argparse.Namespace, busy: str) -> str:
    found = machine()
    threads = arguments.threads or found["cores"]
    text = f"{_served(arguments)}; {found['cpu']} ({', '.join(found['instructions'])}), {threads} threads, "
    text += f"{datetime.date.today().isoformat()}; streams of {arguments.seconds:g} s that end an utterance every "
    text += f"{arguments.utterance:g} s, {arguments.requests} recordings of {arguments.length:g} s."
    return text + (f" {busy.capitalize()}." if busy else "")


def _served(arguments: argparse.Namespace) -> str:
    """A bundle in a folder of its own is called by the folder."""
    if arguments.url:
        return str(arguments.url)
    bundle: Path = arguments.bundle.absolute()
    return bundle.parent.name if bundle.name == "bundle" else bundle.name


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("bundle", type=Path, nargs="?", help="served by servers of its own")
    what.add_argument("--url", help="of a server that runs, e.g. http://127.0.0.1:8000; its limits hold")
    parser.add_argument("--threads", type=int, help="of the servers (default: all cores)")
    parser.add_argument("--most", type=int, default=256, help="streams that are tried (default: 256)")
    parser.add_argument("--seconds", type=float, default=30.0, help="of a stream (default: 30)")
    parser.add_argument("--trials", type=int, default=3, help="of the most streams in real time (default: 3)")
    parser.add_argument("--utterance", type=float, default=6.0, help="seconds of an utterance (default: 6)")
    parser.add_argument("--clients", type=int, default=8, help="that ask at once (default: 8)")
    parser.add_argument("--requests", type=int, default=48, help="of each run (default: 48)")
    parser.add_argument("--length", type=float, default=10.0, help="seconds of a recording (default: 10)")
    parser.add_argument(
        "--docs", type=Path, help="folder of performance.md, whose tables of such machines are replaced"
    )
    add_busy_option(parser)
    return parser


if __name__ == "__main__":
    sys.exit(guarded(main))
