"""A policy on a simulated device: recorded answers, simulated time, battery and heat, real decisions."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from dynamic.policies.decision import Policy
from dynamic.policies.errors import InputError, SettingError
from dynamic.policies.frontier import Frontier
from dynamic.policies.records import Records
from dynamic.simulate.device_models import Device
from dynamic.simulate.report import SimulationReport
from dynamic.simulate.requests.outcomes import outcomes
from dynamic.simulate.requests.simulated_runtime import Decide, Requests, Rules, serve
from dynamic.simulate.summary import summarize
from dynamic.simulate.workload import Workload, as_workload
from dynamic.simulate.world.device_world import World
from dynamic.simulate.world.environment import Budgets, Environment, Surroundings
from dynamic.simulate.world.processes import Value, pieces
from dynamic.simulate.world.virtual_sensors import Faults, Sensors

DECIDE: tuple[Decide, ...] = get_args(Decide)


@dataclass(frozen=True)
class Stalls:
    """Delays by the scheduler, on top of contention. An assumption, not a measurement: fit it to the device.

    Args:
        chance: Share of requests that are delayed while all cores are in demand, 0 to 1. With less background load
            the share is in proportion.
        mean_ms: Mean delay in milliseconds, not negative. Delays are exponential.

    Raises:
        SettingError: A value is out of range.

    Example:
        >>> dynamic.simulate.Stalls(chance=0.02, mean_ms=30).mean_ms
        30
    """

    chance: float
    mean_ms: float

    def __post_init__(self) -> None:
        if not (0 <= self.chance <= 1 and 0 <= self.mean_ms < float("inf")):
            raise SettingError(f"chance={self.chance}, mean_ms={self.mean_ms}: give a fraction and no negative time")


def simulate(
    frontier: Frontier,
    records: Records,
    *,
    device: Device,
    workload: Workload | Sequence[float] | NDArray[np.float64],
    policy: Policy,
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
    faults: Faults | None = None,
    noise: float = 1.0,
    stalls: Stalls | None = None,
    monitor_hz: float | None = 5.0,
    decide: Decide | None = None,
    queue_limit: int | None = None,
    samples: int = 200,
    sizes: Sequence[int] | NDArray[np.int64] | None = None,
) -> SimulationReport:
    """Simulate a policy on a device: one request of one input at a time, first come first served.

    **Answers.** Every request is one of the records. Each record comes once, in random order, before any comes again.
    Its scores and its correctness were recorded.

    **Time.** A request takes the profiled time of the path to its stage, scaled to the device, and `overhead_ms`. This
    is divided by the clock's ratio to its maximum and multiplied by the contention at the start. Contention is 1 +
    `contention_share` x max(0, (b + t) / c - 1): b cores demanded by others, t threads of inference, c cores. A request
    that arrives at an idle device also waits `wake_ms`, one behind another `handover_ms`. A backbone that is not in
    memory is loaded first. Backbones of the first decision are there already. All are in memory where the costs choose
    route "graph" for one row. A deadline, a limit on memory or too little free memory excludes that.

    **Deadlines** follow the rule of the engines. After the first answer, no stage begins that is late already. Nor does
    one whose next answer is expected late, by 95th percentiles times the slowdown of the decision.

    **The device.** It draws idle power all the time, that of the screen where it is on, and active power while
    inference works. Others that slow a request down make it wait, not work. The power of background load is not
    modelled.

    **The policy** sees the last reading of the sensors and the wait of the request. The same seed gives the same
    report. Other policies under the same seed meet the same requests with the same noise.

    Args:
        frontier: Operating points with costs of any machine. They are scaled to the device.
        records: Records on which thresholds were not chosen: `records.select(records.part == 1)`.
        device: The device.
        workload: The requests, or the rising times in seconds at which they arrive.
        policy: The policy.
        budget: The budget, or a function of the time in seconds to one, called five times a second.
        seed: Seed of arrivals, order of records, noise and stalls.
        background_load: Cores that others demand, as a share of the cores. Above 1 they queue. A number or a function
            of the time in seconds.
        battery: Charge at the start, above 0, at most 1.
        process_mb: Resident memory before a network is loaded, in 10^6 bytes.
        ambient_c: Ambient temperature in degrees Celsius, a number or a function of time. None: that of the device.
        temperature_c: Temperature at the start. None: that of the idle device after a long time.
        plugged: 0 on battery, else on the mains. A number or a function of time.
        memory_mb: Memory for applications in 10^6 bytes, a number or a function of time. None: that of the device.
        screen: Whether the screen is on.
        faults: Faults of the sensors. None: none.
        noise: Spread of times over the profiled spread. 0: no noise.
        stalls: Delays by the scheduler. None: none.
        monitor_hz: Readings of the sensors a second. None: one for every request.
        decide: "request" for a decision at every request, "monitor" for one after every reading. "change" for one
            after every reading, and where a request has waited, was slow, or 128 were answered. None: as the runtime
            does for this policy, which is "change" where it has `decides_each_request = False`, else "request".
        queue_limit: Number of requests that may wait. One more sheds the oldest. None: no limit.
        samples: Number of samples in the report's series.
        sizes: Size of each record's input `[N]`, where dimensions are dynamic: the product of those of one row, such as
            tokens of a text. Its time is that of its size. None: all are of the example's size.

    Returns:
        The report.

    Raises:
        InputError: The records are empty or of another cascade.
        SettingError: A setting is out of range.

    Example:
        >>> report = dynamic.simulate.simulate(
        ...     bundle.frontier,
        ...     records,
        ...     device=dynamic.simulate.device("mid-range-phone"),
        ...     workload=dynamic.simulate.Poisson(rate_hz=20, duration_s=60),
        ...     policy=dynamic.BudgetPolicy(),
        ...     budget=dynamic.Budget(latency_ms=80),
        ...     background_load=0.3,
        ... )
        >>> report.answered == report.requests
        True
    """
    if records.stages != len(frontier.ladder.backbone):
        raise InputError(
            f"records are of {records.stages} stages, the frontier of {len(frontier.ladder.backbone)}: "
            "give the records of this bundle"
        )
    if len(records) == 0:
        raise InputError("there are no records: nothing can be replayed")
    if not 0 < battery <= 1:
        raise SettingError(f"battery={battery} must be a fraction above 0, 1 for full")
    if decide is not None and decide not in DECIDE:
        raise SettingError(f"decide={decide!r} must be one of {DECIDE}")
    if not 0 <= noise < float("inf"):
        raise SettingError(f"noise={noise} must not be negative: 1 is as spread as profiled")
    if queue_limit is not None and queue_limit < 1:
        raise SettingError(f"queue_limit={queue_limit} must be at least 1, or None for no limit")
    size_of = None if sizes is None else _checked_sizes(np.asarray(sizes), records, frontier)
    here = frontier.recost(device.costs(frontier.costs))
    played = outcomes(here, records, noise)
    arrivals = np.random.default_rng(seed)
    requested = as_workload(workload)
    arrival_s = requested.arrivals(arrivals)  # [M]
    record = _shuffled(len(arrival_s), len(records), arrivals)  # [M]
    luck, sensing = (np.random.default_rng([seed, stream]) for stream in (1, 2))  # so that neither moves the arrivals
    noisy = any(sigma > 0 for outcome in played.values() for sigma in outcome.sigma)
    requests = Requests(
        arrival_s.tolist(),
        record.tolist(),
        luck.standard_normal(len(record)).tolist() if noisy else [],
        luck.exponential(stalls.mean_ms, len(record)).tolist() if stalls else [],
        luck.uniform(size=len(record)).tolist() if stalls else [],
        [] if size_of is None else size_of[record].tolist(),
    )
    ambient = device.ambient_c if ambient_c is None else ambient_c
    memory = device.memory_mb if memory_mb is None else memory_mb
    world = World(device, battery, pieces(ambient)(0.0)[0], temperature_c, screen)
    env = Environment(
        world,
        Sensors(device, world, threads=here.costs.threads, faults=faults, random=sensing),
        around=Surroundings(background_load, ambient, plugged, memory),
        budget=budget,
        monitor_hz=monitor_hz,
        sample_s=max(requested.duration_s / max(samples, 1), 1e-9),
    )
    env.process_mb = process_mb
    rules = Rules(
        decide=decide or ("request" if getattr(policy, "decides_each_request", True) else "change"),
        queue_limit=queue_limit,
        cores=device.cores,
        reads_itself=monitor_hz is None,
        stall_chance=stalls.chance if stalls else 0.0,
        load_ms_per_mb=device.load_ms_per_mb,
        process_mb=process_mb,
        overhead_ms=device.overhead_ms,
        wake_ms=device.wake_ms,
        handover_ms=device.handover_ms,
        contention_share=device.contention_share,
    )
    log = serve(here, played, requests, policy, env, rules)
    if not world.empty:
        end_s = max(log.end_s[-1] if log.end_s else 0.0, requested.duration_s)
        env.advance(end_s, log.end_s[-1] if log.end_s else 0.0, power_mw=0.0)
        env.settle(end_s)
    report = summarize(log, device, env, tuple(played.values()), requests, records, frontier.ladder.certified)
    return replace(report, doubts=frontier.costs.doubts)


def _checked_sizes(sizes: NDArray[np.int64], records: Records, frontier: Frontier) -> NDArray[np.int64]:
    """The sizes of the records `[N]`. Raises InputError where they are none, or the costs are of one size alone."""
    if sizes.shape != (len(records),) or sizes.dtype.kind not in "iu" or sizes.min() < 1:
        raise InputError(
            f"sizes are {sizes.dtype} {list(sizes.shape)}: give a whole number from 1 for each of the {len(records)} "
            "records"
        )
    if not frontier.costs.sizes:
        raise InputError("sizes were given, and the costs are of one size alone: profile a bundle of dynamic inputs")
    return sizes


def _shuffled(requests: int, records: int, random: np.random.Generator) -> NDArray[np.int64]:
    """A record for each request. Every record comes once before any comes again."""
    rounds = [random.permutation(records) for _ in range(-(-requests // records))]
    return np.concatenate([*rounds, np.empty(0, np.int64)]).astype(np.int64)[:requests]
