"""Runs inputs through a bundle under a budget, and decides again when something has changed."""

import logging
import math
import threading
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from dynamic.bundle.contract import DeployedBundle
from dynamic.bundle.input_conversion import check_shapes
from dynamic.engines.contract import Engine
from dynamic.engines.forking import forget_after_fork
from dynamic.engines.options import EngineOptions, Route
from dynamic.engines.parts.rest import Rest
from dynamic.monitoring.monitor import Monitor
from dynamic.policies.budget import Budget
from dynamic.policies.control.budget_policy import BudgetPolicy
from dynamic.policies.control.feasibility import check_budget
from dynamic.policies.decision import Policy
from dynamic.policies.errors import BudgetError, InputError, SettingError
from dynamic.policies.fast_paths import fast_replace
from dynamic.policies.frontier import Frontier
from dynamic.policies.validation.numbers import plain
from dynamic.policies.words.short_repr import short_repr
from dynamic.progress import size_of, track
from dynamic.runtime.counters import RuntimeCounters
from dynamic.runtime.decisions.controller import Controller
from dynamic.runtime.decisions.decision_log import Announcer, OnChange
from dynamic.runtime.decisions.device_reading import HasLatest, RequestReading, begin
from dynamic.runtime.decisions.unmeasured_limits import SensorCheck
from dynamic.runtime.deployment import Deployment, EngineRequest, Others, check_successor, opened, others
from dynamic.runtime.drift.feedback_log import FeedbackLog, Label
from dynamic.runtime.drift.streams import DriftOptions
from dynamic.runtime.parts import Part
from dynamic.runtime.request_handler import RequestHandler
from dynamic.runtime.requests.async_requests import answer, answers_of
from dynamic.runtime.requests.estimator import answered, predicted, probabilities
from dynamic.runtime.requests.input_copies import owned
from dynamic.runtime.requests.interrupts import in_signal_handler
from dynamic.runtime.requests.pauses import Spacing
from dynamic.runtime.requests.request_queue import Waiting
from dynamic.runtime.requests.resumed_requests import ResumedRequests
from dynamic.runtime.result import BatchResult, Result, Statistics

logger = logging.getLogger("dynamic")

Opener = Callable[[DeployedBundle], tuple[DeployedBundle, Engine, Others]]


