"""Which machine this is, in words: costs measured on one are not another's."""

import functools
import hashlib
import platform
from pathlib import Path

from dynamic.engines.memory import available_cores


@functools.cache
def machine_name() -> str:
    """Architecture, processor, usable cores and system, e.g. `x86_64 AMD EPYC, 2 cores, Linux`."""
    return f"{platform.machine()} {_processor()}, {available_cores()} cores, {platform.system()}"


def machine_key() -> str:
    """A short name for files."""
    return hashlib.sha256(machine_name().encode()).hexdigest()[:12]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or "unknown processor"
    for wanted in ("model name", "Model", "Hardware"):
        for line in lines:
            key, _, value = line.partition(":")
            if key.strip() == wanted and value.strip():
                return value.strip()
    return platform.processor() or "unknown processor"
