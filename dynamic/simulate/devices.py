"""Devices that are simulated, with where each of their figures comes from."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from dynamic.policies.costs import Costs, Table
from dynamic.policies.errors import BudgetError

_FIGURES = ("relative_speed", "cores", "memory_mb", "battery_mwh", "idle_mw", "active_mw")


@dataclass(frozen=True)
class Device:
    """A battery device, in the few figures that a simulation needs.

    `relative_speed` to the machine that the costs were measured on; `memory_mb` free for applications before
    anything is loaded; `battery_mwh` of a full battery; `idle_mw` drawn all the time, `active_mw` on top of that
    while inference runs. `source`: for every figure a public source, or "assumption".

    Raises BudgetError on a figure that is not positive, or one without a source.
    """

    name: str
    relative_speed: float
    cores: int
    memory_mb: float
    battery_mwh: float
    idle_mw: float
    active_mw: float
    source: Mapping[str, str] = field(hash=False)

    def __post_init__(self) -> None:
        for figure in _FIGURES:
            value = getattr(self, figure)
            if not (isinstance(value, (int, float)) and 0 < value < math.inf):
                raise BudgetError(f"{figure}={value!r} of device {self.name!r} must be a positive number")
        if without := [figure for figure in _FIGURES if not self.source.get(figure)]:
            raise BudgetError(f"device {self.name!r} names no source for {without}; give a public one, or 'assumption'")

    def costs(self, costs: Costs) -> Costs:
        """What profiling would give on this device: times divided by its speed, energy by the model.

        Energy of a stage is its time times `active_mw`.
        """

        def slower(table: Table) -> Table:
            return tuple(tuple(value / self.relative_speed for value in row) for row in table)

        latency_ms = slower(costs.latency_ms)
        return replace(
            costs,
            machine=f"simulated {self.name}",
            threads=min(costs.threads, self.cores),
            latency_ms=latency_ms,
            latency_p95_ms=slower(costs.latency_p95_ms),
            head_ms=slower(costs.head_ms),
            call_ms=slower((costs.call_ms,))[0],
            cpu_ms=slower(costs.cpu_ms),
            energy_mj=tuple(tuple(ms * self.active_mw / 1e3 for ms in row) for row in latency_ms),
            energy_source="model",
            idle_mw=self.idle_mw,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(replace(self, source=dict(self.source)))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Device":
        """What `to_json` gave; raises BudgetError on fields that are missing or unknown."""
        try:
            return cls(**data)
        except TypeError as error:
            raise BudgetError(f"{dict(data)!r} is no device ({error}); it needs name, source, {_FIGURES}") from error


def devices() -> dict[str, Device]:
    """The devices that come with the library, by short name."""
    text = Path(__file__).with_name("devices.json").read_text(encoding="utf-8")
    return {name: Device.from_json(data) for name, data in json.loads(text).items()}


def device(name: str) -> Device:
    """One of `devices()`; raises BudgetError where there is none of that name."""
    known = devices()
    if name not in known:
        raise BudgetError(f"no device {name!r}; there are {sorted(known)}, or make a Device")
    return known[name]
