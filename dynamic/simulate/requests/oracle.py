"""A policy with knowledge of the future, for comparison with real policies. It is no bound on what is possible."""

from bisect import bisect_left
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamic.policies.budget import Budget
from dynamic.policies.decision import Decision, Policy
from dynamic.policies.errors import InputError
from dynamic.policies.frontier import Frontier
from dynamic.policies.records import Records
from dynamic.policies.snapshot import Snapshot
from dynamic.simulate.device_models import Device
from dynamic.simulate.requests.oracle_search import Planned, plan_slots
from dynamic.simulate.requests.outcomes import outcomes
from dynamic.simulate.requests.queue_times import best_points, waits
from dynamic.simulate.requests.slots import Floats, Heat, Service, Slots
from dynamic.simulate.workload import Workload
from dynamic.simulate.world.device_world import World
from dynamic.simulate.world.environment import Budgets
from dynamic.simulate.world.processes import Value, pieces

_NO_LIMIT = float("inf")
_MARGIN_C = 0.5  # below the temperature limit: real times differ from expected ones


class PlannedPoints(Policy):
    """A policy that runs the planned point of each request in turn, by its wait. The state counts requests.

    The simulator must ask it at every request and must shed none.

    Args:
        points: Planned point for each request and wait `[M, G]`.
        grid_s: Waits `[G]` in seconds.
        contention: Slowdown of each request `[M]`.
        tight: Whether memory is short at each request `[M]`.
        planned: The plan of the first step.
    """

    def __init__(
        self, points: NDArray[np.int16], grid_s: Floats, contention: Floats, tight: NDArray[np.bool_], planned: Planned
    ) -> None:
        self.points, self.planned = points, planned
        # a wait is rounded up to the grid: a request in time there is in time here
        self._waits_ms: list[float] = (grid_s[:-1] * 1e3 + 1e-6).tolist()
        self._contention: list[float] = contention.tolist()
        self._tight: list[bool] = tight.tolist()

    def initial(self) -> int:
        """Return the number of the first request."""
        return 0

    def decide(self, frontier: Frontier, budget: Budget, snapshot: Snapshot, state: int) -> tuple[Decision, int]:
        """Return the planned point.

        Args:
            frontier: Operating points with the costs of the device.
            budget: Unused.
            snapshot: State of the device, for the wait of the request.
            state: Index of the request.

        Returns:
            The decision, and the index of the next request.

        Raises:
            IndexError: The request lies beyond the last planned one.
        """
        wait = bisect_left(self._waits_ms, snapshot.waited_ms or 0.0)
        point = frontier.points[self.points[state, wait]]
        keep_loaded = point.backbones if self._tight[state] else None
        reason = f"planned: {point.name!r}"
        return Decision(point, reason=reason, keep_loaded=keep_loaded, slowdown=self._contention[state]), state + 1


