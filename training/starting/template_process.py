"""A chat template is a program: it is run in a process of its own, which has an end, whatever the program has."""

import json
import math
import subprocess
import sys
import time
from typing import Any

from salmonrun import child

SECONDS = 10  # of computing
_PATIENCE_S = 60.0  # on a busy machine
_MEMORY = 4 * 2**30  # bytes of addresses


def render(template: str, special_tokens: dict[str, Any]) -> str:
    """What a template makes of one message of a user, `{}`, up to where the assistant speaks.

    Args:
        template: in Jinja, as transformers has them.
        special_tokens: by the names that it knows them by.

    Raises:
        ValueError: it fails, or does not end; the message is the reason.
    """
    asked = json.dumps({"template": template, "tokens": special_tokens, "seconds": SECONDS})
    try:
        done = subprocess.run(
            child.command(__name__),
            input=asked,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=_PATIENCE_S,
            env=child.environment(),
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"it has no end: it was stopped after {_PATIENCE_S:g} s") from None
    try:
        answer: dict[str, str] = json.loads(done.stdout)
    except ValueError:
        raise ValueError(f"it was stopped after {SECONDS} s, or had no memory left ({done.returncode})") from None
    if "text" not in answer:
        raise ValueError(answer.get("error", "it failed"))
    return answer["text"]


def main() -> None:
    """One template in, as JSON, and what came of it out."""
    import resource  # here alone: where there is none, the rest of the package is imported all the same

    from transformers.utils.chat_template_utils import render_jinja_template

    asked = json.load(sys.stdin)
    most = math.ceil(time.process_time()) + asked["seconds"]  # importing has taken some
    resource.setrlimit(resource.RLIMIT_CPU, (most, most))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    message = [{"role": "user", "content": "{}"}]
    try:
        texts, _ = render_jinja_template(
            conversations=[message], chat_template=asked["template"], add_generation_prompt=True, **asked["tokens"]
        )
        answer = {"text": texts[0]}
    except Exception as error:
        answer = {"error": f"{error}"}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