class Runtime:
    """A bundle at work: `run(x)` answers an input, and `run.budget` may be set at any time, from any thread.

    Inputs are answered on the calling thread (`run(x)`, `run.map`), by as many threads at once as call. Or they wait
    for one of `workers` threads, in the order in which they came (`run.submit`, and `await run.arun(x)` for asyncio).

    A request is answered whatever fails, where that is possible. When a policy fails, its last good decision holds.
    When a sensor or the monitor fails, its last good reading holds. When an engine fails, the next of `fallback`
    answers.

    Networks are loaded by the first request. With `load(preload=False)` the first request also imports the engine, runs
    the canaries and starts the monitor, so that a process may open a runtime and fork.

    Inputs are watched for drift by where they exit and by their score there. No labels are needed. Once they no
    longer look like those of the calibration, a warning is logged, results are not certified any more, and
    `Budget.on_drift` says what runs. While inputs are independent and like those of the calibration, the probability of
    a false alarm is at most `drift_alpha`, on a stream of any length. **Correlated inputs void that**: bursts, or
    images sorted by class. Frames of a camera are recognized by their pixels, and scenes are counted instead. Inputs
    are not watched where the ladder has no histograms of exits, or was measured on another engine or precision.

    Args:
        bundle: What `load` or `build` gave. It is profiled first where costs of this engine are missing.
        budget: The limits. None: none, so that the most accurate point runs.
        engine: "onnxruntime", "openvino", "torch", or "auto" for the fastest here. None: the one that was calibrated.
        threads: Threads of the engine. None: one for each core that this process may use.
        route: "graph" or "stages" for every request that may take it. None: whichever was measured faster.
        options: Options of one engine, such as `dynamic.OnnxRuntimeOptions(idle="spin")`.
        monitor: Reads the device. None: a `dynamic.Monitor` of this runtime. A monitor that is given is started, and
            continues when the runtime closes. One with `subscribe` lets the policy decide on its thread too.
        policy: Chooses the operating point. None: `dynamic.BudgetPolicy()`.
        drift_alpha: The probability of a false alarm of drift, in (0, 1). None: inputs are not watched.
        drift: Which inputs the drift test counts. None: the usual ones.
        queue: How many inputs may wait, at least 1. One more and the oldest is shed.
        workers: How many threads answer inputs that were submitted, at least 1.
        on_change: Called with a `dynamic.Change` when the decision changes, on the thread of the request.
        fallback: The engines that answer when the first fails, in their order. None: those installed.
        part: The stages that run here, a `dynamic.runtime.parts.Part`, if others run elsewhere. `stats()` of the head
            and its feedback take a row that continues for one that exits at its last exit here. None: all of them.

    Raises:
        EngineError: The engine is unknown, not installed, or does not load.
        SettingError: An argument is out of range.
        BudgetError: The budget has a limit about which the costs say nothing.

    Example:
        >>> with dynamic.Runtime(bundle, dynamic.Budget(latency_ms=50)) as run:
        ...     answer = run(x)
        ...     run.budget = dynamic.Budget(latency_ms=20)
        >>> answer.certified in (True, False)
        True
    """

    def __init__(
        self,
        bundle: DeployedBundle,
        budget: Budget | None = None,
        *,
        engine: str | None = None,
        threads: int | None = None,
        route: Route | None = None,
        options: EngineOptions | None = None,
        monitor: HasLatest | None = None,
        policy: Policy | None = None,
        drift_alpha: float | None = 0.01,
        drift: DriftOptions | None = None,
        queue: int = 64,
        workers: int = 1,
        on_change: OnChange | None = None,
        fallback: Sequence[str] | None = None,
        part: Part | None = None,
    ) -> None:
        request = EngineRequest(engine, threads, route, options, part)
        watch = monitor if monitor is not None else Monitor()
        if bundle.preload:
            begin(watch)  # before the engine: the policy takes the first reading for memory without models
        opened_engine = None
        try:
            bundle, opened_engine, others = _opener(request, fallback, keep=True)(bundle)
            self._set_up(
                bundle,
                bundle.frontier,
                opened_engine,
                budget or Budget(),
                watch,
                policy or BudgetPolicy(),
                drift_alpha=drift_alpha,
                drift=drift,
                queue=queue,
                workers=workers,
                on_change=on_change,
                others=others,
                opener=_opener(request, fallback, keep=False),  # of a swap, while requests run
                owns_monitor=monitor is None,
                starts_monitor=not bundle.preload,
            )
        except BaseException:
            if monitor is None:
                watch.close()  # nobody else will
            if opened_engine is not None:
                opened_engine.close()
            raise

    @classmethod
    def on_engine(
        cls,
        bundle: DeployedBundle,
        frontier: Frontier,
        engine: Engine,
        budget: Budget,
        monitor: HasLatest,
        policy: Policy,
        *,
        clock: Callable[[], float] = time.perf_counter,
        drift_alpha: float | None = 0.01,
        drift: DriftOptions | None = None,
        queue: int = 64,
        workers: int = 1,
        on_change: OnChange | None = None,
        others: Others = (),
        opener: Opener | None = None,
    ) -> Self:
        """Put a bundle to work on an engine that is open, such as one of your own or a fake of a test.

        Args:
            bundle: The bundle.
            frontier: The operating points with their costs on this engine.
            engine: The engine. The runtime closes it.
            budget: The limits.
            monitor: Reads the device.
            policy: Chooses the operating point.
            clock: Gives seconds.
            drift_alpha: The probability of a false alarm of drift, in (0, 1). None: inputs are not watched.
            drift: Which inputs the drift test counts. None: the usual ones.
            queue: How many inputs may wait.
            workers: How many threads answer inputs that were submitted.
            on_change: Called when the decision changes.
            others: Engines that answer when this one fails: their names, and functions that open them.
            opener: Opens the engine of a bundle that is swapped in. None: as the bundle itself would.

        Returns:
            The runtime.

        Raises:
            SettingError: An argument is out of range.
            BudgetError: The budget has a limit about which the costs say nothing.

        Example:
            >>> monitor, policy = dynamic.FixedMonitor(), dynamic.BudgetPolicy()
            >>> engine = bundle.open(threads=1)
            >>> with dynamic.Runtime.on_engine(bundle, frontier, engine, dynamic.Budget(), monitor, policy) as run:
            ...     run(x).stage in (0, 1)
            True
        """
        run = cls.__new__(cls)
        run._set_up(
            bundle,
            frontier,
            engine,
            budget,
            monitor,
            policy,
            clock=clock,
            drift_alpha=drift_alpha,
            drift=drift,
            queue=queue,
            workers=workers,
            on_change=on_change,
            others=others,
            opener=opener,
        )
        return run

    def _set_up(
        self,
        bundle: DeployedBundle,
        frontier: Frontier,
        engine: Engine,
        budget: Budget,
        monitor: HasLatest,
        policy: Policy,
        *,
        clock: Callable[[], float] = time.perf_counter,
        drift_alpha: float | None,
        drift: DriftOptions | None,
        queue: int,
        workers: int,
        on_change: OnChange | None,
        others: Others,
        opener: Opener | None,
        owns_monitor: bool = False,
        starts_monitor: bool = False,
    ) -> None:
        if drift is not None and not isinstance(drift, DriftOptions):
            raise SettingError(f"drift={drift!r} must be DriftOptions(...), or None for the usual ones")
        self._drift = drift
        self.monitor, self.policy, self._owns_monitor = monitor, policy, owns_monitor
        self._clock, self._drift_alpha = clock, drift_alpha
        self._open = opener or _opener(EngineRequest(), None, keep=False)
        self._swapping = threading.RLock()
        self._spacing = Spacing()
        self._read = RequestReading(monitor, starts_monitor)
        self._sensors = SensorCheck(monitor, self._read)
        self._read.started = lambda: self._sensors.warn(self.budget)
        if not starts_monitor:
            _ = self._read.latest  # before any model is loaded
        self._controller = Controller(
            self._read,
            Announcer(on_change),
            RuntimeCounters(len(bundle.spec.stages)),
            FeedbackLog(bundle.spec.classes, bundle.classes),
            lambda: len(self._waiting),
        )
        self._handler = RequestHandler(self._controller, workers, clock)
        self._resumed = ResumedRequests(self._controller, self._handler, clock)
        self._waiting: Waiting[Result] = Waiting(queue, workers, self._handler, self._retire)
        self._controller.deployment = self._serve(bundle, frontier, engine, others)
        self.deployment.guard.begin()
        self.deployment.guard.report()
        self.budget = budget  # checked by the setter
        forget_after_fork(self)
        self._read.follow(self._controller.refresh)

    def __call__(
        self, x: Any, *, waited_ms: float = 0.0, queue_length: int = 0, deadline_ms: float | None = None
    ) -> Result:
        """Answer one input or a batch.

        Args:
            x: One input without a batch dimension, a batch, or a mapping of inputs `[B, ...]` by name. With
                preprocessing: an image, a list of images, or uint8 `[B, H, W, C]`.
            waited_ms: How long the input has waited before, in the queue of a server for instance. It counts for
                `latency_ms`, so that an input that has waited gets a faster point for itself.
            queue_length: How many inputs wait behind it in that queue.
            deadline_ms: A hard limit for this request alone, from its arrival, as `Budget.deadline_ms` is for all. The
                nearer of both holds, so that no request has more time than the budget allows. Where it is over already,
                the first exit that is evaluated answers. None: that of the budget.

        Returns:
            A `Prediction` for one input, a `BatchResult` for a batch.

        Raises:
            InputError: A shape or type does not fit.
            SettingError: `waited_ms`, `queue_length` or `deadline_ms` is below 0.
            EngineError: Every engine fails.
            ClosedError: The runtime is closed.

        Example:
            >>> with bundle.runtime() as run:
            ...     one, batch = run(x), run(inputs[:8])
            >>> one.label in range(4), len(batch)
            (True, 8)
        """
        if not waited_ms and not queue_length and deadline_ms is None:
            return self._handler(x)
        for name, value in (("waited_ms", waited_ms), ("queue_length", queue_length), ("deadline_ms", deadline_ms)):
            if value is not None and not 0 <= value < math.inf:
                raise SettingError(f"{name}={value!r} must be a number of at least 0")
        return self._handler(x, self._clock() - waited_ms / 1e3, queue_length, deadline_ms)

    def resume(
        self, rest: Rest, point: str, *, waited_ms: float = 0.0, queue_length: int = 0, deadline_ms: float | None = None
    ) -> BatchResult:
        """Answer rows whose first stages ran in the runtime of another `Part`, under the point that was chosen there.

        Args:
            rest: The rows, of the `rests` of a result.
            point: The name of the operating point.
            waited_ms: How long they have waited here.
            queue_length: How many wait behind them.
            deadline_ms: A hard limit from their arrival here. Where it is over, they get the answer that they came
                with. None: there is none.

        Returns:
            Their answers.

        Raises:
            BundleError: Another bundle is at work here.
            InputError: There is no such point.
            EngineError: Every engine fails.
            ClosedError: The runtime is closed.

        Example:
            >>> from dynamic.runtime.parts import Part
            >>> exact = dynamic.Budget(max_drop=0.0)
            >>> with (
            ...     dynamic.Runtime(bundle, exact, part=Part(1, is_head=True)) as head,
            ...     dynamic.Runtime(bundle, exact, part=Part(1, is_head=False)) as tail,
            ... ):
            ...     begun = head(x)
            ...     for rest in begun.rests:
            ...         tail.resume(rest, begun.decision.point.name).stage.tolist()
            [1]
        """
        return self._resumed(rest, point, self._clock() - waited_ms / 1e3, queue_length, deadline_ms)

    def __repr__(self) -> str:
        decision = self.deployment.decision
        now = "no decision yet" if decision is None else f"{decision.point.name!r} runs"
        state = "closed" if self._controller.closed else now
        return short_repr("Runtime", [repr(str(self.bundle.folder)), f"{self.engine.name}", state, repr(self.budget)])

    @property
    def classes_(self) -> NDArray[Any]:
        """What `predict` can give `[C]`: names where the bundle has them, else numbers. As scikit-learn names it."""
        bundle = self.bundle
        return np.arange(bundle.spec.classes) if bundle.classes is None else np.array(bundle.classes)

    def predict(self, inputs: Any, *, batch_size: int = 64) -> NDArray[Any]:
        """Answer many inputs as a classifier of scikit-learn does. `run(x)` says more of each.

        Args:
            inputs: A batch `[N, ...]` of arrays or tensors, a list of images, texts or sounds, a mapping of inputs by
                name, or a loader of batches. Batches of `(inputs, labels)` count as inputs.
            batch_size: Inputs of a request. A loader has its own.

        Returns:
            The class of each input `[N]`: its name where the bundle has names, else its number. Where no stage gave a
            finite answer, it is "" or -1.

        Raises:
            InputError: A shape or type does not fit, or there is one input without a batch dimension.
            SettingError: The batch size is below 1.
            EngineError: Every engine fails.
            ClosedError: The runtime is closed.

        Example:
            >>> with bundle.runtime() as run:
            ...     names = run.predict(inputs[:100])
            >>> names.shape, set(names) <= set("abcd")
            ((100,), True)
        """
        return predicted(answered(self, inputs, batch_size), self.bundle.classes)

    def predict_proba(self, inputs: Any, *, batch_size: int = 64) -> NDArray[np.float32]:
        """Return the probabilities of all classes for many inputs, as a classifier of scikit-learn does.

        Args:
            inputs: As for `predict`.
            batch_size: Inputs of a request. A loader has its own.

        Returns:
            Probabilities `[N, C]` in the order of `classes_`, after temperature and averaging. NaN where no stage gave
            a finite answer.

        Raises:
            InputError: A shape or type does not fit, or there is one input without a batch dimension.
            SettingError: The batch size is below 1.
            EngineError: Every engine fails.
            ClosedError: The runtime is closed.

        Example:
            >>> with bundle.runtime() as run:
            ...     table = run.predict_proba(inputs[:100])
            >>> table.shape, bool(abs(table.sum(axis=1) - 1).max() < 1e-5)
            ((100, 4), True)
        """
        return probabilities(answered(self, inputs, batch_size), self.bundle.spec.classes)

    def map(self, items: Iterable[Any], progress: bool | None = None) -> Iterator[Result]:
        """Answer one item after another, with a progress bar on a terminal.

        Args:
            items: Inputs, as for `run(x)`.
            progress: Show the bar. None: where stderr is a terminal.

        Yields:
            The answer to each.

        Raises:
            InputError: An item does not fit.

        Example:
            >>> with bundle.runtime() as run:
            ...     len([answer.label for answer in run.map(inputs[:5])])
            5
        """
        with closing(track(items, "inference", size_of(items), progress)) as shown:
            for item in shown:
                yield self(item)

    def submit(self, x: Any, *, copy: bool = True) -> "Future[Result]":
        """Answer an input when its turn comes, as `run(x)` would. `.result()` waits for it.

        Where `queue` requests wait already, the one that has waited longest is shed: its future raises ShedError.

        Args:
            x: One input or a batch, as for `run(x)`.
            copy: Copy what `x` holds, so that it may be overwritten right away, as cameras do with their buffer. False:
                the runtime reads `x` where it lies. Nobody may write to it then until the future is done.

        Returns:
            A future of the result. Where the input does not fit, it raises InputError.

        Raises:
            ClosedError: The runtime is closed.
            EngineError: No worker can be started.

        Example:
            >>> with bundle.runtime() as run:
            ...     run.submit(x).result().label in range(4)
            True
        """
        return self._submit(x, self._clock(), copy)

    def _submit(self, x: Any, came: float, copy: bool) -> "Future[Result]":
        thread = threading.get_ident()
        self._controller.inside.append(thread)
        try:
            self._controller.check_open()
            return self._waiting.submit(self._owned(x) if copy else x, came)
        finally:
            self._controller.inside.remove(thread)

    def _owned(self, x: Any) -> Any:
        """A copy. What will be refused for its shape or type is not copied: it may be huge."""
        try:
            check_shapes(self.bundle, x)
            return owned(x)
        except (InputError, MemoryError):  # whoever answers it says what is wrong
            return x

    def arun(self, x: Any, *, copy: bool = True) -> Coroutine[Any, Any, Result]:
        """Answer an input for an asyncio server. A worker answers it, and the event loop continues meanwhile.

        Args:
            x: One input or a batch, as for `run(x)`.
            copy: Copy what `x` holds when this is called, not when it is awaited. See `submit`.

        Returns:
            A coroutine of the result. Where the task that awaits it is cancelled, a request that still waits is
            dropped.

        Raises:
            ShedError: Too many requests wait.
            ClosedError: The runtime is closed, or closes before the request has its turn.
            InputError: The input does not fit.
            EngineError: Every engine fails.

        Example:
            >>> import asyncio
            >>> with bundle.runtime() as run:
            ...     asyncio.run(run.arun(x)).label in range(4)
            True
        """
        return answer(partial(self.submit, copy=False), self._owned(x) if copy else x)

    def amap(self, items: Iterable[Any] | AsyncIterable[Any], *, copy: bool = True) -> AsyncIterator[Result]:
        """Answer one item after another, in their order, without blocking the event loop.

        It keeps every worker busy and never fills the queue.

        Args:
            items: Inputs. An ordinary iterable is read on another thread, since a camera makes its reader wait.
            copy: Copy each item as it is read, so that one buffer may hold all of them in turn. See `submit`.

        Returns:
            An asynchronous iterator of results.

        Raises:
            InputError: An item does not fit.

        Example:
            >>> import asyncio
            >>> async def labels(run):
            ...     return [answer.label async for answer in run.amap(inputs[:5])]
            >>> with bundle.runtime() as run:
            ...     len(asyncio.run(labels(run)))
            5
        """
        return answers_of(partial(self.submit, copy=copy), items, self._waiting.workers)

    @property
    def budget(self) -> Budget:
        """The limits of the next decision. It may be set at any time, from any thread.

        Setting anything else raises BudgetError, as does a limit about which the costs say nothing. A limit that no
        sensor of this device can follow gives a warning, once.
        """
        return self._controller.budget

    @budget.setter
    def budget(self, budget: Budget) -> None:
        if not isinstance(budget, Budget):
            raise BudgetError(f"budget={budget!r} must be a dynamic.Budget, such as Budget(latency_ms=20)")
        controller = self._controller
        before: Budget | None = getattr(controller, "budget", None)
        while True:  # no lock: a signal handler may set it while its own thread holds that
            deployment = self.deployment
            try:
                check_budget(budget, deployment.whole)
            except BudgetError:
                if before is not None and controller.budget is budget:  # stored, and then a swap came between
                    controller.budget = before
                raise
            controller.budget = budget
            if deployment is self.deployment:
                break
        self._sensors.warn(budget)

    @property
    def deployment(self) -> Deployment:
        """What is at work now."""
        return self._controller.deployment

    @property
    def bundle(self) -> DeployedBundle:
        """The bundle at work."""
        return self.deployment.bundle

    @property
    def frontier(self) -> Frontier:
        """What the policy chooses from: without points whose sub-models do not load."""
        return self.deployment.frontier

    @property
    def engine(self) -> Engine:
        """The engine that was asked for."""
        return self.deployment.engines.first

    def swap(self, bundle: DeployedBundle, budget: Budget | None = None) -> None:
        """Put another bundle to work while requests run. Those that have begun end on the old one.

        The engine is opened as the first one was, and what the next request needs is loaded before the exchange, so
        that no request waits for it. Both bundles are in memory for a moment. Where that is more than the budget or the
        device has left, the first request loads it. Swaps in a row pause for up to a second between each other: three
        times what the last one took, so that requests get most of the device.

        Where costs are missing, the bundle is profiled beside the requests that run, and such figures are not kept.
        Call `profile` before. The state of the policy and the drift test begin anew.

        Args:
            bundle: The other bundle.
            budget: The limits from then on, which replace the old ones in the same moment. None: they remain.

        Raises:
            BundleError: Its inputs or classes differ.
            EngineError: The engine does not open.
            BudgetError: The budget has a limit about which its costs say nothing. The old bundle then continues, and
                so does the old budget.

        Example:
            >>> with bundle.runtime() as run:
            ...     run.swap(dynamic.load("shelf"))
        """
        self._controller.check_open()
        if budget is not None and not isinstance(budget, Budget):
            raise BudgetError(f"budget={budget!r} must be a dynamic.Budget, such as Budget(latency_ms=20)")
        with self._swapping, self._spacing.action():
            check_successor(self.bundle, bundle)
            profiled, engine, rest = self._open(bundle)
            try:
                fresh = self._serve(profiled, profiled.frontier, engine, rest)
                self._decide_first(fresh, budget)
                fresh.load_as(self.deployment, budget or self.budget, self._read.latest)
                old = self._exchange(fresh, budget)
            except BaseException:
                engine.close()
                raise
        if budget is not None:
            self._sensors.warn(budget)
        old.retire()
        if self._controller.closed:  # in the meantime, by a signal handler perhaps
            self.deployment.retire()
        logger.info("bundle %s is at work now, %s before", profiled.folder, old.bundle.folder)

    def stats(self) -> Statistics:
        """What has been done so far. It waits for nobody: any thread and any signal handler may ask."""
        controller, waiting, watch = self._controller, self._waiting, self.deployment.watch
        lines = self._sensors.lines(self.budget)
        waits = [(one.id, one.entry(one.certified)) for one in controller.observations[:]]
        return controller.counters.statistics(
            watch.drifted,
            controller.feedback_log.estimate(),
            waiting.shed,
            waiting.longest,
            lines,
            watch.near_duplicates,
            waits,
        )

    def feedback(self, result_id: int, label: Label | Iterable[Label]) -> None:
        """Hand in the true label of a result, from any thread. `stats` then estimates the accuracy.

        The answers of the latest 10,000 results are kept. A label counts once.

        Args:
            result_id: The `id` of the result.
            label: The number of the class, or its name where the bundle has names. For a batch `[B]` of them.

        Raises:
            InputError: The result is unknown, too old, or has its label already. Or there are more or fewer labels than
                rows, or a label is no class. Nothing is counted then.

        Example:
            >>> with bundle.runtime() as run:
            ...     answer = run(x)
            ...     run.feedback(answer.id, int(labels[0]))
            ...     run.stats().feedback.count
            1
        """
        with self._controller.learned():
            self._controller.feedback_log.feedback(result_id, label)

    def restart_drift(self) -> None:
        """Watch inputs anew, after an alarm or before one: the next request is decided as if there had been none.

        Inputs seen so far count as known: what comes is compared with them too. So inputs that have changed for good
        alarm less and less, and are as little covered by the certificate as before: calibrate again with such inputs.
        """
        with self._controller.learned():
            self._controller.plan = None
            deployment = self.deployment
            deployment.watch.restart()
            if deployment.last_feedback is not None and deployment.last_feedback.drift:
                # not a request once more: it says nothing of the device, and nothing was spent
                deployment.last_feedback = replace(
                    deployment.last_feedback, drift=False, stages=(), rows=(), latency_ms=(), expected_ms=()
                )
                deployment.guard.observe(deployment.last_feedback)

    def close(self, drain: bool = False, timeout_s: float | None = None) -> None:
        """Take no more requests, end those that run, and free the memory. Stops the monitor too, unless it was given.

        In a signal handler, and in a callback during a request, it only marks the runtime as closed and returns at
        once. Whoever holds the last request then finishes the work.

        Args:
            drain: Answer requests that wait in the queue first. Otherwise whoever waits for them gets ClosedError.
            timeout_s: How long to wait for requests that run or wait. None: as long as they take. Requests that still
                wait then fail with ClosedError, and those that run end on their own.

        Raises:
            SettingError: `timeout_s` is no number of at least 0.

        Example:
            >>> run = bundle.runtime()
            >>> future = run.submit(x)
            >>> run.close(drain=True)
            >>> future.done()
            True
        """
        timeout_s = plain(timeout_s)
        if timeout_s is not None and not (isinstance(timeout_s, (int, float)) and 0 <= timeout_s < math.inf):
            raise SettingError(
                f"timeout_s={timeout_s!r} must be a number of seconds of at least 0, or None for no limit"
            )
        controller = self._controller
        controller.closed, controller.plan = True, None
        # what the interrupted thread holds, a worker may need: to wait for workers then is to wait for oneself
        wait = threading.get_ident() not in controller.inside and not in_signal_handler()
        self._read.unfollow()
        if wait and controller.lock.acquire(timeout=-1 if timeout_s is None else timeout_s):
            controller.lock.release()  # the monitor's thread decides no more
        if self._waiting.close(drain, timeout_s, wait):  # else the last worker does it
            self._retire()
        if self._owns_monitor:
            self.monitor.close()

    def _retire(self) -> None:
        """Close the engines once no request runs, now that none can come."""
        self.deployment.retire()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def forget(self) -> Any:
        """What a forked child must not take from its parent (see `dynamic.engines.forking`)."""
        self._swapping = threading.RLock()
        self._controller.forget()
        self.deployment.forget()
        self._read.forget()
        return self._waiting.forget()

    def _decide_first(self, fresh: Deployment, budget: Budget | None) -> None:
        """Begin the policy's state for it, and let it say what the next request will need."""
        # the policy takes its first reading for memory without models: that is not the reading of now
        latest = self._read.latest
        first = fast_replace(latest, memory_process_mb=(self._read.first or latest).memory_process_mb)
        controller = self._controller
        with controller.held():  # no policy is asked twice at once
            controller.check_open()
            budget = budget or controller.budget
            check_budget(budget, fresh.whole)
            fresh.guard.begin()
            fresh.decision = fresh.guard.decide(fresh.frontier, budget, first)
        fresh.guard.report()

    def _exchange(self, fresh: Deployment, own: Budget | None) -> Deployment:
        """Put it to work, with a budget of its own or that of now, and return what was at work before."""
        controller = self._controller
        with controller.learned():
            controller.check_open()
            before = controller.budget
            budget = own or before
            check_budget(budget, fresh.whole)
            controller.plan = None
            old = controller.deployment
            fresh.decision = old.decision  # so that the change is told
            controller.deployment = fresh
            if own is not None:
                controller.budget = own
            elif controller.budget is not before:  # set meanwhile, without a lock
                try:
                    check_budget(controller.budget, fresh.whole)
                except BudgetError:
                    controller.deployment = old
                    raise
            controller.counters.begin(len(fresh.bundle.spec.stages))
            return old

    def _serve(self, bundle: DeployedBundle, frontier: Frontier, engine: Engine, others: Others) -> Deployment:
        controller = self._controller

        def engine_failed() -> None:
            with controller.lock:
                controller.counters.engine_failures += 1

        def policy_failed() -> None:  # it is asked under the lock
            controller.counters.policy_failures += 1

        return Deployment(
            bundle,
            frontier,
            engine,
            others,
            self.policy,
            self._drift_alpha,
            self._clock,
            engine_failed,
            policy_failed,
            self._drift,
        )


def _opener(request: EngineRequest, fallback: Sequence[str] | None, keep: bool) -> Opener:
    def opener(bundle: DeployedBundle) -> tuple[DeployedBundle, Engine, Others]:
        profiled, first = opened(bundle, request, keep)
        try:
            return profiled, first, others(profiled, first, fallback, request.part)
        except BaseException:
            first.close()
            raise

    return opener
