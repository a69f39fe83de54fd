"""The stage loop: the same for every executor."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dynamic.engines.contract import Array, Carry, CascadeSpec, Executor, Expected, InputSpec, Output
from dynamic.engines.inputs.dimensions import shape_text, size_fault
from dynamic.engines.parts.rest import Progress, Rest, packed, unpacked
from dynamic.policies.errors import EngineError, InputError
from dynamic.policies.scores import TINY, Combiner
from dynamic.policies.stage_plan import StagePlan, check_thresholds, plan


@dataclass(frozen=True, eq=False)
class _BatchStart:
    """Rows at the first stage that runs. Those that come from elsewhere have inputs, or `tensors` of a carry."""

    stage: int
    rows: int
    inputs: Mapping[str, Array]
    progress: Progress
    tensors: Sequence[Array] = ()


def _nothing_yet(combiner: Combiner, rows: int) -> Progress:
    return Progress(combiner.start(), None, np.full(rows, np.nan, np.float32), -1)


class StageEngine:
    """Runs a cascade stage by stage on an executor. Rows that exit leave the batch."""

    def __init__(
        self,
        executor: Executor,
        spec: CascadeSpec,
        combiner: Combiner,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.name = executor.name
        self.precision = executor.precision
        self.threads = executor.threads
        self.options: Mapping[str, str] = {}  # options that change arithmetic, such as the device
        self.executor = executor
        self.spec = spec
        self._combiner = combiner
        self._clock = clock
        self._plans: dict[bytes, StagePlan] = {}

    def run(
        self,
        inputs: Mapping[str, Array],
        thresholds: NDArray[np.float32],
        deadline_s: float | None = None,
        expected_s: Expected | None = None,
        until: int | None = None,
    ) -> Output:
        """Run inputs under thresholds.

        Args:
            inputs: Inputs by name, each `[B, ...]`.
            thresholds: Thresholds `[S-1]`.
            deadline_s: Seconds after which, once there is an answer, no stage begins. Nor does a stage begin whose next
                answer is expected later. None: no deadline.
            expected_s: Expected seconds from the start of each stage to the next answer `[S]`, for one row and for all.
                Between them the estimate is linear.
            until: The stage that does not run here, nor do those after it. Rows that would continue there are in the
                output's `rests`. None: all stages may run.

        Returns:
            The output.

        Raises:
            InputError: An input has a wrong name, shape or dtype.
            SettingError: The thresholds are of wrong length or NaN.
        """
        rows = check_inputs(inputs, self.spec.inputs)
        begun = _BatchStart(0, rows, inputs, _nothing_yet(self._combiner, rows))
        return self._run(begun, thresholds, deadline_s, expected_s, until)

    def resume(
        self,
        stage: int,
        arrays: Mapping[str, Array],
        thresholds: NDArray[np.float32],
        deadline_s: float | None = None,
        expected_s: Expected | None = None,
    ) -> Output:
        """Continue with rows whose stages before `stage` ran elsewhere, under the same thresholds.

        Args:
            stage: The first stage that has not run.
            arrays: What `Rest` has for them, each `[B, ...]`.
            thresholds: As for `run`.
            deadline_s: As for `run`, from now.
            expected_s: As for `run`.

        Returns:
            The output of these rows.

        Raises:
            SettingError: The thresholds are of wrong length or NaN.
        """
        progress, inputs, tensors = unpacked(arrays)
        begun = _BatchStart(stage, len(progress.score), inputs, progress, tensors)
        return self._run(begun, thresholds, deadline_s, expected_s)

    def _run(
        self,
        begun: "_BatchStart",
        thresholds: NDArray[np.float32],
        deadline_s: float | None,
        expected_s: Expected | None,
        until: int | None = None,
    ) -> Output:
        began = self._clock() if deadline_s is not None else 0.0
        rows, inputs, progress = begun.rows, begun.inputs, begun.progress
        todo, thresholds = self.plan(thresholds), np.asarray(thresholds, np.float32)
        executor, backbone, last = self.executor, self.spec.backbone, len(self.spec.stages) - 1
        probabilities = np.full((rows, self.spec.classes), np.nan, np.float32)  # [B, C]
        out_stage = np.full(rows, last, np.int64)  # [B]
        out_score = np.full(rows, np.nan, np.float32)  # [B]
        alive = np.arange(rows)  # rows of the request that are still in the batch
        # of the rows alive: the answer so far, its score, and the stage that gave it
        state, answer, score, answered = progress.state, progress.answer, progress.score, progress.answered
        carry, current, complete = None, -1, True
        rests: tuple[Rest, ...] = ()
        for stage in range(begun.stage, last + 1):
            if not todo.run[stage]:
                continue
            if deadline_s is not None and answer is not None:
                left_s = deadline_s - (self._clock() - began)
                if left_s <= 0 or left_s < _expected(expected_s, stage, len(alive), rows):
                    probabilities[alive], out_stage[alive], out_score[alive] = answer, answered, score
                    complete = False
                    break
            if until is not None and stage >= until:
                if answer is not None:
                    probabilities[alive] = answer
                out_stage[alive], out_score[alive] = answered if answered >= 0 else max(until - 1, 0), score
                so_far, begins = Progress(state, answer, score, answered), backbone[stage] != current
                rests = (self._rest(until, stage, alive, so_far, inputs, None if begins else carry),)
                break
            if backbone[stage] != current:  # another backbone starts from the input again
                current = backbone[stage]
                if stage == begun.stage and begun.tensors:
                    carry = executor.from_arrays(begun.tensors)
                else:
                    carry = executor.start(inputs if len(alive) == rows else self._remaining(inputs, alive))
                    carry = self._caught_up(stage, begun.stage, carry, todo)
            logits, carry = executor.step(stage, carry, todo.on[stage])
            if not todo.on[stage]:
                continue
            checked = _check_logits(logits, len(alive), self.spec, stage)
            answer, score, state = self._combiner.add(state, stage, checked)
            answered = stage
            if stage == last:
                probabilities[alive], out_score[alive] = answer, score
                break
            leaves = thresholds[stage] < score  # [B'], False for NaN
            if leaves.all():
                probabilities[alive], out_stage[alive], out_score[alive] = answer, stage, score
                break
            if leaves.any():
                gone, stay = alive[leaves], np.flatnonzero(~leaves)
                probabilities[gone], out_stage[gone], out_score[gone] = answer[leaves], stage, score[leaves]
                alive = alive[stay]
                state = state.select(stay)
                answer, score = answer[stay], score[stay]
                if stage < last and backbone[stage + 1] == current:
                    carry = executor.keep(carry, stay)
        return Output(np.log(np.maximum(probabilities, TINY)), out_stage, out_score, complete, rests)

    def _rest(
        self,
        cut: int,
        stage: int,
        alive: NDArray[np.intp],
        progress: Progress,
        inputs: Mapping[str, Array],
        carry: Carry | None,
    ) -> Rest:
        """What rows need that continue elsewhere at `stage`, the first that runs from the cut on.

        Where that belongs to the backbone that has begun, they get the carry if it is no larger than the inputs.
        Otherwise the stages of the backbone before the cut run there again.
        """
        own = self._remaining(inputs, alive)
        tensors = None if carry is None else self.executor.to_arrays(carry)
        if tensors is not None and sum(a.nbytes for a in tensors) > sum(a.nbytes for a in own.values()):
            tensors = None
        starts_later = self.spec.backbone[-1] != self.spec.backbone[stage]
        needs_inputs = tensors is None or starts_later
        return Rest(cut, alive, packed(progress, own if needs_inputs else None, tensors), self.spec.size_of(inputs))

    def _caught_up(self, stage: int, begun: int, carry: Carry, todo: StagePlan) -> Carry:
        """The carry of a backbone that starts at `stage`, after those of its stages that ran before the cut."""
        if stage != begun:
            return carry
        first = self.spec.backbone.index(self.spec.backbone[stage])
        for earlier in range(first, stage):  # as they ran there, so that the carry is the same to the bit
            _, carry = self.executor.step(earlier, carry, todo.on[earlier])
        return carry

    def _remaining(self, inputs: Mapping[str, Array], alive: NDArray[np.intp]) -> Mapping[str, Array]:
        """The inputs of the rows that have not left, no longer than the longest text among them."""
        rest = {name: array[alive] for name, array in inputs.items()}
        return rest if self.spec.padding is None else self.spec.padding.cut(rest)

    def all_logits(self, inputs: Mapping[str, Array]) -> NDArray[np.float32]:
        """Raw logits of every stage `[B, S, C]`, without exits: for calibration."""
        rows = check_inputs(inputs, self.spec.inputs)
        stage_logits, carry = [], None
        for stage, belongs in enumerate(self.spec.backbone):
            if stage == 0 or belongs != self.spec.backbone[stage - 1]:
                carry = self.executor.start(inputs)
            logits, carry = self.executor.step(stage, carry, True)
            stage_logits.append(_check_logits(logits, rows, self.spec, stage))
        return np.stack(stage_logits, axis=1)

    def plan(self, thresholds: NDArray[np.float32]) -> StagePlan:
        """The stages that these thresholds run. Raises SettingError on a wrong length or NaN."""
        array = np.asarray(thresholds, np.float32)
        if array.ndim != 1:  # it may have the same bytes as another one
            check_thresholds(array, len(self.spec.stages))
        key = array.tobytes()
        stage_plan = self._plans.get(key)
        if stage_plan is None:
            if len(self._plans) > 1000:  # a caller that varies thresholds without end must not fill memory
                self._plans.clear()
            stage_plan = self._plans[key] = plan(thresholds, self.spec.backbone)
        return stage_plan


def _check_logits(logits: NDArray[np.float32] | None, rows: int, spec: CascadeSpec, stage: int) -> NDArray[np.float32]:
    """The logits. Raises EngineError on another shape: one row would count as the answer of all."""
    shape = getattr(logits, "shape", None)
    if logits is None or shape != (rows, spec.classes):
        actual = "nothing" if shape is None else f"logits {list(shape)}"
        raise EngineError(
            f"stage {spec.stages[stage].name!r} gave {actual}, expected "
            f"[{rows}, {spec.classes}]: export its network with a free batch dimension and these classes"
        )
    return logits


def _expected(expected_s: Expected | None, stage: int, alive: int, rows: int) -> float:
    if expected_s is None:
        return 0.0
    one, every = expected_s[stage]
    return every if alive == rows else one + (every - one) * (alive - 1) / (rows - 1)


def check_inputs(inputs: Mapping[str, Array], specs: Sequence[InputSpec]) -> int:
    """The number of rows. Raises InputError on a wrong name, shape, dtype or batch."""
    rows, resized = -1, False
    if len(inputs) != len(specs) or not all(spec.name in inputs for spec in specs):
        names = sorted(spec.name for spec in specs)
        raise InputError(f"inputs are {sorted(inputs, key=str)}: this cascade takes {names}")
    for spec in specs:
        array = inputs[spec.name]
        shape = array.shape
        if not shape or shape[1:] != spec.shape:
            if not shape or not spec.ranges:
                raise InputError(
                    f"input {spec.name!r} has shape {list(shape)}, expected {shape_text(spec.shape, spec.ranges)}"
                )
            resized = True
        if array.dtype != spec.dtype:
            raise InputError(f"input {spec.name!r} is {array.dtype}, expected {spec.dtype}: convert it first")
        if shape[0] == 0:
            raise InputError(f"input {spec.name!r} is an empty batch: give at least one row")
        if rows not in (-1, shape[0]):
            raise InputError(f"input {spec.name!r} has {shape[0]} rows, another input {rows}")
        rows = shape[0]
    if resized:
        fault = size_fault((spec.name, inputs[spec.name].shape, spec.shape, spec.ranges) for spec in specs)
        if fault is not None:
            raise InputError(fault)
    return rows
