"""Several engines behind one: where the first fails, a request is answered by the next that does not."""

import logging
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamic.engines.contract import Array, CascadeSpec, Engine, Expected, Output
from dynamic.engines.outputs import answered_rows, is_whole, left_at, silent_rows
from dynamic.engines.parts.rest import renumbered, without
from dynamic.policies.errors import DynamicError, EngineError
from dynamic.policies.frontier import CostedPoint

logger = logging.getLogger("dynamic")

COOL_DOWN_S = 30.0  # what failed is tried again after so long: memory may have been short, or a file busy

_Route = tuple[str | None, bool]  # the engine, None for the first, and whether it runs stage by stage


@dataclass(frozen=True, eq=False)
class Answer:
    """What a request yields and from which engines.

    Args:
        output: The output, of all rows.
        engines: Each engine that rows have their answers from, the first one first.
        moved: Whether something was loaded, given back or failed in this request.
        usual: Whether it went the way that was profiled.
        stages: `[B]`, where rows left.
        is_answered: Whether all rows have a finite answer, each from the stage that it left at too.
        ignores_deadline: Whether the single graph answered, which no deadline stops, although there was one.
    """

    output: Output
    engines: tuple[Engine, ...]
    moved: bool
    usual: bool
    stages: list[int]
    is_answered: bool
    ignores_deadline: bool = False

    @property
    def engine(self) -> Engine:
        """The first engine."""
        return self.engines[0]


@dataclass(frozen=True, eq=False)
class _Work:
    """A request that goes more than the usual way, see `FallbackEngines.run`."""

    inputs: Mapping[str, Array]
    rows: int
    point: CostedPoint
    resident: frozenset[int] | None
    stagewise: bool
    ends_s: float | None
    expected_s: Expected | None
    whole: bool


class _SilentError(EngineError):
    """An engine gave no finite answer to finite inputs. `answer` is what it gave, `rows` those that lack one."""

    def __init__(self, answer: Answer, rows: NDArray[np.intp]) -> None:
        super().__init__("it gives logits or scores that are not finite for inputs that are")
        self.answer, self.rows = answer, rows


class SubModelError(EngineError):
    """Backbones that a request needs do not load: one that does not need them may be answered."""

    def __init__(self, backbones: frozenset[int], error: BaseException) -> None:
        super().__init__(str(error))
        self.backbones = backbones


