"""The name of this machine: costs measured on one are not those of another."""

import functools
import hashlib
import math
import platform
from pathlib import Path

import numpy as np

from dynamic.engines.memory import available_cores
from dynamic.monitoring.sources.limits import CpuLimit

# x86-64, then ARM: those that decide in which type products are multiplied and added
_INSTRUCTION_SETS = (
    "sse4_1", "avx", "f16c", "fma", "avx2", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16",
    "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16", "amx_fp16",
    "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme",
)  # fmt: skip


@functools.cache
def machine_name() -> str:
    """Architecture, processor, usable cores and system, e.g. `x86_64 AMD EPYC, 2 cores, Linux`."""
    return f"{platform.machine()} {_processor()}, {available_cores()} cores, {platform.system()}"


def machine_key() -> str:
    """A short name for files."""
    return hashlib.sha256(machine_name().encode()).hexdigest()[:12]


@functools.cache
def instruction_sets(root: Path = Path("/")) -> tuple[str, ...]:
    """The vector instructions of this processor by which engines choose their kernels.

    Args:
        root: The file tree that `/proc/cpuinfo` is read from.

    Returns:
        Linux's names in a fixed order, such as `("avx2", "avx512f", "avx512_vnni")`. Without `/proc/cpuinfo`, numpy's
        names.
    """
    try:
        lines = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        names = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
        return tuple(str(name).lower() for name in names)
    cores = [set(line.split()) for line in lines if line.partition(":")[0].strip() in ("flags", "Features")]
    common = set.intersection(*cores) if cores else set()  # cores may differ, and a thread runs on any
    return tuple(name for name in _INSTRUCTION_SETS if name in common)


def quota_threads(root: Path = Path("/")) -> int | None:
    """Threads under the CPU quota of a container. None unless they are fewer than the usable cores.

    Engines start a thread for each core of the machine. Under a quota of two cores on a machine of 64 those would run
    for a moment, and then all stand still until the next period.
    """
    try:
        limit = CpuLimit(root).tightest()
    except (OSError, ValueError):  # files that are forbidden or damaged: the monitor reports them
        return None
    if limit is None:
        return None
    threads = max(1, math.ceil(limit.amount))
    return threads if threads < available_cores() else None


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
