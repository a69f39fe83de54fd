"""Who beats whom, of networks whose answers and times are written by hand."""

from collections.abc import Sequence

import numpy as np
import pytest
from torch import nn

from dynamic.models.compress.families.family import Family
from dynamic.models.compress.families.family_members import Beaten, Member, judge
from dynamic.models.compress.report import Measured


def member(name: str, right: str, ms: float | Sequence[float], memory_mb: float = 1.0) -> Member:
    """`right`: "1" or "0" for each input; `ms` of each turn, or of all four."""
    turns = np.full(4, ms) if isinstance(ms, float) else np.array(ms)
    rights = np.array([c == "1" for c in right])
    return Member(name, "sub-model", nn.Identity(), Measured(5, 5, file_bytes=20, macs=1e6), rights, turns, memory_mb)


REFERENCE = member("reference", "1111100000", 4.0, 4.0)


def beaten(*members: Member, **options: object) -> dict[str, str | None]:
    judged = judge([REFERENCE, *members], **options)  # type: ignore[arg-type]
    return {m.name: None if m.beaten is None else m.beaten.by for m in judged}


def test_only_what_is_slower_and_no_more_accurate_is_dropped() -> None:
    found = beaten(
        member("fast", "1111000000", 1.0),
        member("slower, as accurate", "1101100000", 2.0),
        member("slower, less accurate", "1100000000", 2.5),
        member("slower, more accurate", "1111100000", 3.0),
        member("fastest, least accurate", "1000000000", 0.5),
    )
    assert found == {
        "fastest, least accurate": None,
        "fast": None,
        "slower, as accurate": "fast",
        "slower, less accurate": "fast",
        "slower, more accurate": None,
        "reference": None,
    }
    assert list(found)[-1] == "reference"


def test_the_reference_beats_what_is_slower_and_is_never_beaten() -> None:
    found = beaten(member("slow", "1111000000", 5.0), member("better", "1111110000", 1.0))
    assert found == {"better": None, "slow": "better", "reference": None}
    assert beaten(member("slow", "1111000000", 5.0))["slow"] == "reference"


def test_what_beats_is_the_most_accurate_that_is_not_beaten_itself() -> None:
    found = beaten(
        member("a", "1110000000", 1.0),
        member("b", "1110000000", 1.5),
        member("c", "1111000000", 2.0),
        member("d", "1100000000", 3.0),
    )
    assert found == {"a": None, "b": "a", "c": None, "d": "c", "reference": None}


def test_how_sure_is_said() -> None:
    judged = judge([REFERENCE, member("a", "1111000000", [1.0, 1.0, 1.0, 3.0]), member("b", "0000100000", 2.0)])
    # four inputs only a has right, one only b: P(Bin(6, 1/2) <= 4) = 57/64; b slower in three of four turns
    verdict = judged[1].beaten
    assert verdict == Beaten("a", pytest.approx(57 / 64), 3, 4)


def test_more_certainty_may_be_asked_for() -> None:
    rivals = (member("a", "1111000000", [1.0, 1.0, 1.0, 3.0]), member("b", "0000100000", 2.0))
    assert beaten(*rivals, min_confidence=0.75)["b"] == "a"
    assert beaten(*rivals, min_confidence=0.76)["b"] is None  # the turns, 0.75, are not enough
    steady = (member("a", "1111000000", 1.0), member("b", "0000100000", 2.0))
    assert beaten(*steady, min_confidence=0.89)["b"] == "a"
    assert beaten(*steady, min_confidence=0.90)["b"] is None  # 57/64


def test_equals_in_time_are_not_told_apart() -> None:
    rivals = (member("a", "1111000000", [1.0, 1.0, 3.0, 3.0]), member("b", "1110000000", [2.0, 2.0, 2.5, 2.5]))
    assert (
        beaten(*rivals, min_confidence=0.0)["b"] is None
    )  # a's median is less, and it was slower in two of four turns


def test_small_ones_may_stay() -> None:
    rivals = (member("a", "1111000000", 1.0, 3.0), member("b", "1110000000", 2.0, 2.0))
    assert beaten(*rivals)["b"] == "a"
    assert beaten(*rivals, keep_small=True)["b"] is None
    heavier = (member("a", "1111000000", 1.0, 3.0), member("b", "1110000000", 2.0, 3.0))
    assert beaten(*heavier, keep_small=True)["b"] == "a"


def family(*members: Member) -> Family:
    return Family(tuple(judge([REFERENCE, *members])), "onnxruntime", precision="f32")


def test_the_cascade_is_of_what_is_kept_and_faster() -> None:
    found = family(
        member("b", "1110000000", 2.0, 2.0),
        member("a", "1100000000", 1.0, 1.5),
        member("slow", "1111110000", 6.0, 9.0),
    )
    assert [m.name for m in found.cascade_members] == ["a", "b", "reference"]
    assert found.memory_mb == 7.5
    assert found.cascade().names == ("a", "b", "reference")
    assert found.cascade("mean").combine == "mean"
    assert "not faster than the reference: not in the cascade" in str(found)


def test_the_table_says_what_was_measured() -> None:
    text = str(family(member("a", "1100000000", 1.0, 1.5), member("b", "1000000000", 2.0)))
    rows = {line.split()[0]: line.split() for line in text.splitlines()}
    assert rows["a"][:6] == ["a", "0.2000", "1.000", "0.25", "1.5", "1.000"]
    assert "b: a is no less accurate (chance 75%) and was faster in 4 of 4 turns" in text  # P(Bin(2, 1/2) <= 1)
    assert "10 inputs" in text
    assert "give build others" in text
    assert "alone is no less accurate than" not in text


def test_a_network_alone_that_is_better_is_said_to_be() -> None:
    text = str(family(member("a", "1111110000", 1.0)))
    assert "a alone is no less accurate than reference (chance 75%) and takes 0.25 of its time: ship it" in text
    text = str(family(member("a", "1100000000", 6.0)))
    assert "no network is useful before reference" in text


def test_shared_weights_count_once_on_torch() -> None:
    small = nn.Linear(100, 100, bias=False)  # 40 kB
    both = nn.Sequential(small, nn.Linear(100, 100, bias=False))
    size, right = REFERENCE.measured, REFERENCE.right
    made = judge(
        [
            Member("reference", "reference", both, size, right, np.full(4, 4.0), 0.08),
            Member("a", "sub-model", small, size, right, np.full(4, 1.0), 0.04),
        ]
    )
    assert Family(tuple(made), "torch", precision="f32").memory_mb == pytest.approx(0.08)
    assert Family(tuple(made), "onnxruntime", precision="f32").memory_mb == pytest.approx(0.12)
