"""The result of an inspection."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Finding:
    """What a file or folder is, what is in it, and what to do with it."""

    kind: str
    facts: dict[str, str] = field(default_factory=dict)
    contents: dict[str, Any] = field(default_factory=dict)  # tensors, parameters, dtypes
    problems: tuple[str, ...] = ()  # what keeps it from being used
    needed: tuple[str, ...] = ()  # what is used with it
    command: str = ""  # what to run next
    path: str = ""
    size: int = 0  # bytes on disk

    @property
    def usable(self) -> bool:
        """Whether it is one of the kinds that are read, and whole."""
        return bool(self.command) and not self.problems


def format_finding(finding: Finding) -> str:
    """The finding as a table."""
    rows = {"is": finding.kind, **finding.facts}
    if finding.contents.get("tensors"):
        dtypes = ", ".join(f"{count} {dtype}" for dtype, count in finding.contents["dtypes"].items())
        rows["tensors"] = f"{finding.contents['tensors']} ({dtypes}), {finding.contents['parameters']:,} parameters"
    rows["size"] = f"{finding.size / 2**20:,.1f} MiB"
    rows |= {"problem" + " " * i: problem for i, problem in enumerate(finding.problems)}
    if finding.needed:
        rows["needs"] = "; ".join(finding.needed)
    rows["next"] = finding.command if finding.usable else "nothing that can be done with it as it is"
    width = max(len(name.rstrip()) for name in rows)
    return "\n".join([finding.path, *(f"  {name.rstrip():<{width}}  {value}" for name, value in rows.items())])
