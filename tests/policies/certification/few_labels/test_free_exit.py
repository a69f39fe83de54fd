"""Which exit is enough alone, and when a search over several exits pays."""

import pytest
from support.policy_cases import learned, make_records

from dynamic.policies.certification.ladders.walks import RecordParts, ScoreSearch
from dynamic.policies.certification.risks import RISKS
from dynamic.policies.ladder import RiskName

TARGET = 0.05
SEARCHED = 400  # records that choose


def parts_of(backbone: tuple[int, ...], certifying: int, risk: RiskName = "drop") -> tuple[RecordParts, ScoreSearch]:
    """The parts of records of three stages, and the search on those that choose."""
    logits, label = learned(SEARCHED + certifying, 3, reach=(1.5, 3.5))
    records = make_records(logits, label, backbone, body=(1.0, 0.4, 3.0))
    chosen, others = records.select(slice(SEARCHED)), records.select(slice(SEARCHED, None))
    parts = RecordParts(chosen, others, RISKS[risk], "last", None, None, (1.0,) * 3)
    return parts, parts.search("max_probability")


def share_saved(parts: RecordParts, one: ScoreSearch) -> float:
    """The share of the cost of one exit that several save."""
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if one.search.single_exit((TARGET,), parts.errors, middle) is None else (low, middle)
    return high


@pytest.mark.parametrize(("backbone", "lost"), [((0, 0, 0), 0.5), ((0, 0, 1), 2.0)])
def test_several_exits_must_save_more_where_they_are_networks(backbone: tuple[int, ...], lost: float) -> None:
    searched = []
    for certifying in (150, 210, 300, 500, 1000, 2000):
        parts, one = parts_of(backbone, certifying)
        losses = TARGET * certifying
        pays = share_saved(parts, one) > (0.5 if losses < 10 else lost / losses)
        assert (parts.free_exit(one.search, (TARGET,)) is None) == pays
        searched.append(pays)
    assert set(searched) == {False, True}


def test_exits_of_errors_are_always_searched() -> None:
    """The first exits may gain where the reference loses too."""
    parts, one = parts_of((0, 0, 0), 150, "error")
    assert parts.free_exit(one.search, (TARGET,)) is None
