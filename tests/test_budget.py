"""What a budget takes and what it refuses."""

import json
import math
from typing import Any

import pytest

from dynamic.policies.budget import Budget
from dynamic.policies.errors import BudgetError


def test_no_limits_unless_asked() -> None:
    nothing = Budget(
        latency_ms=None, percentile=0.95, memory_mb=None, battery_floor=None, max_drop=None, on_drift="safest"
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
        {"on_drift": "safest"},
        {"on_drift": "report", "max_drop": 0.1},
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
        ("battery_floor", [-0.1, 1, 20, math.nan, True, False]),
        ("max_drop", [-0.1, 1, 5, math.nan, True, False]),
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


def test_an_unknown_field_is_named() -> None:
    with pytest.raises(BudgetError, match=r"'latency'.*latency_ms"):
        Budget.from_json({"latency": 80})
