"""One reader, driven by libFuzzer: `python -m tests.fuzz.guided.worker READER MATERIAL [OPTION ...] [CORPUS]`."""

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["salmonrun"]):
    from salmonrun.runtime.errors import SalmonrunError
    from tests.fuzz.guided.readers import READERS


def main() -> None:
    """Until an input ends in another error than ours, a crash or ten seconds, or the time is over."""
    name, material, *options = sys.argv[1:]
    read = READERS[name].make(Path(material))

    @atheris.instrument_func  # type: ignore[untyped-decorator]
    def one(content: bytes) -> None:
        try:
            read(content)
        except SalmonrunError:
            return

    atheris.Setup([sys.argv[0], *options], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
