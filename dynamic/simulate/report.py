"""What a simulation found."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ARRAYS = ("latency_ms", "changes", "series")


@dataclass(frozen=True)
class SimulatedChange:
    """From `time_s` on the policy chose `point`, for this `reason`."""

    time_s: float
    point: str
    reason: str


@dataclass(frozen=True, eq=False)
class SimulationReport:
    """A simulated run: nothing here was measured on the device that it names.

    `requests` arrived; `answered` of them were, `shed` left the queue unanswered, the others came after the battery was
    empty. Of the answers (None where there are none): `accuracy` (None without labels); `latency_ms [answered]` from
    arrival to answer, queue included, with mean, median, p95, p99 and longest, and `mean_wait_ms` of it in the queue;
    `late_share` over the budget's latency, `deadline_miss_share` over its deadline (None: no such limit); `cut_share`
    ended early for a deadline; `uncertified_share`: those, and answers whose point has no bound or promises a larger
    drop than `max_drop`; `infeasible_share` under a decision that met not every limit, `violated_limit_shares` by
    limit. `useful_share`: right, and in time for latency and deadline, of all that arrived. `queue_longest` requests
    waiting.

    `energy_mj` of the whole device from `energy_source`, the sum of `idle_mj`, `screen_mj` and `inference_mj`, and
    `inference_mj_each` answer; `battery_left` 0..1, `hours` until the end, or until the battery was empty;
    `hours_per_charge`: how long a full battery lasts like this (None: no battery). `temperature_max_c` (None: no model
    of it), `throttled_share` of the time, `memory_over_share` of the time in which the process held more than its
    budget or than there was. `changes` of the decision and `switches_per_hour`, `loads` of backbones while serving,
    `stage_shares [S]` of answers by stage and `point_shares` by point.

    `doubts`: why the costs that all of this comes from are doubtful, see `Costs.doubts`.
    `series`: figures over time for pictures, each a list of the same length; see `dynamic.simulate.summary`.
    """

    device: str
    requests: int
    answered: int
    shed: int
    accuracy: float | None
    useful_share: float | None
    mean_latency_ms: float | None
    median_latency_ms: float | None
    p95_latency_ms: float | None
    p99_latency_ms: float | None
    longest_latency_ms: float | None
    mean_wait_ms: float | None
    late_share: float | None
    deadline_miss_share: float | None
    cut_share: float | None
    uncertified_share: float | None
    infeasible_share: float | None
    violated_limit_shares: dict[str, float]
    queue_longest: int
    energy_mj: float
    energy_source: str
    idle_mj: float
    screen_mj: float
    inference_mj: float
    inference_mj_each: float | None
    battery_left: float | None
    hours: float
    hours_per_charge: float | None
    temperature_max_c: float | None
    throttled_share: float
    memory_over_share: float
    changes: tuple[SimulatedChange, ...]
    switches_per_hour: float
    loads: int
    stage_shares: tuple[float, ...]
    point_shares: dict[str, float]
    latency_ms: NDArray[np.float64]
    series: Mapping[str, list[float | None]]
    doubts: tuple[str, ...] = ()

    def to_json(self, series: bool = False) -> dict[str, Any]:
        """Plain JSON types, without the latency of each request; marked as simulated."""
        data = {k: v for k, v in vars(self).items() if k not in _ARRAYS}
        changes = [vars(change).copy() for change in self.changes]
        data = (
            {"simulated": True}
            | data
            | {"changes": changes, "stage_shares": list(self.stage_shares), "doubts": list(self.doubts)}
        )
        return data | {"series": dict(self.series)} if series else data

    def __str__(self) -> str:
        lines = [f"simulated on {self.device} (a model, nothing measured there)"]
        lines += [f"  DOUBTFUL: {doubt}" for doubt in self.doubts]
        battery = "none" if self.battery_left is None else f"{self.battery_left:.1%} left after {self.hours:.3g} h"
        if self.hours_per_charge is not None:
            battery += f"; a full one lasts {self.hours_per_charge:.3g} h like this"
        shed = f", shed {self.shed}" if self.shed else ""
        rows = {
            "simulated requests": f"{self.requests}, answered {self.answered}{shed}",
            "simulated accuracy": _format(self.accuracy, ".4f"),
            "simulated latency": f"mean {_format(self.mean_latency_ms, '.3g')} ms, "
            f"p95 {_format(self.p95_latency_ms, '.3g')} ms, late {_format(self.late_share, '.1%')}, "
            f"longest queue {self.queue_longest}",
            "simulated deadline": f"missed {_format(self.deadline_miss_share, '.2%')}, "
            f"cut {_format(self.cut_share, '.2%')}, not certified {_format(self.uncertified_share, '.1%')}",
            "simulated energy": f"{self.energy_mj / 1e3:.4g} J ({self.energy_source}): idle {self.idle_mj / 1e3:.4g}, "
            f"screen {self.screen_mj / 1e3:.4g}, inference {self.inference_mj / 1e3:.4g}",
            "simulated battery": battery,
            "simulated heat": f"at most {_format(self.temperature_max_c, '.1f')} C, "
            f"throttled {self.throttled_share:.1%} of the time",
            "simulated stages": ", ".join(f"{share:.1%}" for share in self.stage_shares),
            "simulated points": ", ".join(f"{name} {share:.1%}" for name, share in self.point_shares.items()),
            "simulated switches": f"{self.switches_per_hour:.3g} an hour, {self.loads} networks loaded",
        }
        if self.infeasible_share:
            violated_limits = ", ".join(f"{name} {share:.1%}" for name, share in self.violated_limit_shares.items())
            rows["simulated limits"] = f"not all met {self.infeasible_share:.1%}: {violated_limits}"
        lines += [f"  {name:<19} {text}" for name, text in rows.items()]
        lines += [f"  simulated decision at {c.time_s:.3f} s: {c.reason}" for c in self.changes[:_SHOWN]]
        if len(self.changes) > _SHOWN:
            lines.append(f"  and {len(self.changes) - _SHOWN} more simulated decisions")
        return "\n".join(lines)


_SHOWN = 20  # decisions in the text


def _format(value: float | None, how: str) -> str:
    return "unknown" if value is None else format(value, how)
