"""One bundle at work: its frontier, engines, policy state and drift test. A swap replaces it."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from dynamic.bundle.contract import DeployedBundle
from dynamic.engines.contract import Array, Engine, InputSpec
from dynamic.engines.engine_factory import check_engine, installed
from dynamic.engines.options import EngineOptions, Route
from dynamic.engines.outputs import is_finite
from dynamic.engines.route_choice import CascadeEngine
from dynamic.policies.budget import Budget
from dynamic.policies.control.limits import RESERVE_MB
from dynamic.policies.control.remaining_time import ahead_ms
from dynamic.policies.costing.costed_point import with_costs
from dynamic.policies.decision import Decision, Feedback, Policy
from dynamic.policies.errors import BundleError, DynamicError, EngineError, InputError
from dynamic.policies.frontier import CostedPoint, Frontier
from dynamic.policies.snapshot import Snapshot
from dynamic.runtime.decisions.policy_guard import Guard
from dynamic.runtime.drift.drift_watch import Captured, Drifts, DriftWatch, Tested
from dynamic.runtime.drift.streams import DriftOptions
from dynamic.runtime.fallback import COOL_DOWN_S, FallbackEngines
from dynamic.runtime.parts import Part

logger = logging.getLogger("dynamic")

Others = Sequence[tuple[str, Callable[[], Engine]]]
_KEPT = 1000  # figures remembered, as many as a frontier does


def _images(bundle: DeployedBundle) -> tuple[InputSpec, ...]:
    """The inputs that may be frames of a camera: features of sounds have the shape of images, and are none."""
    return bundle.spec.inputs if bundle.preprocess is None or bundle.preprocess.for_images else ()


class Deployment:
    """What belongs to one bundle and is exchanged as a whole. What changes in it is under the runtime's lock.

    `users`: how many requests run on it. Once it is `retired`, the last of them closes its engines. Both need no lock:
    a request enters before it reads `retired`, and who retires it looks for requests afterwards.
    """

    def __init__(
        self,
        bundle: DeployedBundle,
        frontier: Frontier,
        engine: Engine,
        others: Others,
        policy: Policy,
        drift_alpha: float | None,
        clock: Callable[[], float],
        engine_failed: Callable[[], None],
        policy_failed: Callable[[], None],
        drift: DriftOptions | None = None,
    ) -> None:
        self.bundle, self.frontier = bundle, frontier
        self.engines = FallbackEngines(bundle.spec, engine, others, clock, engine_failed)
        self._calibrated: dict[tuple[str, str], bool] = {}  # by engine and precision
        self._watched = partial(
            DriftWatch, bundle.ladder, drift_alpha, inputs=_images(bundle), options=drift
        )  # but for whether it was calibrated elsewhere
        # the engine whose canaries the first request runs, see `check`; None: they have run
        self.unchecked = engine if isinstance(engine, CascadeEngine) and not bundle.preload else None
        self._is_checking = False
        elsewhere = not (self.calibrated(engine) if self.unchecked is None else self._matches(engine))
        self.watch = self._watched(elsewhere=elsewhere)
        self.guard = Guard(policy, policy_failed)
        self.decision: Decision | None = None  # the last
        self.last_feedback: Feedback | None = None  # what the policy observed last
        self.retired = False
        self._checking = threading.RLock()
        self._threads: list[int] = []  # of the requests that run on it: a signal interrupts no append or removal
        self._ends: deque[None] = deque([None])  # whoever takes this closes the engines
        self.whole = frontier
        self._points = {point.name: point for point in frontier.points}
        self._clock = clock
        self.lost: frozenset[int] = frozenset()  # backbones that do not load, with points left out for it
        self._lost_until = 0.0
        self._memory_mb = sum(frontier.costs.memory_mb)
        self._ahead: dict[tuple[CostedPoint, int, int | None], tuple[tuple[float, float], ...]] = {}
        self.rows = [0, 0]  # of the last request of one row, and of the last of more; 0 before any

    @property
    def users(self) -> int:
        """How many requests run on it."""
        return len(self._threads)

    def enter(self, thread: int) -> bool:
        """Let a request of this thread in. False where it is retired: the request then has to leave again."""
        self._threads.append(thread)
        return not self.retired

    def leave(self, thread: int) -> None:
        """End a request of this thread, and close the engines where it was the last on a retired deployment."""
        self._threads.remove(thread)
        if self.retired:
            self.retire()

    def retire(self) -> None:
        """Let no request in any more, and close the engines once none runs. Never waits, and may be called again."""
        self.retired = True
        if not self._threads:
            try:
                self._ends.pop()
            except IndexError:  # somebody else closes them, or has
                return
            self.engines.close()

    def load_as(self, other: "Deployment", budget: Budget, snapshot: Snapshot) -> None:
        """Load what requests like those on another serving will need here, where there is memory for both.

        What does not load is left to the first request, which has other ways to go.
        """
        decision = self.decision
        if decision is None or not self._fits_beside(budget, snapshot):
            return
        for rows in filter(None, other.rows):
            stagewise = self.stagewise(decision, budget.deadline_ms is not None, snapshot, rows)
            try:
                self.engines.first.prepare(decision.point.backbones, rows, decision.keep_loaded, stagewise)
            except (EngineError, MemoryError) as error:
                logger.warning("%s is not loaded before it is swapped in: %s", self.bundle.folder, error)

    def _fits_beside(self, budget: Budget, snapshot: Snapshot) -> bool:
        """Whether its networks may be in memory beside those of the bundle at work."""
        free_mb, held_mb = snapshot.memory_available_mb, snapshot.memory_process_mb
        if free_mb is not None and free_mb - RESERVE_MB < self._memory_mb:
            return False
        return budget.memory_mb is None or (held_mb is not None and held_mb + self._memory_mb <= budget.memory_mb)

    def forget(self) -> None:
        """What a forked child has of its parent's: requests of threads that are not there."""
        self._threads = [thread for thread in self._threads if thread == threading.get_ident()]
        self._checking, self._is_checking = threading.RLock(), False
        self.engines.forget()

    def check(self) -> None:
        """Run the canaries that were left to the first request. Requests of other threads wait for it.

        A request of a signal handler that interrupts it does not wait, and is not certified.
        """
        with self._checking:
            first = self.unchecked
            if first is None or self._is_checking:
                return
            self._is_checking = True
            try:
                first.agrees = self.bundle.agrees(first)
            except DynamicError as error:
                logger.warning("the canaries of %s do not run: %s. Nothing is certified", self.bundle.folder, error)
            finally:
                self._is_checking = False
            if not self.calibrated(first):
                self.watch = self._watched(elsewhere=True)
            self.unchecked = None

    def calibrated(self, engine: Engine) -> bool:
        """Whether the ladder was measured on such an engine, and this one answers as that did."""
        return self._matches(engine) and engine.agrees

    def _matches(self, engine: Engine) -> bool:
        """Whether the ladder was measured on such an engine."""
        how = engine.name, engine.precision
        matches = self._calibrated.get(how)
        if matches is None:
            matches = self._calibrated[how] = self.bundle.ladder.fingerprint == self.bundle.fingerprint(*how)
        return matches

    def certified(self, engine: Engine) -> bool:
        """Whether the ladder's certificates cover what this engine answers."""
        return self.bundle.ladder.certified and self.calibrated(engine) and not self.lost

    def covers(self, inputs: Mapping[str, Array]) -> bool:
        """Whether the certificates are about such inputs: finite ones, unless the calibration had others too."""
        return all(map(is_finite, inputs.values())) or self._knows_gaps

    @cached_property
    def _knows_gaps(self) -> bool:
        """Whether some canaries, which are calibration inputs, hold values that are not finite."""
        try:
            canaries = self.bundle.canaries
        except DynamicError as error:
            logger.warning("the canaries of %s do not read: %s", self.bundle.folder, error)
            return False
        return canaries is not None and not all(map(is_finite, canaries.inputs.values()))

    def watches(self, engine: Engine) -> bool:
        """Whether inputs are tested for drift. Scores of an engine that was not calibrated show nothing of them."""
        return self.watch.drifted is False and self.calibrated(engine)

    def capture(self, engine: Engine, inputs: Mapping[str, Array], x: Any) -> Captured | None:
        """What the drift test needs of the inputs of a request. None where it is not tested."""
        return self.watch.capture(inputs, x) if self.watches(engine) else None

    def drift(self, engine: Engine, point: CostedPoint, requests: Sequence[Tested]) -> Drifts:
        """What the drift test says after each of these requests, which ran under one operating point."""
        if not self.watches(engine):
            return Drifts([bool(self.watch.drifted)] * len(requests))
        return self.watch.observe(point, requests)

    def exclude_backbones(self, backbones: frozenset[int]) -> bool:
        """Exclude the points that need these backbones, for a while. Returns whether others remain."""
        lost = self.lost | backbones
        points = tuple(point for point in self.whole.points if not point.backbones & lost)
        if not points or backbones <= self.lost:
            return False
        self.lost, self._lost_until = lost, self._clock() + COOL_DOWN_S
        self.frontier = Frontier(self.whole.ladder, self.whole.costs, points)
        logger.warning("sub-models %s do not load: points that need them are left out", sorted(lost))
        return True

    def restore_excluded(self) -> None:
        """Restore all points where those excluded have been so for long enough."""
        if self._clock() >= self._lost_until:
            self.lost, self.frontier = frozenset(), self.whole

    def stagewise(self, decision: Decision, deadline: bool, snapshot: Snapshot, rows: int) -> bool:
        """Whether a request has to go stage by stage.

        Also where the single graph, which holds every backbone, would have to be loaded and memory is too short.
        """
        if deadline or decision.keep_loaded is not None:
            return True
        free_mb = snapshot.memory_available_mb
        return free_mb is not None and free_mb < self._memory_mb and not self.engines.first.ready(rows)

    def point(self, name: str) -> CostedPoint:
        """A point of the ladder, whether it is dominated here or not. Raises InputError where there is none."""
        point = self._points.get(name)
        if point is None:
            ladder = self.bundle.ladder
            certified = next((one for one in ladder.points if one.name == name), None)
            if certified is None:
                raise InputError(f"{self.bundle.folder} has no operating point {name!r:.80}")
            point = self._points[name] = with_costs(certified, ladder, self.whole.costs)
        return point

    def expected_s(self, decision: Decision, rows: int, size: int | None) -> tuple[tuple[float, float], ...]:
        """Seconds from each stage to the next answer, for one row of a size and for all, under the slowdown."""
        key = decision.point, rows, size
        ahead = self._ahead.get(key)
        if ahead is None:
            one, every = (ahead_ms(self.frontier.costs_at(size), decision.point.plan, count) for count in (1, rows))
            ahead = tuple(zip(one, every, strict=True))
            if len(self._ahead) >= _KEPT:  # a caller that varies rows without end must not fill memory
                self._ahead.clear()
            self._ahead[key] = ahead
        by = decision.slowdown / 1e3
        return tuple((one * by, every * by) for one, every in ahead)


