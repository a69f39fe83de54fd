"""The limits on the battery: a floor of the charge, and a time that the charge must last."""

from dynamic.policies.budget import Budget
from dynamic.policies.control.device_state import DeviceState
from dynamic.policies.control.limits.candidate_filter import CandidateFilter, unmeasured

_UPGRADE_SHARE = 0.98  # of what an inference may take from the battery: it does not follow single requests
_CLEARLY = 0.95  # share of the time asked for, below which the battery cannot last
_REMEDY = "Lower the frame rate or the screen brightness"


def battery(candidates: CandidateFilter, budget: Budget, device: DeviceState, wait: bool) -> None:
    """Run the cheapest point at the floor, and limit the effort so that the charge lasts."""
    if device.plugged:
        return
    if device.battery is None:
        limits = (("battery_floor", budget.battery_floor), ("battery_duration_s", budget.battery_duration_s))
        candidates.notes += [unmeasured(name, value) for name, value in limits if value is not None]
        return
    rank = candidates.frontier.effort
    if budget.battery_floor is not None and device.battery <= budget.battery_floor:
        candidates.closest(rank)
        words = "battery {:share} is at or below the floor {:share}, so the cheapest point runs"
        candidates.notes.append((words, device.battery, budget.battery_floor))
    pacer, floor = device.battery_pacer, budget.battery_floor or 0.0
    if budget.battery_duration_s is None or pacer is None:
        return
    hours = (pacer.start_s + pacer.battery_duration_s - device.time_s) / 3600
    lasting = "battery {:share} must last {:3} h more", device.battery, hours
    if candidates.keep(None, rank, pacer.effort_limit(floor), lasting, upgrade_share=_UPGRADE_SHARE):
        return
    passed_s = device.time_s - pacer.edge_s  # the charge lasts from its latest step on
    least = rank.figures[rank.first(candidates.points)]
    without_s, with_s = pacer.lasts_s(floor, 0.0), pacer.lasts_s(floor, least)
    if without_s < _CLEARLY * pacer.remaining_s():
        candidates.violated_limits.append("battery_duration_s")
        words = "battery_duration_s is violated: the battery lasts {:.1f} h even without inference, not {:.1f} h. "
        candidates.notes.append((words + _REMEDY, max(without_s - passed_s, 0.0) / 3600, hours))
    elif with_s < _CLEARLY * pacer.remaining_s():
        candidates.violated_limits.append("battery_duration_s")
        words = "battery_duration_s is violated: the battery lasts {:.1f} h at the cheapest point, not {:.1f} h. "
        candidates.notes.append((words + _REMEDY, max(with_s - passed_s, 0.0) / 3600, hours))
    else:
        candidates.notes.append(lasting)
