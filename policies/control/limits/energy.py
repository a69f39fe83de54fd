"""The limits on energy and CPU time of an inference."""

from dynamic.policies.budget import Budget
from dynamic.policies.control.device_state import DeviceState
from dynamic.policies.control.limits.candidate_filter import CandidateFilter


def energy(candidates: CandidateFilter, budget: Budget, device: DeviceState, wait: bool) -> None:
    """Limit energy and CPU time of an inference on average, for inputs of the size of the request."""
    frontier, size = candidates.frontier, device.size if wait else None
    metered = frontier.costs.energy_mj is not None
    if budget.energy_mj is not None and metered:
        candidates.keep(
            "energy_mj",
            frontier.ranked("effort", size),
            budget.energy_mj,
            ("energy_mj allows at most {} mJ", budget.energy_mj),
            (
                "energy_mj is violated: {} mJ is over {} mJ. Raise energy_mj or add a cheaper exit",
                budget.energy_mj,
            ),
        )
    if budget.cpu_ms is not None:
        candidates.keep(
            "cpu_ms",
            frontier.ranked("processor" if metered else "effort", size),
            budget.cpu_ms,
            ("cpu_ms allows at most {} CPU-ms", budget.cpu_ms),
            ("cpu_ms is violated: {} CPU-ms is over {} CPU-ms. Raise cpu_ms or add a cheaper exit", budget.cpu_ms),
        )