@dataclass(frozen=True)
class EngineRequest:
    """The engine that the user asked for, its options, and the part of the cascade that it runs. None: all of it."""

    engine: str | None = None
    threads: int | None = None
    route: Route | None = None
    options: EngineOptions | None = None
    part: Part | None = None

    @property
    def forced_route(self) -> Route | None:
        """The route that every request takes, wherever it was given."""
        return self.route if self.options is None else self.route or self.options.route


def opened(bundle: DeployedBundle, request: EngineRequest, keep: bool) -> tuple[DeployedBundle, Engine]:
    """A bundle with the costs of the engine that it is opened on. It is profiled where they are missing.

    `keep` them in the bundle's folder: not where requests run meanwhile, which makes them too high. Raises EngineError
    where the engine cannot be had.
    """
    engine = bundle.open(request.engine, threads=request.threads, route=request.route, options=request.options)
    try:
        how = (engine.name, engine.precision, engine.threads)
        route = request.forced_route
        costs = bundle.costs_on(*how, route)
        if costs is None:
            if keep:
                logger.info("no costs of %s, %s, %d threads here: profiling", *how)
            else:
                logger.warning(
                    "no costs of %s, %s, %d threads here: profiling while requests run, so the figures are too high "
                    "and not kept. Call profile() on a bundle before it is swapped in",
                    *how,
                )
            costs = bundle.profile(
                engine=engine.name, keep=keep, threads=request.threads, route=request.route, options=request.options
            ).costs
            assert costs is not None
        if costs.route:  # it was opened before they were known
            engine.follow(costs.batch, costs.route)
    except BaseException:
        engine.close()  # nobody else will
        raise
    if request.part is None:
        return bundle.with_costs(costs, route), engine
    return bundle.with_costs(request.part.costs(costs), route), request.part.engine(engine, bundle)