class FallbackEngines:
    """The engine that was asked for, and others, opened when first wanted.

    A request goes the usual way, then stage by stage on the same engine, then to the next engine. A way that failed is
    skipped for a while, and logged once until it works again. Where all are skipped they are tried again, since nothing
    is lost by it. The other engines are closed once nothing is skipped any more.

    Whatever an engine raises is its failure, but for errors that say that the request is wrong. So are outputs of wrong
    shapes, and logits that are not finite for a row of finite inputs. Only such rows are asked of the next way. Where
    no way gives any of them a finite answer it is the network that has none. The rows then stay without, and for a
    while nobody else is asked in such a case.

    A request that has to go stage by stage, for a deadline or a limit on memory, is answered by the single graph where
    no engine can run its stages.
    """

    def __init__(
        self,
        spec: CascadeSpec,
        first: Engine,
        others: Sequence[tuple[str, Callable[[], Engine]]],
        clock: Callable[[], float],
        failed: Callable[[], None],
    ) -> None:
        self.first, self._spec = first, spec
        self._others = tuple(others)
        self._opened: dict[str, Engine] = {}
        self._clock, self._failed = clock, failed
        self._skipped_ways: dict[_Route, float] = {}  # until when
        self._silent_until = -math.inf  # rows without a finite answer are taken for the network's until then
        self._reported: set[_Route | frozenset[int]] = set()  # ways, and sub-models that did not load
        self.forget()

    def forget(self) -> Any:
        """A lock that the parent held, perhaps, is no lock in a forked child."""
        self._lock = threading.RLock()
        self._users: Counter[str] = Counter()  # requests on each engine that was opened

    @property
    def has_failures(self) -> bool:
        """Whether a way is skipped now since it failed."""
        return bool(self._skipped_ways)

    def bind(
        self, backbones: frozenset[int], thresholds: NDArray[np.float32], rows: int
    ) -> Callable[[Mapping[str, Array]], Output] | None:
        """See `CascadeEngine.bind`. None for an engine that has no such function."""
        bind = getattr(self.first, "bind", None)
        function: Callable[[Mapping[str, Array]], Output] | None = bind and bind(backbones, thresholds, rows)
        return function

    def run(
        self,
        inputs: Mapping[str, Array],
        rows: int,
        point: CostedPoint,
        resident: frozenset[int] | None,
        stagewise: bool,
        ends_s: float | None = None,
        expected_s: Expected | None = None,
        whole: bool = False,
    ) -> Answer:
        """Answer a request.

        Args:
            inputs: By name, each `[B, ...]`.
            rows: B.
            point: The operating point.
            resident: Backbones that may be in memory beside those needed. None: all.
            stagewise: Whether the request has to go stage by stage.
            ends_s: The deadline on the clock. None: there is none.
            expected_s: Seconds from each stage to the next answer.
            whole: Whether points that need a backbone that does not load cannot be left out.

        Returns:
            The answer, from one engine or several.

        Raises:
            EngineError: No engine answers.
            SubModelError: Backbones that the request needs do not load on the first engine, unless `whole`.
        """
        failure: BaseException | None = None
        if not self._skipped_ways:
            first = self.first
            try:
                moved = first.prepare(point.backbones, rows, resident, stagewise)
                left_s = None if ends_s is None else ends_s - self._clock()
                output = first.run(inputs, point.thresholds, left_s, stagewise, expected_s)
                return self._checked(output, first, moved, True, inputs, rows)
            except Exception as error:
                _raise_of_caller(error)
                failure = error
        work = _Work(inputs, rows, point, resident, stagewise, ends_s, expected_s, whole)
        if failure is not None and not isinstance(failure, _SilentError):
            self._cool_down(None, stagewise, failure, work)
        return self._in_turn(work, failure)

    def _checked(
        self, output: Output, engine: Engine, moved: bool, usual: bool, inputs: Mapping[str, Array], rows: int
    ) -> Answer:
        """The answer. Raises EngineError where it is none."""
        stages = left_at(output, rows, self._spec)
        is_answered = is_whole(output)
        answer = Answer(output, (engine,), moved, usual, stages, is_answered)
        if not is_answered and output.complete and len(silent := silent_rows(output, inputs)):
            raise _SilentError(answer, silent)
        return answer

    def close(self) -> None:
        """Close every engine that was opened."""
        with self._lock:
            opened, self._opened = list(self._opened.values()), {}
        for engine in (self.first, *opened):
            engine.close()

    def _in_turn(self, work: _Work, error: BaseException | None) -> Answer:
        """The answer of the first way that gives one. `error` is how the usual way failed."""
        now, failed = self._clock(), error is not None
        silent: list[tuple[_Route, _SilentError]] = []
        outdone = 0  # so many of these: for a row at least, a later way had an answer
        partial: Answer | None = None  # of the first that had answers for some rows
        rows = np.arange(work.rows)  # without an answer
        with self._lock:
            skipped = self._skipped_ways = {way: until for way, until in self._skipped_ways.items() if until > now}
        others = [name for name, _ in self._others]
        names: list[str | None] = [None, *others]
        ways = dict.fromkeys((name, stagewise) for name in names for stagewise in (work.stagewise, True))
        last = () if not work.stagewise else tuple((name, False) for name in names)
        if isinstance(error, _SilentError):
            if now < self._silent_until:
                self._failed()
                return error.answer
            ways.pop((None, work.stagewise))
            silent.append(((None, work.stagewise), error))
            partial, rows = error.answer, error.rows
        for name, stagewise in (*sorted(ways, key=skipped.__contains__), *last):  # those that are skipped come last
            if partial is not None and work.stagewise and not stagewise:
                break  # the stages ran, so the graph has no other answer
            try:
                answer = self._one_way(work, name, stagewise, rows, moved=failed)
            except Exception as failure:
                _raise_of_caller(failure)
                error, failed = failure, True
                if not isinstance(failure, _SilentError):
                    self._cool_down(name, stagewise, failure, work)
                    continue
                if partial is None:
                    partial = failure.answer
                elif len(failure.rows) < len(rows):
                    partial, outdone = _joined(partial, rows, failure.answer), len(silent)
                rows = rows[failure.rows]
                silent.append(((name, stagewise), failure))
                if now < self._silent_until:
                    break
            else:
                for way, silence in silent:  # somebody can
                    self._cool_down(*way, silence, work, loads=True)
                self._give_back()
                return answer if partial is None else _joined(partial, rows, answer)
        if partial is not None:
            for way, silence in silent[:outdone]:
                self._cool_down(*way, silence, work, loads=True)
            self._count_silence(len(silent) - outdone, now, is_networks=not outdone)
            return partial
        text = str(error) if isinstance(error, DynamicError) else repr(error)
        raise EngineError(f"no engine answers, of {', '.join((self.first.name, *others))}: {text}") from error

    def _one_way(self, work: _Work, name: str | None, stagewise: bool, rows: NDArray[np.intp], moved: bool) -> Answer:
        """The answer of one way for some rows of a request. Raises what its engine raises."""
        inputs, count, by_stages = work.inputs, len(rows), stagewise
        if count < work.rows:
            inputs = {key: array[rows] for key, array in inputs.items()}
        is_last = work.stagewise and not stagewise  # the graph, since the stages cannot be had
        resident, ends_s = (None, None) if is_last else (work.resident, work.ends_s)
        with self._engine(name) as engine:
            moved |= engine.prepare(work.point.backbones, count, resident, by_stages)
            left_s = None if ends_s is None else ends_s - self._clock()
            output = engine.run(inputs, work.point.thresholds, left_s, by_stages, None if is_last else work.expected_s)
            usual = (name, stagewise) == (None, work.stagewise)
            answer = self._checked(output, engine, moved, usual, inputs, count)
            with self._lock:
                self._skipped_ways.pop((name, stagewise), None)
                self._reported.discard((name, stagewise))
        return replace(answer, ignores_deadline=is_last and work.ends_s is not None)

    def _count_silence(self, count: int, now: float, is_networks: bool) -> None:
        """Count ways without an answer for some rows. Where it is the networks', ask only one for a while."""
        for _ in range(count):
            self._failed()
        if is_networks and now >= self._silent_until:
            self._silent_until = now + COOL_DOWN_S
            logger.warning(
                "no engine gives a finite answer to some inputs that are finite: they get label -1 and are not "
                "certified. Only one engine is asked for %g s (counted in stats().engine_failures)",
                COOL_DOWN_S,
            )
        self._give_back()

    @contextmanager
    def _engine(self, name: str | None) -> Iterator[Engine]:
        """The engine, opened where it is not, and not closed while it is used."""
        if name is None:
            yield self.first
            return
        with self._lock:
            engine = self._opened.get(name)
            if engine is None:
                try:
                    engine = self._opened[name] = dict(self._others)[name]()
                except Exception as error:
                    raise EngineError(f"engine {name!r} does not open: {error}") from error
            self._users[name] += 1
        try:
            yield engine
        finally:
            with self._lock:
                self._users[name] -= 1

    def _give_back(self) -> None:
        """Close the engines that nobody needs, now that nothing rests."""
        with self._lock:
            spare = [] if self._skipped_ways else [name for name in self._opened if self._users[name] <= 0]
            engines = [self._opened.pop(name) for name in spare]
        for engine in engines:
            engine.close()

    def _cool_down(
        self, name: str | None, stagewise: bool, error: BaseException, work: _Work, loads: bool = False
    ) -> None:
        """Count and log a failure. The way is skipped for a while, unless a sub-model alone does not load."""
        self._failed()
        unsure = name is None and stagewise and not work.whole and not loads
        lost = self._missing(work) if unsure else frozenset()
        with self._lock:
            if not lost:
                self._skipped_ways[name, stagewise] = self._clock() + COOL_DOWN_S
            what = lost or (name, stagewise)
            new = what not in self._reported
            self._reported.add(what)
        if new:
            logger.warning(
                "engine %s failed%s: %s. Requests go another way for %g s (told once, counted in "
                "stats().engine_failures)",
                name or self.first.name,
                " stage by stage" if stagewise else "",
                error if isinstance(error, DynamicError) else repr(error),
                COOL_DOWN_S,
            )
        if lost:
            raise SubModelError(lost, error) from error

    def _missing(self, work: _Work) -> frozenset[int]:
        """Backbones of the request that the first engine cannot load."""
        missing = set()
        for backbone in sorted(work.point.backbones):
            try:
                self.first.prepare(frozenset({backbone}), work.rows, None, True)
            except Exception:
                missing.add(backbone)
        return frozenset(missing)


