"""What requests are expected to take where a cascade is split: by hand, on a clock that is set."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.policy_cases import make_costs, make_point
from support.runtime_cases import Clock, Fake, Takes, monitor, shared_blobs

import dynamic
from dynamic.engines.contract import Output
from dynamic.engines.parts.rest import Rest
from dynamic.policies import Feedback
from dynamic.runtime.runtime import Runtime

CUT, ROWS = 2, 4
# batches of one are all that is known: so many rows take so many times as long
COSTS = make_costs([[2], [3], [10]], latency_p95_ms=((4.0,), (5.0,), (20.0,)), call_ms=(0.5,), memory_mb=(5.0, 50.0))


class Learns(Takes):
    """Keeps what requests took and should have taken."""

    def __init__(self) -> None:
        super().__init__("mixed")
        self.feedback: list[Feedback] = []

    def observe(self, state: Any, feedback: Feedback) -> Any:
        self.feedback.append(feedback)
        return state


class Part(Fake):
    """An engine that takes `takes_ms`, whose rows exit at `stages`, and some of which continue."""

    version = "v"

    def __init__(self, clock: Clock, takes_ms: float, stages: list[int], rests: tuple[Rest, ...] = ()) -> None:
        super().__init__()
        self.clock, self.takes_ms, self.stages, self.rests = clock, takes_ms, stages, rests

    def run(self, inputs: Mapping[str, NDArray[Any]], *args: Any, **options: Any) -> Output:
        output = super().run(inputs, *args, **options)
        self.clock.now += self.takes_ms / 1e3
        return replace(output, stage=np.array(self.stages), rests=self.rests)


def opened(bundle: dynamic.Bundle, engine: Part, policy: Learns, backbone: tuple[int, ...] = (0, 0, 0)) -> Runtime:
    """A runtime of three stages, of which 0.5, 0.1 and 0.4 of the inputs exit."""
    point = make_point("mixed", (0.5, 0.5), (0.5, 0.1, 0.4), backbones=tuple(sorted({*backbone})))
    three = {"temperature": (1.0,) * 3, "stage_names": ("a", "b", "c"), "backbone": backbone}
    ladder = replace(bundle.ladder, points=(point,), certified=True, **three)  # type: ignore[arg-type]
    first, last = bundle.spec.stages
    stages = tuple(
        replace(stage, backbone=number) for stage, number in zip((first, first, last), backbone, strict=True)
    )
    whole = replace(bundle, ladder=ladder, costs=COSTS, spec=replace(bundle.spec, stages=stages))
    return Runtime.on_engine(
        whole, whole.frontier, engine, dynamic.Budget(), monitor(), policy, clock=engine.clock, drift_alpha=None
    )


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> dynamic.Bundle:
    return shared_blobs(tmp_path_factory)


def rest(*rows: int, **arrays: NDArray[Any]) -> Rest:
    progress = {"answered": np.zeros(len(rows)), "answer": np.zeros((len(rows), 4), np.float32)}
    return Rest(CUT, np.array(rows), progress | arrays, version="v")


def test_rows_that_continue_have_run_all_stages_before_the_cut(bundle: dynamic.Bundle) -> None:
    """Two rows exit at stage 0. Two run stage 1 too and continue, though their answer is from stage 0."""
    policy = Learns()
    engine = Part(Clock(), 16.0, [0, 0, 0, 1], (rest(2, 3),))
    with opened(bundle, engine, policy) as run:
        for _ in range(2):  # the first one loads
            run(np.zeros((ROWS, 12), np.float32))
    assert policy.feedback[-1].expected_ms[-1] == pytest.approx(4 * 2 + 2 * 3 + 4 * 0.5)
    assert policy.feedback[-1].latency_ms[-1] == pytest.approx(16.0)


CARRY, INPUT = {"carry.0": np.zeros((2, 3))}, {"input.x": np.zeros((2, 12))}


@pytest.mark.parametrize(
    ("arrays", "backbone", "again_ms", "again_p95_ms"),
    [
        (CARRY, (0, 0, 0), 0.0, 0.0),
        (INPUT, (0, 0, 0), 2.0 + 3.0, 4.0 + 5.0),
        (INPUT, (0, 1, 1), 3.0, 5.0),
        (INPUT, (0, 0, 1), 0.0, 0.0),
        (CARRY | INPUT, (0, 0, 0), 0.0, 0.0),
    ],
)
def test_stages_that_the_tail_runs_again_are_expected(
    bundle: dynamic.Bundle,
    arrays: dict[str, NDArray[Any]],
    backbone: tuple[int, ...],
    again_ms: float,
    again_p95_ms: float,
) -> None:
    policy = Learns()
    engine = Part(Clock(), 2 * (10.0 + again_ms), [2, 2])
    with opened(bundle, engine, policy, backbone) as run:
        for _ in range(2):
            run.resume(rest(0, 1, **arrays), "mixed", deadline_ms=500.0)
    assert policy.feedback[-1].expected_ms[-1] == pytest.approx(2 * (10 + again_ms))
    assert policy.feedback[-1].latency_ms[-1] == pytest.approx(2 * (10 + again_ms)), "no slowdown on an idle device"
    one, every = engine.calls[-1][2][CUT]
    assert one * 1e3 == pytest.approx(20.0 + again_p95_ms)
    assert every * 1e3 == pytest.approx(2 * (20.0 + again_p95_ms))
