"""What a simulation found."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Change:
    """From `time_s` on the policy chose `point`, for this `reason`."""

    time_s: float
    point: str
    reason: str


@dataclass(frozen=True, eq=False)
class SimulationReport:
    """A simulated run: nothing here was measured on the device that it names.

    `requests` arrived and `answered` of them were, the others not before the battery was empty. `accuracy` of the
    answers (None without labels); `latency_ms [answered]` from arrival to answer, queue included, with mean and
    95th percentile (None where nothing was answered); `late_share` of answers over the budget's latency;
    `queue_longest` requests waiting. `energy_mj` of the whole device from `energy_source`; `battery_left` 0..1;
    `hours` until the end, or until the battery was empty; `hours_per_charge`: how long a full battery lasts like
    this. `changes` of the decision, `stage_shares [S]` of answers by stage and `point_shares` by point.
    """

    device: str
    requests: int
    answered: int
    accuracy: float | None
    mean_latency_ms: float | None
    p95_latency_ms: float | None
    late_share: float | None
    queue_longest: int
    energy_mj: float
    energy_source: str
    battery_left: float
    hours: float
    hours_per_charge: float
    changes: tuple[Change, ...]
    stage_shares: tuple[float, ...]
    point_shares: dict[str, float]
    latency_ms: NDArray[np.float64]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, without the latency of each request; marked as simulated."""
        data = {k: v for k, v in vars(self).items() if k not in ("latency_ms", "changes")}
        changes = [vars(change).copy() for change in self.changes]
        return {"simulated": True} | data | {"changes": changes, "stage_shares": list(self.stage_shares)}

    def __str__(self) -> str:
        lines = [f"simulated on {self.device} (a model, nothing measured there)"]
        rows = {
            "simulated requests": f"{self.requests}, answered {self.answered}",
            "simulated accuracy": _format(self.accuracy, ".4f"),
            "simulated latency": f"mean {_format(self.mean_latency_ms, '.3g')} ms, "
            f"p95 {_format(self.p95_latency_ms, '.3g')} ms, late {_format(self.late_share, '.1%')}, "
            f"longest queue {self.queue_longest}",
            "simulated energy": f"{self.energy_mj / 1e3:.4g} J ({self.energy_source})",
            "simulated battery": f"{self.battery_left:.1%} left after {self.hours:.3g} h; "
            f"a full one lasts {self.hours_per_charge:.3g} h like this",
            "simulated stages": ", ".join(f"{share:.1%}" for share in self.stage_shares),
            "simulated points": ", ".join(f"{name} {share:.1%}" for name, share in self.point_shares.items()),
        }
        lines += [f"  {name:<19} {text}" for name, text in rows.items()]
        lines += [f"  simulated decision at {c.time_s:.3f} s: {c.reason}" for c in self.changes]
        return "\n".join(lines)


def _format(value: float | None, how: str) -> str:
    return "unknown" if value is None else format(value, how)
