"""A cascade and devices whose simulations can be worked out by hand."""

from dataclasses import replace
from typing import Any

import numpy as np
from support.policy_cases import make_costs

from dynamic.policies.budget import Budget
from dynamic.policies.control.fixed_policy import FixedPolicy
from dynamic.policies.frontier import Frontier
from dynamic.policies.ladder import Ladder, OperatingPoint
from dynamic.policies.records import Records
from dynamic.simulate import Device, SimulationReport, simulate

INF = float("inf")

# 1 mWh is 3,600 mJ; as fast as the machine that costs are of; two cores, one thread
PLAIN = Device("plain", relative_speed=1.0, cores=2, memory_mb=1000, battery_mwh=1, idle_mw=100, active_mw=1000,
    source=dict.fromkeys(
    ("relative_speed", "cores", "memory_mb", "battery_mwh", "idle_mw", "active_mw", "screen_mw", "charging_mw",
     "frequency_steps", "resistance_c_per_w", "capacity_j_per_c", "throttle_c", "hysteresis_c", "load_ms_per_mb",
     "battery_step", "temperature_step_c", "absent"), "assumption"))  # fmt: skip
# ends 30 degrees above ambient while inference never stops, halfway after 10 ln 2 seconds
WARM = replace(PLAIN, battery_mwh=1000, idle_mw=1000, active_mw=2000, resistance_c_per_w=10.0, capacity_j_per_c=1.0)

COSTS = make_costs([[20], [40]], memory_mb=(50.0, 80.0))
SURE, UNSURE = [9.0, 0.0], [0.1, 0.0]  # both say class 0
# records 0 and 1 are sure at once (1 wrongly), 2 and 3 are not; the last stage is wrong about 3 alone
RECORDS = Records(
    logits=np.array(
        [[SURE, [9.0, 0.0]], [SURE, [0.0, 9.0]], [UNSURE, [0.0, 9.0]], [UNSURE, [0.0, 9.0]]],
        np.float32,
    ),
    label=np.array([0, 1, 1, 0]),
    group=None,
    part=np.ones(4, np.int8),
    backbone=(0, 1),
    macs=(1.0, 2.0),
    head_macs=(0.0, 0.0),
    stage_names=("early", "late"),
    fingerprint="f",
)


def _point(name: str, threshold: float, accuracy: float, share: float, backbones: tuple[int, ...]) -> OperatingPoint:
    return OperatingPoint(
        name=name,
        thresholds=(threshold,),
        backbones=backbones,
        target=0.75 - accuracy,
        risk=0.75 - accuracy,
        bound=None,
        delta=None,
        n=4,
        accuracy=(accuracy, accuracy, accuracy),
        shares=(share, 1 - share),
    )


# "both" and "quick" leave after 20 ms or 60; "last" is the second network alone, 40 ms; "first" the first, 20 ms
LADDER = Ladder(
    temperature=(1.0, 1.0),
    score="max_probability",
    combine="last",
    backbone=(0, 1),
    stage_names=("early", "late"),
    points=(
        _point("last", INF, 0.75, 0.0, (1,)),
        _point("both", 0.99999, 0.76, 0.0, (0, 1)),
        _point("quick", 0.8, 0.5, 0.6, (0, 1)),
        _point("first", -INF, 0.25, 1.0, (0,)),
    ),
    fingerprint="f",
    certified=False,
)
FRONTIER = Frontier.of(LADDER, COSTS)


def serve(
    workload: Any, point: str = "last", budget: Any = None, device: Device = PLAIN, **options: Any
) -> SimulationReport:
    """Simulate with one point always."""
    return simulate(
        FRONTIER,
        RECORDS,
        device=device,
        workload=workload,
        policy=FixedPolicy(point),
        budget=budget or Budget(),
        **options,
    )
