"""Costs between batch sizes by hand, and through JSON."""

import json
from dataclasses import replace
from typing import Any

import pytest
from support.policy_cases import make_costs

from dynamic.policies.costs import SCHEMA, Costs
from dynamic.policies.errors import CorruptError, InputError, SchemaError

COSTS = make_costs(
    [[2, 3, 9], [4, 5, 20]],
    (1, 2, 8),
    energy_mj=((1.0, 2.0, 8.0), (2.0, 4.0, 16.0)),
    energy_source="meter",
    idle_mw=800.0,
    not_measured=("memory_mb",),
)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [(0.5, 2), (1, 2), (1.5, 2.5), (2, 3), (5, 6), (8, 9), (14, 15)],
)
def test_linear_between_and_beyond_flat_below(rows: float, expected: float) -> None:
    assert COSTS.at(COSTS.latency_ms[0], rows) == pytest.approx(expected)


def test_a_falling_table_does_not_go_below_nothing() -> None:
    assert COSTS.at((2.0, 3.0, 1.0), 20) == 0


@pytest.mark.parametrize(("batch", "rows", "expected"), [(1, 1, 6), (1, 3, 18), (4, 4, 6), (4, 6, 9), (4, 1, 6)])
def test_one_batch_size_grows_in_proportion(batch: int, rows: float, expected: float) -> None:
    costs = make_costs([[6]], (batch,))
    assert costs.at(costs.latency_ms[0], rows) == pytest.approx(expected)


def test_through_json() -> None:
    assert Costs.from_json(json.loads(json.dumps(COSTS.to_json(), allow_nan=False))) == COSTS
    plain = make_costs([[1], [2]])
    assert Costs.from_json(json.loads(json.dumps(plain.to_json()))) == plain
    server = replace(COSTS, threads=192)
    assert Costs.from_json(json.loads(json.dumps(server.to_json()))) == server


def test_a_newer_schema_asks_for_an_update() -> None:
    with pytest.raises(SchemaError, match="update"):
        Costs.from_json(COSTS.to_json() | {"schema": SCHEMA + 1})


@pytest.mark.parametrize(
    "damage",
    [
        {"schema": "new"},
        {"latency_ms": None},
        {"latency_ms": [[1, 2, 3]]},
        {"cpu_ms": [[1, 2], [1, 2]]},
        {"energy_mj": [[1, 2], [1, 2]]},
        {"call_ms": [0.1]},
        {"batch": [1, 8, 2]},
        {"head_ms": [["a", 1, 2]] * 2},
        {"colour": "red"},
    ],
)
def test_damage_is_told(damage: dict[str, Any]) -> None:
    with pytest.raises(CorruptError, match="profile again"):
        Costs.from_json(COSTS.to_json() | damage)


@pytest.mark.parametrize("name", sorted(COSTS.to_json()))
def test_nothing_may_be_missing(name: str) -> None:
    data = COSTS.to_json()
    del data[name]
    with pytest.raises(CorruptError, match=name):
        Costs.from_json(data)


def test_tables_check_themselves() -> None:
    with pytest.raises(InputError, match="rising"):
        make_costs([[1, 2]], (4, 4))
    with pytest.raises(InputError, match="rising"):
        make_costs([], ())
    with pytest.raises(InputError, match="head_ms"):
        make_costs([[1, 2]], (1, 2), head_ms=((0.0,),))
    with pytest.raises(InputError, match="cpu_ms"):
        make_costs([[1], [2]], (1,), cpu_ms=((1.0,),))
    with pytest.raises(InputError, match="call_ms"):
        make_costs([[1], [2]], (1,), call_ms=(1.0, 2.0))
    with pytest.raises(InputError, match="energy_mj"):
        make_costs([[1], [2]], (1,), energy_mj=((1.0,),))


def test_energy_by_a_model_is_power_times_time() -> None:
    bare = make_costs([[2, 10], [4, 20]], (1, 8), not_measured=("energy", "idle power", "more"))
    known = bare.powered(active_mw=1500, idle_mw=700)
    assert known.energy_mj == ((3.0, 15.0), (6.0, 30.0))  # 1.5 W for 2, 10, 4 and 20 ms
    assert (known.energy_source, known.idle_mw, known.not_measured) == ("model", 700, ("more",))
    assert bare.powered(active_mw=1500).not_measured == ("idle power", "more")
    assert Costs.from_json(known.to_json()) == known
    for wrong in (0, -1, float("nan"), float("inf")):
        with pytest.raises(InputError, match="active_mw"):
            bare.powered(wrong)
        with pytest.raises(InputError, match="idle_mw"):
            bare.powered(1500, wrong)
