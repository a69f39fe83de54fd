"""The threads that read sources in the background, each at its own period, without delaying each other."""

import logging
import threading
import time
from collections.abc import Callable, Sequence

from dynamic.monitoring.contract import AbsentError, LeftOut, Source, SourceReport, UnknownLimitError, sound
from dynamic.monitoring.reading_merge import merge
from dynamic.monitoring.source_state import SourceState, Worker, periods, plausible
from dynamic.policies.snapshot import Snapshot

logger = logging.getLogger("dynamic")

_SLOW_S = 0.25  # a source that takes longer gets its own thread
_RETRY_S = 10.0  # a sensor that is absent seldom appears
_THREADS_S = 10.0  # after which a thread that could not be started is tried again
_CLOSING_S = 0.25


class Watch:
    """Threads from `start` to `stop`: one for all quick sources, one for each source that is slow or the user's.

    One more thread supervises them. A source that takes longer than 0.25 s keeps its thread, whether it hangs or not,
    and the others continue in a new one. `publish` is called with every new snapshot, under a lock, and never after
    `stop` has returned.

    Args:
        sources: The sources.
        interval_s: Seconds between refreshes.
        publish: Receives every new snapshot.
        reported: Names of sources whose problem was logged. More are added.
        clock: Time in seconds.
        after_publish: Called after each `publish` by a thread of this watch, on that thread and without the lock.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        interval_s: float,
        publish: Callable[[Snapshot], None],
        reported: set[str],
        clock: Callable[[], float] = time.monotonic,
        after_publish: Callable[[], None] = lambda: None,
    ) -> None:
        self._interval_s, self._reported, self._clock = interval_s, reported, clock
        self._publish, self._after_publish = publish, after_publish
        self._stop = threading.Event()
        self._lock = threading.RLock()  # of all below, and of publishing. A signal handler may ask for reports
        self._states = [SourceState(s, *periods(s, interval_s)) for s in sources]
        quick = [state for state in self._states if not state.source.apart]
        shares = [*([quick] if quick else []), *([state] for state in self._states if state.source.apart)]
        self._workers = [Worker(states) for states in shares]
        self._published: frozenset[str] = frozenset()  # names of the sources in the last snapshot
        self._keeper: threading.Thread | None = None
        self._starting = threading.Lock()  # of threads
        self._tried_at, self._is_whole = 0.0, True  # whether all threads run

    def start(self) -> None:
        """Begin. Wait until every source was read once, but no longer than the interval.

        A source whose thread cannot be started is missing. Starting is retried every 10 s where any thread runs, and
        with every call.
        """
        end = self._clock() + self._interval_s
        for worker in self._begin_missing():
            worker.ready.wait(max(0.0, end - self._clock()))

    def stop(self) -> None:
        """End. A thread inside a source that hangs ends when the source returns. Its reading is ignored."""
        with self._lock:
            self._stop.set()
            workers = list(self._workers)
        end = time.monotonic() + _CLOSING_S
        for thread in (self._keeper, *(worker.thread for worker in workers)):
            if thread is not None and thread is not threading.current_thread():  # a listener may stop the monitor
                thread.join(max(0.0, end - time.monotonic()))

    def reports(self) -> tuple[SourceReport, ...]:
        """The state of every source."""
        with self._lock:
            fresh = self._fresh(self._clock())
            return tuple(
                SourceReport(
                    state.source.name,
                    state.source.fields,
                    state.reading if state in fresh else None,
                    None if state in fresh else state.problem or "its last answer is too old",
                    state.failures,
                )
                for state in self._states
            )

    def _begin_missing(self) -> list[Worker]:
        """Start the threads that do not run. Returns the workers that now have a thread."""
        started, problem = [], ""
        with self._starting:
            self._tried_at = self._clock()
            for worker in list(self._workers):
                if worker.thread is not None:
                    continue
                try:
                    self._begin(worker)
                except RuntimeError as error:
                    problem = _no_thread(error)
                    with self._lock:
                        for state in worker.states:
                            state.problem, state.failures = problem, state.failures + 1
                    self._report(worker.states, problem, logging.WARNING, once=True)
                else:
                    started.append(worker)
            if self._keeper is None:
                try:
                    self._keeper = _thread(self._keep)
                except RuntimeError as error:  # then hanging sources are not detected
                    problem = _no_thread(error)
            self._is_whole = not problem
        if problem:
            self._refresh()  # so that the snapshot names what is missing
        return started

    def _try_again(self) -> None:
        """Retry to start threads after a pause."""
        if not self._is_whole and self._clock() - self._tried_at >= _THREADS_S:
            self._begin_missing()

    def _begin(self, worker: Worker) -> None:
        worker.thread = _thread(self._work, worker)

    def _work(self, worker: Worker) -> None:
        while not self._stop.is_set():
            for state in list(worker.states):
                # others of this round may have moved to a new thread
                if state in worker.states and self._is_due(state):
                    worker.busy = state, self._clock()
                    self._read(state)
                    if self._clock() - worker.busy[1] > _SLOW_S:
                        self._set_apart(worker, state)
                    worker.busy = None
                if self._stop.is_set():
                    return
            is_new = self._refresh()
            worker.ready.set()
            if is_new:
                self._after_publish()
            self._try_again()
            self._stop.wait(self._interval_s)

    def _is_due(self, state: SourceState) -> bool:
        if state.asked_at is None:
            return True
        # half an interval early: the next round would be half an interval late or more
        return not 0 <= self._clock() - state.asked_at < state.pause_s - self._interval_s / 2

    def _read(self, state: SourceState) -> None:
        reading, problem, absent, unknown = None, "", False, False
        try:
            raw_reading = state.source.read()
            reading = sound(raw_reading)
        except Exception as error:  # whatever a user's function raises
            problem, absent = str(error) or repr(error), isinstance(error, AbsentError)
            unknown = isinstance(error, UnknownLimitError)
        now = self._clock()
        with self._lock:
            state.asked_at, state.pause_s = now, max(_RETRY_S, state.period_s) if absent or unknown else state.period_s
            state.hanging = False
            if reading is None:
                state.reading, state.problem, state.failures = None, problem, state.failures + 1
            else:
                state.reading, state.read_at, state.problem = plausible(state, reading, now), now, None
        if reading is None:
            self._report([state], problem, logging.INFO if absent else logging.WARNING, once=unknown)
        elif reading.left_out:
            self._report_left_out(state.source.name, reading.left_out)

    def _set_apart(self, worker: Worker, slow: SourceState) -> None:
        """The worker keeps the slow source. The rest of its sources move to a new worker."""
        with self._lock:
            rest = [state for state in worker.states if state is not slow]
            if not rest or slow not in worker.states or self._stop.is_set():
                return
            other = Worker(rest)
            try:
                self._begin(other)
            except RuntimeError:  # no thread can be started: the others wait for this one
                return
            self._workers.append(other)
            worker.states = [slow]

    def _keep(self) -> None:
        """Detect sources that hang, and exclude readings that are too old."""
        pause_s = min(2 * self._interval_s, 2 * _SLOW_S)  # to wake up is most of what this costs
        published = self._clock()
        while not self._stop.wait(pause_s):
            now = self._clock()
            for worker in list(self._workers):
                busy = worker.busy
                if busy is None:
                    continue
                state, taken_s = busy[0], now - busy[1]
                if taken_s > _SLOW_S:
                    self._set_apart(worker, state)
                if taken_s > state.keep_s and not state.hanging:
                    problem = f"no answer for {state.keep_s:g} s"
                    with self._lock:
                        state.hanging, state.problem, state.failures = True, problem, state.failures + 1
                    self._report([state], problem, logging.WARNING)
            self._try_again()
            if now - published >= self._interval_s:
                published = now
                if self._refresh(only_if_stale=True):
                    self._after_publish()

    def _refresh(self, only_if_stale: bool = False) -> bool:
        """Publish a snapshot. Returns False where there was no reason to."""
        with self._lock:
            if self._stop.is_set():
                return False
            now = self._clock()
            fresh = self._fresh(now)
            names = frozenset(state.source.name for state in fresh)
            if only_if_stale and names == self._published:
                return False
            self._published = names
            readings = [state.reading.fields for state in fresh if state.reading is not None]
            missing = tuple(sorted(state.source.name for state in self._states if state.source.name not in names))
            self._publish(
                Snapshot(
                    time_s=max((state.read_at for state in fresh), default=now), **merge(readings), missing=missing
                )
            )
            return True

    def _fresh(self, now: float) -> list[SourceState]:
        return [s for s in self._states if s.reading is not None and now - s.read_at <= s.keep_s]

    def _report(self, states: Sequence[SourceState], problem: str, level: int, once: bool = False) -> None:
        """Log a problem once for each source, or once for all sources that have the same."""
        with self._lock:
            names = [state.source.name for state in states if state.source.name not in self._reported]
            is_news = bool(names) and problem not in self._reported
            self._reported.update((*names, problem) if once else names)
        if is_news:
            logger.log(level, "the monitor continues without %s: %s", ", ".join(names), problem)

    def _report_left_out(self, source: str, left_out: Sequence[LeftOut]) -> None:
        """Log once what a source excludes."""
        for item in left_out:
            key = f"{source}/{item.name}"
            with self._lock:
                is_news = key not in self._reported
                self._reported.add(key)
            if is_news:
                level = logging.INFO if item.usual else logging.WARNING
                logger.log(level, "the monitor continues without %s of %s: %s", item.name, source, item.reason)


def _thread(target: Callable[..., None], *arguments: object) -> threading.Thread:
    """A thread that runs. Raises RuntimeError where none can be started."""
    thread = threading.Thread(target=target, args=arguments, name="dynamic-monitor", daemon=True)
    thread.start()
    return thread


def _no_thread(error: RuntimeError) -> str:
    return f"no thread can be started ({error}): raise the limit on threads (ulimit -u, or pids.max of a container)"
