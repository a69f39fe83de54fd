"""Pressure stall information: the share of time in which work waited for CPU or memory."""

import errno
from functools import partial
from pathlib import Path

from dynamic.monitoring.contract import AbsentError, Reading
from dynamic.monitoring.kernel.cgroup import hierarchy
from dynamic.monitoring.kernel.kernel_files import CachedSearch, KernelFile, existing
from dynamic.monitoring.kernel.members import ask

_SEARCH_S = 60.0


class Pressure:
    """`cpu_pressure` or `memory_pressure`, 0 to 1: the larger of the system's and that of this process's group.

    It is "some avg10" of Documentation/accounting/psi.rst of the Linux kernel, over the last 10 s. Raises AbsentError
    where the kernel does not count it, OSError or ValueError where a file is forbidden or makes no sense.
    """

    def __init__(self, resource: str, root: Path = Path("/")) -> None:
        self._resource, self._root = resource, root
        self._files = CachedSearch(self._find, _SEARCH_S)

    def __call__(self) -> Reading:
        answers = ask((str(file.path), partial(_some, file)) for file in self._files())
        values = [(value, origin) for origin, value in answers.needed()]
        if not values:
            raise AbsentError("the kernel counts no pressure (boot it with psi=1)")
        value, origin = max(values)
        return Reading({f"{self._resource}_pressure": value}, origin, answers.left_out)

    def _find(self) -> list[KernelFile]:
        paths = [self._root / "proc/pressure" / self._resource]
        try:
            own = hierarchy(self._root, None)  # v1 counts no pressure
        except (OSError, ValueError):  # the sources of limits report this
            own = None
        if own is not None and own.levels:
            paths.append(own.levels[0] / f"{self._resource}.pressure")
        return existing(*paths)


def _some(file: KernelFile) -> float | None:
    """The share in the file. None where the kernel has the file but does not count."""
    try:
        text = file.text()
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.ENOENT, errno.ENODEV):  # compiled in, but not switched on
            return None
        raise
    for line in text.splitlines():
        kind, *entries = line.split()
        for entry in entries:
            name, _, value = entry.partition("=")
            if kind == "some" and name == "avg10":
                share = float(value) / 100
                if not 0 <= share <= 1:  # False for NaN
                    raise ValueError(f"{share:.0%} of the time is impossible")
                return share
    raise ValueError(f"{file.path} holds {text[:40]!r}, with no 'some avg10'")