def others(bundle: DeployedBundle, engine: Engine, names: Sequence[str] | None, part: Part | None = None) -> Others:
    """FallbackEngines that may stand in for `engine`, by name (None: those installed), each with what opens it.

    Raises EngineError on an engine that does not exist.
    """

    def opens(name: str) -> Engine:
        whole = loads.open(name, threads=threads)
        return whole if part is None else part.engine(whole, bundle)

    if names is None:
        names = [name for name in installed() if name != "torch" or bundle.modules is not None]
    for name in names:
        check_engine(name, bundle.precision_on(name))
    threads = engine.threads
    loads = bundle.preloaded()  # they are opened during requests
    return [(name, partial(opens, name)) for name in names if name != engine.name]


def check_successor(old: DeployedBundle, new: DeployedBundle) -> None:
    """Raises BundleError where requests made for one bundle do not fit the other, or answers mean something else."""
    for what, ours, theirs in (
        ("inputs", old.spec.inputs, new.spec.inputs),
        ("number of classes", old.spec.classes, new.spec.classes),
        ("classes", old.classes, new.classes),
        ("preprocessing or none", old.preprocess is not None, new.preprocess is not None),
    ):
        if ours != theirs:
            raise BundleError(
                f"{new.folder} cannot be swapped in: its {what} are {theirs!r:.200}, those at work {ours!r:.200}. "
                "Open a runtime of its own with bundle.runtime(...)"
            )
