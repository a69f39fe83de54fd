"""The limit on temperature: less effort the closer the device is to it."""

from dynamic.policies.budget import Budget
from dynamic.policies.control.device_state import DeviceState
from dynamic.policies.control.limits.candidate_filter import UPGRADE_SHARE, CandidateFilter, unmeasured
from dynamic.policies.control.reasons import formatted
from dynamic.policies.control.thermal import AHEAD_S


def temperature(candidates: CandidateFilter, budget: Budget, device: DeviceState, wait: bool) -> None:
    """Limit the effort near the limit, and run the cheapest point at the limit."""
    if budget.temperature_c is None:
        return
    if device.cooling is None:
        candidates.notes.append(unmeasured("temperature_c", budget.temperature_c))
        return
    # the newest reading counts, whatever the mean is
    over = device.temperature_c is not None and device.temperature_c > budget.temperature_c
    share = 0.0 if device.throttled or over else device.cooling.share(budget.temperature_c)
    if share >= 1.0:
        return
    rank = candidates.frontier.effort
    low, high = min(rank.figures), max(rank.figures)
    now_c, limit_c = device.cooling.temperature_c, budget.temperature_c
    note = (_heat, device, limit_c)
    if share > 0.0:
        candidates.keep(None, rank, low + share * (high - low), note, upgrade_share=UPGRADE_SHARE)
        return
    candidates.closest(rank)
    candidates.notes.append(note)
    if over or now_c > limit_c:
        candidates.violated_limits.append("temperature_c")
        mean_c = (now_c, " on average") if now_c > limit_c else (device.temperature_c, "")
        words = (
            "temperature_c is violated: {:.1f} C{} is over {:.1f} C at the point of least effort. Cool the device or "
            "send fewer requests"
        )
        candidates.notes.append((words, *mean_c, limit_c))


def _heat(device: DeviceState, limit_c: float) -> str:
    """The measured and the predicted temperature, and which of them decides, in words."""
    assert device.cooling is not None
    predicted_c = device.cooling.ahead_c
    measured_c = device.temperature_c if device.temperature_c is not None else device.cooling.temperature_c
    if device.throttled:
        return formatted("The hardware slows this process down at {:.1f} C", measured_c)
    if measured_c > limit_c:
        return formatted("{:.1f} C are measured, which is over the limit of {:.1f} C", measured_c, limit_c)
    side = "over" if predicted_c >= limit_c else "close to"
    words = "{:.1f} C are measured. {:.1f} C are predicted in {} s, which is " + side + " the limit of {:.1f} C"
    return formatted(words, measured_c, predicted_c, AHEAD_S, limit_c)
