"""Which exit is enough alone, and when a search over several exits pays."""

from dataclasses import replace

import numpy as np
import pytest
from support.policy_cases import make_records

from dynamic.policies.certification.ladders.walks import RecordParts, ScoreSearch
from dynamic.policies.certification.risks import RISKS
from dynamic.policies.ladder import RiskName
from dynamic.policies.records import Records

TARGET = 0.05
EXITS, NETWORKS = (0, 0, 0), (0, 0, 1)


def records_of(shares: tuple[int, int, int], backbone: tuple[int, ...], body: tuple[float, ...]) -> Records:
    """Records whose right answer is class 1. The first share of them is confident and right from the first exit on,
    the next from the second exit on, and the others at the last stage alone. What is not confident is wrong.
    """
    kind = np.repeat([0, 1, 2], shares)
    logits = np.zeros((len(kind), 3, 4))
    for stage in range(3):
        right = kind <= stage
        logits[right, stage, 1] = 4.0
        logits[~right, stage, 2] = 1.0
    return make_records(logits, np.ones(len(kind)), backbone, body=body)


def parts_of(
    records: Records, certifying: int, risk: RiskName = "drop", on_demand: bool = False
) -> tuple[RecordParts, ScoreSearch]:
    """Parts of which the first has these records, and the search on it, with the losses that labels show."""
    others = replace(records.select(np.arange(certifying) % len(records)), on_demand=on_demand)
    parts = RecordParts(records, others, RISKS[risk], "last", None, None, (1.0,) * 3)
    return parts, parts.search("max_probability", expected=False)


# Of 100 inputs 50 may exit first, 30 more at the second exit, and 20 must run all: a loss of 0.05 allows no other.
# Bodies of 1, 1 and 8 cost 1 + 0.5 * 8 = 5 or more with the first exit alone, 2 + 0.2 * 8 = 3.6 with the second alone,
# and 1 + 0.5 + 1.6 = 3.1 with both, which is 13.9% less.
SHARES, BODY = (50, 30, 20), (1.0, 1.0, 8.0)


@pytest.mark.parametrize(
    ("backbone", "certifying", "exit_"),
    [
        (EXITS, 180, 1),  # 9 losses are few: a search must save half
        (NETWORKS, 180, 1),
        (EXITS, 240, None),  # 12 losses: 0.5 / 12 = 4.2% are lost among exits
        (NETWORKS, 240, 1),  # and 2 / 12 = 16.7% among networks
        (EXITS, 400, None),  # 20 losses: 2.5%
        (NETWORKS, 400, None),  # and 10%
    ],
)
def test_several_exits_must_save_more_where_they_are_networks(
    backbone: tuple[int, ...], certifying: int, exit_: int | None
) -> None:
    parts, one = parts_of(records_of(SHARES, backbone, BODY), certifying)
    assert one.search.cheapest(TARGET).cost == pytest.approx(3.1)  # type: ignore[union-attr]
    assert parts.free_exit(one.search, (TARGET,)) == exit_


@pytest.mark.parametrize("certifying", [180, 400, 4000])
@pytest.mark.parametrize(
    ("shares", "body", "exit_"),
    [
        (SHARES, BODY, 1),
        # the second exit is useless: 1 + 0.1 * (9 + 8) = 2.7 with the first, with both, and 10.8 with the second
        ((90, 0, 10), (1.0, 9.0, 8.0), 0),
        # 1 + 0.5 * 8 = 5 with the first exit, 5 with the second, and 1 + 0.5 * 4 = 3 with both: 40% less
        ((50, 50, 0), (1.0, 4.0, 4.0), None),
    ],
)
def test_on_demand_the_exit_of_the_least_cost_is_enough_unless_several_save_clearly_more(
    shares: tuple[int, int, int], body: tuple[float, ...], exit_: int | None, certifying: int
) -> None:
    parts, one = parts_of(records_of(shares, EXITS, body), certifying, on_demand=True)
    assert parts.free_exit(one.search, (TARGET,)) == exit_


@pytest.mark.parametrize("on_demand", [False, True])
def test_exits_of_errors_are_always_searched(on_demand: bool) -> None:
    """The first exits may gain where the reference loses too."""
    parts, one = parts_of(records_of(SHARES, EXITS, BODY), 180, "error", on_demand)
    assert parts.free_exit(one.search, (TARGET,)) is None
