"""What pyproject.toml cannot say: README as PyPI shows it, where a link into the checkout would lead nowhere."""

import re
import tomllib
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?![a-z]+:|#)([^)\s]+)\)")


def description() -> str:
    """README, its links led to the project's `Source` address; as long as it has none, they are their text alone."""
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"].get("urls", {})
    replacement = rf"[\1]({urls['Source'].rstrip('/')}/blob/main/\2)" if "Source" in urls else r"\1"
    return LINK.sub(replacement, (ROOT / "README.md").read_text())


setup(long_description=description(), long_description_content_type="text/markdown")
