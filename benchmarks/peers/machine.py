"""What is measured on: the processor, its instructions, and which of the page's tables are about such a machine."""

import platform
import re
from pathlib import Path
from typing import Any

from salmonrun.runtime.cores import usable_cores

# Of Linux's flags, what int8 and bf16 products are made with; the first one that a processor has names its kind.
INSTRUCTIONS = {
    "amx_int8": "AMX",
    "avx512_vnni": "AVX-512 VNNI",
    "avx_vnni": "AVX-VNNI",
    "avx512_bf16": "AVX-512 BF16",
    "avx2": "AVX2",
    "asimddp": "NEON dot product",
}


def machine() -> dict[str, Any]:
    """Processor, instructions, memory, system, and the kind: what stands in the place of tables of such machines."""
    memory = re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())
    text = Path("/proc/cpuinfo").read_text()
    name = re.search(r"model name\s*: (.*)", text)
    has = [title for flag, title in INSTRUCTIONS.items() if flag in flags()]
    return {
        "cpu": name[1] if name else platform.processor(),
        "instructions": has,
        "kind": has[0] if has else platform.machine(),
        "cores": usable_cores(),
        "memory_gib": int(memory[1]) / 2**20 if memory else None,
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def flags() -> set[str]:
    """What Linux says the processor can do."""
    lines = re.findall(r"^(?:flags|Features)\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return set(lines[0].split()) if lines else set()
