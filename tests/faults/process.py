"""A process in which commands run, each in a fork of its own, and the n-th call of a kind fails.

One line of JSON in, `{"argv", "folder", "kinds", "number"}`, one out, `{"status", "seen", "said"}`: the exit status, or
the signal that ended it as a negative number; how many such calls there were; what was written to stderr.
"""

import ctypes
import json
import os
import signal
import sys
import tempfile
import traceback
from typing import Any

LARGE = 256 * 2**10  # bytes of an allocation that counts
PATIENCE_S = 120
FOREIGN = 70  # the exit status of an exception that is none of ours


def main() -> None:
    """Import all that commands need, once; then serve."""
    import onnxruntime  # noqa: F401  # imported here, so that each fork has it
    import torch
    import transformers  # noqa: F401

    import salmonrun.export
    import salmonrun.runtime
    import salmonrun.training.commands.finetune  # noqa: F401
    from salmonrun.__main__ import main as salmonrun_main

    torch.set_num_threads(1)
    injector = ctypes.CDLL(os.environ["LD_PRELOAD"])
    injector.faults_arm.argtypes = [ctypes.c_char_p, ctypes.c_uint, ctypes.c_long, ctypes.c_size_t]
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(run(salmonrun_main, injector, asked)), flush=True)


def run(command: Any, injector: Any, asked: dict[str, Any]) -> dict[str, Any]:
    """One command in a fork."""
    with tempfile.TemporaryFile() as said:
        incoming, outgoing = os.pipe()
        child = os.fork()
        if child == 0:
            signal.alarm(PATIENCE_S)
            os.dup2(os.open(os.devnull, os.O_RDWR), 0)
            os.dup2(0, 1)
            os.dup2(said.fileno(), 2)
            injector.faults_arm(asked["folder"].encode(), asked["kinds"], asked["number"], LARGE)
            status = FOREIGN
            try:
                status = command(asked["argv"])
            except BaseException:
                traceback.print_exc()
            finally:  # nothing of this fork goes back into the loop
                os.write(outgoing, str(injector.faults_seen()).encode())
                sys.stderr.flush()
                os._exit(status)
        os.close(outgoing)
        _, status = os.waitpid(child, 0)
        seen = os.read(incoming, 32)
        os.close(incoming)
        said.seek(0)
        text = said.read().decode(errors="replace")
    return {"status": os.waitstatus_to_exitcode(status), "seen": int(seen or b"-1"), "said": text}


if __name__ == "__main__":
    main()
