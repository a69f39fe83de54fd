"""Inputs that have waited in a queue which is not the runtime's."""

import pytest
from support.runtime_cases import Fake, Notes, Takes, X, faked, shared_blobs

import dynamic
from dynamic.errors import SettingError


def test_the_wait_is_a_part_of_the_latency_and_known_to_the_policy(tmp_path_factory: pytest.TempPathFactory) -> None:
    policy = Notes()
    with faked(shared_blobs(tmp_path_factory), policy=policy) as run:
        result = run(X, waited_ms=40.0, queue_length=3)
        assert result.latency_ms >= result.waited_ms >= 40.0
        waited_ms, queue_length = policy.requests[-1]
        assert waited_ms is not None
        assert waited_ms >= 40.0
        assert queue_length == 3
        assert run(X).waited_ms == 0.0
        assert policy.requests[-1] == (0.0, 0)
        assert run.stats().mean_waited_ms == pytest.approx(result.waited_ms / 2)


@pytest.mark.parametrize(("waited_ms", "point"), [(0.0, "reference"), (10.0, "quick"), (13.0, "small")])
def test_one_that_has_waited_gets_a_faster_point_for_itself(
    tmp_path_factory: pytest.TempPathFactory, waited_ms: float, point: str
) -> None:
    """The points take 10, 6 and 1 ms, and the limit is 18 ms."""
    engine, budget = Fake(), dynamic.Budget(latency_ms=18.0, percentile=None)
    with faked(shared_blobs(tmp_path_factory), engine, budget, clock=lambda: 100.0) as run:
        assert run(X).decision.point.name == "reference"
        assert run(X, waited_ms=waited_ms).decision.point.name == point
        assert run(X).decision.point.name == "reference"


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_a_wait_that_is_none(tmp_path_factory: pytest.TempPathFactory, value: float) -> None:
    with faked(shared_blobs(tmp_path_factory), policy=Takes("small")) as run:
        with pytest.raises(SettingError, match=f"waited_ms={value!r}"):
            run(X, waited_ms=value)
        with pytest.raises(SettingError, match=f"queue_length={value!r}"):
            run(X, queue_length=value)  # type: ignore[arg-type]
        assert run.stats().requests == 0
