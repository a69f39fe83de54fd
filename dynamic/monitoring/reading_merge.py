"""One set of fields out of what several sources say."""

from collections.abc import Iterable, Mapping
from typing import Any

# of a field that two sources tell, what counts; of any other, what comes first
_RULES = {"memory_available_mb": min}


def merge(readings: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Fields of a Snapshot: a container's limits taken into account, a user's own `cpu_load` as it is."""
    fields: dict[str, Any] = {}
    for reading in readings:
        for name, value in reading.items():
            known = fields.get(name)
            if known is None:
                fields[name] = value
            elif value is not None and name in _RULES:
                fields[name] = _RULES[name](known, value)
    host_load, quota_load, quota_cores = (fields.pop(n, None) for n in ("host_load", "quota_load", "quota_cores"))
    cores = fields.get("cpu_cores")
    if fields.get("cpu_load") is None:
        fields["cpu_load"] = shared_load(cores, host_load, quota_cores, quota_load)
    if quota_cores is not None:
        fields["cpu_cores"] = quota_cores if cores is None else min(cores, quota_cores)
    return fields


def shared_load(
    cores: float | None, host_load: float | None, quota_cores: float | None, quota_load: float | None
) -> float | None:
    """Share, 0..1, that others leave this process less of what it may use: of its `cores`, or of a tighter quota.

    `host_load` of the cores by all others; `quota_load` of the quota by others of the same group. With 4 cores and a
    quota of 1, others may keep 3 cores busy and take nothing. None where nothing is known.
    """
    if quota_cores is None or quota_cores <= 0 or (cores is not None and cores <= quota_cores):
        return host_load
    left = [] if quota_load is None else [quota_cores * (1 - quota_load)]
    if cores is not None and host_load is not None:
        left.append(cores * (1 - host_load))
    return 1 - min(1.0, max(0.0, min(left) / quota_cores)) if left else None
