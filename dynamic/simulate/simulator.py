"""A policy at work on a simulated device: recorded answers, simulated time, battery and heat, the real decisions."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dynamic.policies.decision import Policy
from dynamic.policies.errors import InputError, SettingError
from dynamic.policies.frontier import Frontier
from dynamic.policies.records import Records
from dynamic.simulate.device_models import Device
from dynamic.simulate.report import SimulationReport
from dynamic.simulate.requests.outcomes import outcomes
from dynamic.simulate.requests.simulated_runtime import Requests, Rules, serve
from dynamic.simulate.summary import summarize
from dynamic.simulate.workload import Workload
from dynamic.simulate.world.device_world import World
from dynamic.simulate.world.environment import Budgets, Environment, Surroundings
from dynamic.simulate.world.processes import Value, pieces
from dynamic.simulate.world.virtual_sensors import Faults, Sensors

DECIDE = ("request", "monitor")


@dataclass(frozen=True)
class Stalls:
    """The scheduler's tail: while all cores are wanted, a share `chance` of requests waits `mean_ms` more.

    With less background load the chance is in proportion; what they wait is exponential. An assumption, not a
    measurement: fit it to the device. Raises SettingError on values out of range.
    """

    chance: float
    mean_ms: float

    def __post_init__(self) -> None:
        if not (0 <= self.chance <= 1 and 0 <= self.mean_ms < float("inf")):
            raise SettingError(f"chance={self.chance}, mean_ms={self.mean_ms}: give a fraction and no negative time")


def simulate(
    frontier: Frontier,
    records: Records,
    device: Device,
    workload: Workload,
    policy: Policy,
    budget: Budgets,
    *,
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
    decide: str = "request",
    queue_limit: int | None = None,
    samples: int = 200,
) -> SimulationReport:
    """Let `policy` serve `workload` on `device` under `budget`, one request of one input at a time, first come first.

    **Answers.** Every request is one of `records` (each once, in random order, before any comes again), with the scores
    and the correctness that were recorded: give records that the thresholds were not chosen on,
    `records.select(records.part == 1)`.

    **Time.** A request that finds nobody before it waits the device's `wake_ms`. It takes the time of the path to the
    stage that it leaves at, as if profiled on the device, and the device's `overhead_ms`, divided by the clock's ratio
    to its maximum, times (b + t) / c where the b cores that `background_load` wants (a share of the c there are; above
    1 where more wants to run) and the t threads of inference want more than there are; `noise` times as spread as
    profiled (0: not at all); `stalls` on top. Load and clock are those when it starts. Where the budget has a deadline,
    the rule of engines holds: once there is an answer, no stage is begun after the deadline, nor one from which the
    next answer is expected later, by 95th percentiles times the decision's slowdown. `queue_limit`: so many wait, and
    one more sends the one that has waited longest away (None: all wait). A backbone that is not in memory takes the
    device's `load_ms_per_mb`; those of the first decision are there already. All are held where the costs' route of one
    row is "graph", unless there is a deadline, the decision limits what may stay, or too little memory is free.

    **The device.** The battery starts at `battery` (0..1). It gives the idle power all the time, that of the `screen`
    where that is on, and the active power while inference works: a request that others slow down works no longer, it
    waits. What the background load draws is not counted. `plugged`, `ambient_c` (None: the device's), `memory_mb` free
    for applications (None: the device's) and the budget may be functions of time, looked at five times a second.
    `temperature_c` at the start (None: as if it had idled). `process_mb`: resident memory before any network is loaded.

    **What the policy sees** is what sensors said at the last of `monitor_hz` readings a second (None: read anew for
    every request), spoilt by `faults`, with the wait of the request itself. It decides on every "request", or once for
    every reading where `decide` is "monitor".

    The same seed gives the same report; other policies under the same seed meet the same requests and the same noise.
    `samples`: into how many stretches of time the report's series cut the run.

    Raises InputError on records of another cascade, SettingError on a setting out of range.
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
    if decide not in DECIDE:
        raise SettingError(f"decide={decide!r} must be one of {DECIDE}")
    if not 0 <= noise < float("inf"):
        raise SettingError(f"noise={noise} must not be negative: 1 is as spread as profiled")
    if queue_limit is not None and queue_limit < 1:
        raise SettingError(f"queue_limit={queue_limit} must be at least 1, or None for no limit")
    here = frontier.recost(device.costs(frontier.costs))
    played = outcomes(here, records, noise)
    arrivals = np.random.default_rng(seed)
    arrival_s = workload.arrivals(arrivals)  # [M]
    record = _shuffled(len(arrival_s), len(records), arrivals)  # [M]
    luck, sensing = (np.random.default_rng([seed, stream]) for stream in (1, 2))  # so that neither moves the arrivals
    noisy = any(sigma > 0 for outcome in played.values() for sigma in outcome.sigma)
    requests = Requests(
        arrival_s.tolist(),
        record.tolist(),
        luck.standard_normal(len(record)).tolist() if noisy else [],
        luck.exponential(stalls.mean_ms, len(record)).tolist() if stalls else [],
        luck.uniform(size=len(record)).tolist() if stalls else [],
    )
    ambient = device.ambient_c if ambient_c is None else ambient_c
    memory = device.memory_mb if memory_mb is None else memory_mb
    world = World(device, battery, pieces(ambient)(0.0)[0], temperature_c, screen)
    env = Environment(
        world,
        Sensors(device, world, here.costs.threads, faults, sensing),
        Surroundings(background_load, ambient, plugged, memory),
        budget,
        monitor_hz,
        max(workload.duration_s / max(samples, 1), 1e-9),
    )
    env.process_mb = process_mb
    rules = Rules(
        per_request=decide == "request",
        queue_limit=queue_limit,
        cores=device.cores,
        reads_itself=monitor_hz is None,
        stall_chance=stalls.chance if stalls else 0.0,
        load_ms_per_mb=device.load_ms_per_mb,
        process_mb=process_mb,
        overhead_ms=device.overhead_ms,
        wake_ms=device.wake_ms,
    )
    log = serve(here, played, requests, policy, env, rules)
    if not world.empty:
        end_s = max(log.end_s[-1] if log.end_s else 0.0, workload.duration_s)
        env.advance(end_s, log.end_s[-1] if log.end_s else 0.0, 0.0)
        env.settle(end_s)
    report = summarize(log, device, env, tuple(played.values()), requests, records, frontier.ladder.certified)
    return replace(report, doubts=frontier.costs.doubts)


def _shuffled(requests: int, records: int, random: np.random.Generator) -> NDArray[np.int64]:
    """A record for each request: every one once before any comes again."""
    rounds = [random.permutation(records) for _ in range(-(-requests // records))]
    return np.concatenate([*rounds, np.empty(0, np.int64)]).astype(np.int64)[:requests]
