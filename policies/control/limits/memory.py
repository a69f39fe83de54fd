"""The limit on memory, and which backbones may remain in memory beside those of the point that runs."""

from dynamic.policies.budget import Budget
from dynamic.policies.control.device_state import DeviceState, resident_mb
from dynamic.policies.control.limits.candidate_filter import UPGRADE_SHARE, CandidateFilter, unmeasured
from dynamic.policies.control.reasons import formatted
from dynamic.policies.frontier import Frontier

RESERVE_MB = 32.0  # of available memory, reserved for other processes
_TOLERANCE_MB = 0.5  # of resident memory: it varies by as much between two readings
_ROUNDING_MB = 1e-3  # by which sums of the same networks may differ
_MOST_PRESSURE = 0.1  # share of the time that something waits for memory, above which memory is short


def memory(candidates: CandidateFilter, budget: Budget, device: DeviceState, wait: bool) -> None:
    """Limit the resident memory of the process, by the budget and by what the system has available."""
    rank = candidates.frontier.memory
    if budget.memory_mb is not None and device.base_mb is None:
        candidates.notes.append(unmeasured("memory_mb", budget.memory_mb))
    elif budget.memory_mb is not None and device.base_mb is not None:
        other_mb = device.base_mb + device.excess_mb
        candidates.keep(
            "memory_mb",
            rank,
            budget.memory_mb - other_mb + _TOLERANCE_MB,
            ("memory_mb allows at most {} MB, {} of which are not networks'", budget.memory_mb, other_mb),
            (
                "memory_mb is violated: {} MB of networks on top of {} MB are over {} MB. Raise memory_mb or add a "
                "smaller network",
                other_mb,
                budget.memory_mb,
            ),
            beside=other_mb,
        )
    if device.memory_available_mb is None:
        return
    networks_mb = resident_mb(candidates.frontier, device.resident)
    room_mb = device.memory_available_mb - RESERVE_MB + networks_mb
    is_short = (device.memory_pressure or 0.0) > _MOST_PRESSURE
    if is_short:  # no more than there is now
        room_mb = min(room_mb, networks_mb + _ROUNDING_MB)
    candidates.keep(
        None if "memory_mb" in candidates.violated_limits else "memory_mb",
        rank,
        room_mb,
        (_free, device, networks_mb, is_short),
        (_too_little, device, networks_mb, is_short),
        upgrade_share=UPGRADE_SHARE,
        beside=(device.base_mb or 0.0) + device.excess_mb,
    )


def backbones_in_memory(
    frontier: Frontier, budget: Budget, device: DeviceState, needed: frozenset[int]
) -> frozenset[int] | None:
    """The backbones that may remain in memory beside those that a point needs. None: all.

    Under `memory_mb` as many remain as fit, the smallest first. None remains where the system is short of memory.
    """
    if device.memory_available_mb is not None and (
        device.memory_available_mb < RESERVE_MB or (device.memory_pressure or 0.0) > _MOST_PRESSURE
    ):
        return needed
    if budget.memory_mb is None:
        if device.everything or device.memory_available_mb is None:
            return None
        # the cascade's graph holds every network: all may remain only once there is room for all
        room_mb = device.memory_available_mb - RESERVE_MB + resident_mb(frontier, device.resident)
        return None if sum(frontier.costs.memory_mb) <= UPGRADE_SHARE * room_mb else needed | device.resident
    if device.base_mb is None:
        return needed
    memory_mb = frontier.costs.memory_mb
    room_mb = budget.memory_mb - device.base_mb - device.excess_mb - resident_mb(frontier, needed)
    fitting = set(needed)
    for b in sorted(device.resident - needed, key=memory_mb.__getitem__):
        room_mb -= memory_mb[b]
        if room_mb < 0:
            break
        fitting.add(b)
    return frozenset(fitting)


def _free(device: DeviceState, networks_mb: float, is_short: bool) -> str:
    """The available memory, in words."""
    words = formatted("{} MB of memory are free, {} MB of which are for others", device.memory_available_mb, RESERVE_MB)
    if networks_mb:
        words += formatted(", and networks of {} MB are loaded", networks_mb)
    return words + ". Others wait for memory, so nothing more is loaded" if is_short else words


def _too_little(least_mb: float, device: DeviceState, networks_mb: float, is_short: bool) -> str:
    return formatted(
        "memory_mb is violated: {} MB are needed. {}. Free memory or add a smaller network",
        least_mb,
        _free(device, networks_mb, is_short),
    )
