"""The limits on accuracy: the drop that may be spent, the least accuracy, and no savings after drift."""

from dynamic.policies.budget import Budget
from dynamic.policies.control.device_state import DeviceState
from dynamic.policies.control.limits.candidate_filter import CandidateFilter
from dynamic.policies.fast_paths import members


def drop(candidates: CandidateFilter, budget: Budget, device: DeviceState, wait: bool) -> None:
    """Limit what accuracy is lost. After drift, the point of the least promised drop runs."""
    if budget.max_drop is not None:
        candidates.keep(
            "max_drop",
            candidates.frontier.drop,
            budget.max_drop,
            ("max_drop allows at most {}", budget.max_drop),
            ('max_drop is violated: {} is over {}. Raise max_drop or put "drop" first in priority', budget.max_drop),
            beside=None,
        )
    if budget.min_accuracy is not None:
        best = -min(candidates.frontier.accuracy.figures[i] for i in members(candidates.points))
        if not candidates.keep(
            "min_accuracy",
            candidates.frontier.accuracy,
            -budget.min_accuracy,
            ("min_accuracy requires at least {}", budget.min_accuracy),
            beside=None,
        ):
            words = 'min_accuracy is violated: {} is under {}. Lower min_accuracy or put "drop" first in priority'
            candidates.notes.append((words, best, budget.min_accuracy))
    if device.drift and budget.on_drift == "safest":
        candidates.closest(candidates.frontier.drop)
        candidates.points &= -candidates.points  # the first, since promises of the others do not hold on these inputs
        words = "Inputs have drifted from those of the calibration, so drops are unknown. Certify on new inputs"
        candidates.notes.append((words,))