def oracle(
    frontier: Frontier,
    records: Records,
    *,
    device: Device,
    workload: Workload,
    budget: Budgets,
    seed: int = 0,
    background_load: Value = 0.0,
    battery: float = 1.0,
    process_mb: float = 60.0,
    ambient_c: Value | None = None,
    temperature_c: float | None = None,
    plugged: Value = 0.0,
    memory_mb: Value | None = None,
    screen: bool = True,
    noise: float = 1.0,
    penalty: float = 10.0,
    slots: int = 400,
    **others: Any,
) -> PlannedPoints:
    """Plan a run of `simulate` with knowledge of the future, as a reference for other policies.

    The plan uses every arrival and the whole course of background load, ambient temperature, mains and memory. Of the
    inputs it uses calibration results alone: accuracy and shares by stage, and profiled times with their spread.

    **Objective.** The sum over all requests of 1 - accuracy, and of `penalty` for a late one. Late means later than the
    tighter of the budget's latency and deadline. Constraints are energy and temperature. Energy on battery must leave
    the floor at `battery_duration_s`, and its mean must hold the budget's limit. Energy charged until then counts as if
    it came at the start. The temperature must remain half a degree below the budget's limit and the throttling
    temperature. Memory, `cpu_ms`, `max_drop` and `min_accuracy` hold as well.

    **Search.** The first step plans energy and heat without a queue: a point for each of `slots` parts of time (see
    `oracle_search.plan_slots`). The second step plans the queue: the best point for each request and each possible wait
    (see `queue_times.best_points`). It may use no more energy than the point of the slot.

    **No bound.** Another policy may be better. The plan ignores answers that a deadline cuts short, times to load
    networks and steps of the clock. Energy that the queue leaves is not used again, and waits lie on a grid. A million
    requests take about a minute.

    Run the plan with `decide="request"` and without `queue_limit`.

    Args:
        frontier: Operating points with costs of any machine. They are scaled to the device.
        records: Records on which thresholds were not chosen.
        device: The device.
        workload: The requests.
        budget: The budget, or a function of the time in seconds to one.
        seed: Seed of arrivals, as for `simulate`.
        background_load: Cores that others demand, as a share of the cores. A number or a function of time.
        battery: Charge at the start, above 0, at most 1.
        process_mb: Resident memory before a network is loaded, in 10^6 bytes.
        ambient_c: Ambient temperature in degrees Celsius, a number or a function of time. None: that of the device.
        temperature_c: Temperature at the start. None: that of the idle device after a long time.
        plugged: 0 on battery, else on the mains. A number or a function of time.
        memory_mb: Memory for applications in 10^6 bytes, a number or a function of time. None: that of the device.
        screen: Whether the screen is on.
        noise: Spread of times over the profiled spread. 0: no noise.
        penalty: Cost of a late request, in wrong answers.
        slots: Number of parts of time.
        others: Further arguments of `simulate`. They are ignored, except `sizes`, with which nothing can be planned.

    Returns:
        A policy for `simulate` with the same arguments.

    Raises:
        SettingError: A workload or a device is out of range.
        InputError: `sizes` are given.

    Example:
        >>> arguments = dict(
        ...     device=dynamic.simulate.device("laptop"),
        ...     workload=dynamic.simulate.Poisson(rate_hz=5, duration_s=60),
        ...     budget=dynamic.Budget(latency_ms=50),
        ...     seed=1,
        ... )
        >>> plan = dynamic.simulate.oracle(bundle.frontier, records, **arguments)
        >>> report = dynamic.simulate.simulate(bundle.frontier, records, policy=plan, **arguments)
        >>> report.answered == report.requests
        True
    """
    if others.get("sizes") is not None:
        raise InputError("sizes are given: an oracle plans with inputs of the example's size. Leave sizes out in both")
    here = frontier.recost(device.costs(frontier.costs))
    service = Service.of(here, list(outcomes(here, records, noise).values()), device)
    arrival_s = np.asarray(workload.arrivals(np.random.default_rng(seed)), np.float64)
    slot_s = workload.duration_s / slots
    start_s = (np.arange(slots) * slot_s).tolist()
    slot = np.minimum((arrival_s / slot_s).astype(np.int64), slots - 1)  # [M]
    budgets = [budget if isinstance(budget, Budget) else budget(t) for t in start_s]
    load = pieces(background_load)
    wanted = np.array([load(t)[0] for t in arrival_s.tolist()])
    contention = 1.0 + device.contention_share * np.maximum(wanted + here.costs.threads / device.cores - 1.0, 0.0)
    ambient = pieces(device.ambient_c if ambient_c is None else ambient_c)
    memory = pieces(device.memory_mb if memory_mb is None else memory_mb)
    free_mb = np.array([min(memory(t)[0], memory(t + slot_s * 0.999)[0]) for t in start_s])
    mains = np.array([bool(pieces(plugged)(t)[0]) for t in start_s])
    until_s = min(budgets[0].battery_duration_s or _NO_LIMIT, workload.duration_s)
    before = np.array(start_s) < until_s
    around = Slots(
        slot_s=slot_s,
        arrivals=np.bincount(slot, minlength=slots).astype(np.float64),
        ambient_c=np.array([ambient(t + slot_s / 2)[0] for t in start_s]),
        allowed=_allowed(here, budgets, free_mb - process_mb, process_mb),
        counted=before & ~mains if device.battery_mwh is not None else np.ones(slots, bool),
    )
    world = World(device, battery, ambient(0.0)[0], temperature_c, screen)
    most_mj = _energy(world, device, budgets[0], around, float((before & mains).sum()) * slot_s)
    planned = plan_slots(service, around, most_mj, _heat(world, device, budgets[0]))
    ceiling_mj = service.energy_mj[list(planned.points)]  # [N]
    allowed = around.allowed & (service.energy_mj <= ceiling_mj[:, None] * (1 + 1e-9))
    limit_s = np.array([min(b.latency_ms or _NO_LIMIT, b.deadline_ms or _NO_LIMIT) / 1e3 for b in budgets])
    if np.isfinite(limit_s).any():
        grid_s = waits(float(limit_s[np.isfinite(limit_s)].max()))
        points = best_points(service, arrival_s, contention, limit_s[slot], allowed[slot], penalty, grid_s)
    else:
        grid_s, points = np.zeros(1), np.array(planned.points, np.int16)[slot][:, None]
    tight = free_mb < process_mb + sum(here.costs.memory_mb)
    return PlannedPoints(points, grid_s, contention, tight[slot], planned)


