"""Ladders through JSON, and what a point promises."""

import json
from dataclasses import replace
from typing import Any

import pytest
from support.policy_cases import INF, make_ladder, make_point

from dynamic.policies.certification.drift import ScoreBins
from dynamic.policies.errors import CorruptError, SchemaError
from dynamic.policies.ladder import SCHEMA, Certificate, Ladder, Missing

LADDER = make_ladder(
    [
        make_point("reference", (INF, INF), (0.0, 0.0, 1.0)),
        make_point("drop 0.01", (0.7, INF), (0.4, 0.0, 0.6), target=0.01, risk=-0.002, bound=0.009, delta=0.1),
        make_point("cheapest", (-INF, INF), (1.0, 0.0, 0.0), target=None, risk=0.3),
    ],
    (0, 0, 1),
)
CERTIFIED = replace(
    LADDER,
    certified=True,
    certificate=Certificate(
        "drop",
        0.1,
        "exact",
        500,
        20,
        100,
        "2026-11-24",
        (Missing(0.0, 0.01, None), Missing(0.005, None, 900)),
        600,
        250,
    ),
    points=tuple(
        replace(point, exits=exits)
        for point, exits in zip(
            LADDER.points,
            (
                (ScoreBins((), (0,)), ScoreBins((), (0,)), ScoreBins((-INF, 0.25), (0, 2, 3))),
                (ScoreBins((0.75,), (1, 1)), ScoreBins((), (0,)), ScoreBins((0.25,), (1, 2))),
                (),
            ),
            strict=True,
        )
    ),
)


def test_through_strict_json() -> None:
    for ladder in (LADDER, CERTIFIED):
        text = json.dumps(ladder.to_json(), allow_nan=False)
        assert Ladder.from_json(json.loads(text)) == ladder


@pytest.mark.parametrize(("thresholds", "promised"), [((INF, INF), 0.0), ((0.5, INF), 1.0), ((-INF, INF), 1.0)])
def test_a_bound_on_errors_promises_no_drop(thresholds: tuple[float, ...], promised: float) -> None:
    point = make_point("p", thresholds, (0.5, 0.0, 0.5), target=0.07, risk=0.06, bound=0.07, kind="error", drop=0.0)
    assert point.promised_drop == promised


@pytest.mark.parametrize(
    ("target", "risk", "bound", "promised"),
    [
        (0.01, 0.004, 0.009, 0.009),  # certified: the bound
        (0.01, 0.02, 0.009, 0.009),
        (None, 0.2, 0.25, 0.25),
        (0.01, 0.004, None, 0.01),  # else no less than was asked for
        (0.01, 0.02, None, 0.02),  # nor than was measured
        (None, 0.3, None, 0.3),
        (0.0, -0.02, None, 0.0),
    ],
)
def test_promised_drop(target: float | None, risk: float, bound: float | None, promised: float) -> None:
    assert make_point("p", (0.5,), (0.5, 0.5), target=target, risk=risk, bound=bound).promised_drop == promised


def test_a_newer_schema_asks_for_an_update() -> None:
    with pytest.raises(SchemaError, match="update"):
        Ladder.from_json(LADDER.to_json() | {"schema": SCHEMA + 1})


@pytest.mark.parametrize(
    "damage",
    [
        {"schema": None},
        {"points": None},
        {"points": [{"name": "half"}]},
        {"temperature": ["warm"]},
        {"backbone": 3},
    ],
)
def test_damage_is_told(damage: dict[str, Any]) -> None:
    with pytest.raises(CorruptError, match="ladder"):
        Ladder.from_json(LADDER.to_json() | damage)


@pytest.mark.parametrize("name", sorted(set(LADDER.to_json()) - {"floor", "left_out"}))
def test_nothing_may_be_missing(name: str) -> None:
    data = LADDER.to_json()
    del data[name]
    with pytest.raises(CorruptError, match=name):
        Ladder.from_json(data)


@pytest.mark.parametrize("name", sorted(set(LADDER.to_json()["points"][0]) - {"exits"}))
def test_nothing_may_be_missing_of_a_point(name: str) -> None:
    data = LADDER.to_json()
    del data["points"][1][name]
    with pytest.raises(CorruptError, match=name):
        Ladder.from_json(data)


def test_a_ladder_of_an_earlier_version_reads() -> None:
    written = LADDER.to_json()
    del written["floor"], written["left_out"]
    for point in written["points"]:
        del point["exits"]
    read = Ladder.from_json(written)
    assert read.floor is None
    assert read.left_out == ()
    assert all(point.exits == () for point in read.points)
