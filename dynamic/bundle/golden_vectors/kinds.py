"""Kinds of sequences of golden cases, and their seeds."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Kind:
    """How a sequence of requests is drawn.

    Args:
        cases: How many there are.
        limits: Limits that its budgets mostly have.
        other: The chance of any other limit.
        budget: The chance that a budget is new.
        feedback: The chance of feedback.
        steps_s: Seconds from one case to the next. A negative one sets the clock back.
        steady: Numbers of cases during which readings are easy, so that a better point runs. A few hard ones follow.
            Empty: every reading is drawn on its own.
    """

    cases: int
    limits: tuple[str, ...]
    other: float
    budget: float
    feedback: float
    steps_s: tuple[float, ...]
    steady: tuple[int, ...] = ()


WILD = Kind(40, (), 0.25, 0.3, 0.7, (0.0, 0.1, 0.2, 1.0, 5.0, 20.0, -1.0))
WARM = Kind(40, ("temperature_c",), 0.25, 0.05, 0.7, (0.0, 0.2, 0.7, 1.0, 3.0, 5.0, -1.0))
PACED = Kind(40, ("battery_duration_s",), 0.06, 0.05, 0.7, (0.2, 0.2, 0.5, 0.7, 1.0, -0.3))
LONG = replace(PACED, limits=("battery_duration_s", "latency_ms"), steps_s=(0.4, 20.0, 50.0, 80.0, -5.0))
FULL = Kind(120, ("memory_mb", "deadline_ms"), 0.02, 0.01, 0.1, (0.0, 0.1, 0.3, 1.0, 2.0, -0.5), steady=(24, 30, 44))
HEATED = replace(FULL, limits=("temperature_c", "energy_mj"), steps_s=(0.0, 4.0, 8.0, 15.0, -3.0), steady=(25, 27, 36))
CPU = replace(WILD, limits=("cpu_ms",))
FLOOR = replace(HEATED, limits=("battery_floor",))
# seeds by device and kind. Those on the synthetic ladder detect ports with a single fault
SEEDS: dict[str, list[tuple[Kind, tuple[int, ...]]]] = {
    "made up": [(WILD, (3, 58)), (WARM, (30,)), (PACED, (6, 8)), (FULL, (1,))],
    "unmetered": [(WILD, (7, 28)), (WARM, (10, 17, 25)), (PACED, (2,)), (LONG, (21, 61)), (FLOOR, (5, 38))],
    "slow": [(WILD, (0,)), (LONG, (0,))],
    "fast": [(CPU, (0,))],
}