def _joined(answer: Answer, rows: NDArray[np.intp], part: Answer) -> Answer:
    """An answer whose `rows` are those of another one, where that has a finite answer for them."""
    has_answer = answered_rows(part.output)
    chosen = rows[has_answer]
    if not len(chosen):
        return answer
    logits, stage, score = answer.output.logits.copy(), answer.output.stage.copy(), answer.output.score.copy()
    logits[chosen] = part.output.logits[has_answer]
    stage[chosen] = part.output.stage[has_answer]
    score[chosen] = part.output.score[has_answer]
    unanswered = np.flatnonzero(~has_answer)
    later = renumbered(without(part.output.rests, unanswered), rows)
    rests = (*without(answer.output.rests, chosen), *later)
    output = Output(logits, stage, score, answer.output.complete and part.output.complete, rests)
    return Answer(
        output,
        tuple(dict.fromkeys((*answer.engines, *part.engines))),
        moved=True,
        usual=False,
        stages=[int(number) for number in stage],
        is_answered=is_whole(output),
        ignores_deadline=answer.ignores_deadline or part.ignores_deadline,
    )


def _raise_of_caller(error: Exception) -> None:
    """Raise what says that the request is wrong, for which no engine can be blamed."""
    if isinstance(error, DynamicError) and not isinstance(error, EngineError):
        raise error
