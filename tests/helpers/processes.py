"""Processes, as the system lists them."""

from pathlib import Path


def children(pid: int) -> list[int]:
    """What a process has started, in any of its threads, and has not waited for yet."""
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for each in lists for child in each.read_text().split()]


def command_of(pid: int) -> str:
    """Its command line."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
