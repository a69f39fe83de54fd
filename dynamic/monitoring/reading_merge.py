"""One set of fields from the readings of several sources."""

from collections.abc import Iterable, Mapping
from typing import Any

# the rule for a field of two sources. For any other field the first source counts
_RULES = {"memory_available_mb": min}


def merge(readings: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Merge readings into fields of a `Snapshot`.

    Limits of a container are included. A user's own `cpu_load` has precedence.

    Args:
        readings: Fields of each source.

    Returns:
        Values by field.
    """
    fields: dict[str, Any] = {}
    for reading in readings:
        for name, value in reading.items():
            first = fields.get(name)
            if first is None:
                fields[name] = value
            elif value is not None and name in _RULES:
                fields[name] = _RULES[name](first, value)
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
    """Share of this process's cores, or of a tighter quota, that others use.

    With 4 cores and a quota of 1, others may keep 3 cores busy and take nothing.

    Args:
        cores: Cores that this process may use.
        host_load: Share of these cores used by others, 0 to 1.
        quota_cores: Quota in cores. None: no quota.
        quota_load: Share of the quota used by others of the same group, 0 to 1.

    Returns:
        The share, 0 to 1. None where it is unknown.
    """
    if quota_cores is None or quota_cores <= 0 or (cores is not None and cores <= quota_cores):
        return host_load
    left = [] if quota_load is None else [quota_cores * (1 - quota_load)]
    if cores is not None and host_load is not None:
        left.append(cores * (1 - host_load))
    return 1 - min(1.0, max(0.0, min(left) / quota_cores)) if left else None
