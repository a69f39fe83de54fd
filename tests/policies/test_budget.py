"""What a budget takes and what it refuses."""

import json
import math
from typing import Any

import pytest

from dynamic.policies.budget import PRIORITY, Budget
from dynamic.policies.errors import BudgetError


def test_no_limits_unless_asked() -> None:
    nothing = Budget(
        latency_ms=None,
        percentile=0.95,
        deadline_ms=None,
        energy_mj=None,
        memory_mb=None,
        battery_floor=None,
        battery_duration_s=None,
        temperature_c=None,
        max_drop=None,
        min_accuracy=None,
        on_drift="safest",
        priority=("memory", "deadline", "battery", "temperature", "latency", "energy", "drop"),
    )
    assert Budget() == nothing


@pytest.mark.parametrize(
    "fields",
    [
        {"latency_ms": 0.001, "percentile": None},
        {"latency_ms": 80, "percentile": 0.5},
        {"memory_mb": 300},
        {"battery_floor": 0, "max_drop": 0},
        {"battery_floor": 0.999, "max_drop": 0.999},
        {"battery_floor": 1, "max_drop": 1.0},
        {"on_drift": "safest"},
        {"on_drift": "report", "max_drop": 0.1},
        {"deadline_ms": 0.5, "energy_mj": 1e9, "battery_duration_s": 18000},
        {"temperature_c": -49.9},
        {"temperature_c": 149.9},
        {"temperature_c": 0},
        {"min_accuracy": 0, "max_drop": 0.01},
        {"min_accuracy": 0.999},
        {"min_accuracy": 1.0},
        {"priority": ("drop",), "latency_ms": 20},
        {"priority": PRIORITY[::-1]},
        {"priority": ()},
    ],
)
def test_within_range_and_through_json(fields: dict[str, Any]) -> None:
    budget = Budget(**fields)
    assert Budget.from_json(json.loads(json.dumps(budget.to_json()))) == budget


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("latency_ms", [0, -1, math.nan, math.inf, "80", True]),
        ("memory_mb", [0, -300, math.nan, math.inf]),
        ("percentile", [0, 1, 95, -0.5, math.nan]),
        ("battery_floor", [-0.1, 1.001, 20, math.nan, True, False]),
        ("max_drop", [-0.1, 1.001, 5, math.nan, True, False]),
        ("deadline_ms", [0, -1, math.nan, math.inf, "80", True]),
        ("energy_mj", [0, -1, math.nan, math.inf, True]),
        ("battery_duration_s", [0, -5, math.nan, math.inf, "5 h", True]),
        ("temperature_c", [-50, 150, 343, math.nan, math.inf, "70", True, False]),
        ("min_accuracy", [-0.1, 1.001, 95, math.nan, True, False]),
    ],
)
def test_out_of_range_is_named(name: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(BudgetError, match=f"{name}={value!r} must be"):
            Budget(**{name: value})


@pytest.mark.parametrize("value", ["stop", "", None, True, 1, ["safest"]])
def test_what_happens_on_drift_is_one_of_two(value: Any) -> None:
    with pytest.raises(BudgetError) as raised:
        Budget(on_drift=value)
    assert str(raised.value) == f"on_drift={value!r} must be one of ('safest', 'report')"
    with pytest.raises(BudgetError, match="on_drift"):
        Budget.from_json({"on_drift": value})


@pytest.mark.parametrize(
    ("given", "order"),
    [
        (PRIORITY, PRIORITY),
        ((), PRIORITY),
        (("drop",), ("drop", "memory", "deadline", "battery", "temperature", "latency", "energy")),
        (["latency", "memory"], ("latency", "memory", "deadline", "battery", "temperature", "energy", "drop")),
        (PRIORITY[::-1], PRIORITY[::-1]),
    ],
)
def test_limits_that_priority_does_not_name_follow(given: Any, order: tuple[str, ...]) -> None:
    assert Budget(priority=given).priority == order


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("drop", "must be a tuple of names"),
        (None, "must be a tuple of names"),
        ({"drop"}, "must be a tuple of names"),
        (("max_drop",), "names 'max_drop', which is none of the limits"),
        (("drop", 3), "names 3, which is none of the limits"),
        (("drop", "memory", "drop"), "names a limit twice"),
    ],
)
def test_a_priority_that_is_none(given: Any, said: str) -> None:
    with pytest.raises(BudgetError, match=said):
        Budget(priority=given)
    if isinstance(given, tuple):
        with pytest.raises(BudgetError, match=said):
            Budget.from_json({"priority": list(given)})


def test_an_unknown_field_is_named() -> None:
    with pytest.raises(BudgetError, match=r"'latency'.*latency_ms"):
        Budget.from_json({"latency": 80})