def _energy(world: World, device: Device, budget: Budget, slots: Slots, charging_s: float) -> float:
    """Millijoules that inference may use in the slots that count."""
    most_mj = _NO_LIMIT
    if world.left_mj is not None and world.full_mj is not None:
        floor_mj = (budget.battery_floor or 0.0) * world.full_mj
        base_mj = world.power_mw * slots.slot_s * float(slots.counted.sum())
        most_mj = max(0.0, world.left_mj + device.charging_mw * charging_s - floor_mj - base_mj)
    if budget.energy_mj is not None:
        most_mj = min(most_mj, budget.energy_mj * float(slots.arrivals[slots.counted].sum()))
    return most_mj


def _heat(world: World, device: Device, budget: Budget) -> Heat | None:
    limits_c = [limit for limit in (budget.temperature_c, device.throttle_c) if limit is not None]
    resistance, capacity = device.resistance_c_per_w, device.capacity_j_per_c
    if world.temperature_c is None or resistance is None or capacity is None or not limits_c:
        return None
    return Heat(world.temperature_c, world.power_mw, min(limits_c) - _MARGIN_C, resistance, capacity)


def _allowed(here: Frontier, budgets: list[Budget], room_mb: Floats, process_mb: float) -> NDArray[np.bool_]:
    """Points `[N, P]` that memory, `cpu_ms`, `max_drop` and `min_accuracy` allow. Skips a limit that allows none."""
    sizes_mb = np.array([point.memory_mb for point in here.points])
    cpu_ms = np.array([point.cpu_ms[0] for point in here.points])
    drop = np.array([point.promised_drop for point in here.points])
    accuracy = np.array([point.accuracy.mid for point in here.points])
    rows = []
    for budget, room in zip(budgets, room_mb, strict=True):
        most_mb = room if budget.memory_mb is None else min(room, budget.memory_mb - process_mb)
        fits = sizes_mb <= most_mb
        if not fits.any():
            fits = sizes_mb == sizes_mb.min()
        cheap = fits & (cpu_ms <= (_NO_LIMIT if budget.cpu_ms is None else budget.cpu_ms))
        if cheap.any():
            fits = cheap
        good = drop <= (_NO_LIMIT if budget.max_drop is None else budget.max_drop)
        good &= accuracy >= (budget.min_accuracy or 0.0)
        rows.append(fits & good if (fits & good).any() else fits)
    return np.array(rows)
