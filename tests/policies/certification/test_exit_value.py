"""Which exits pay: cases worked out by hand, and brute force over all sets of exits."""

import itertools

import numpy as np
import pytest

from dynamic.policies.certification.exit_value import choose_exits, without
from dynamic.policies.certification.temperature import fit_temperatures
from dynamic.policies.certification.threshold_search import Search
from dynamic.policies.errors import CalibrationError, SettingError
from dynamic.policies.records import Records
from dynamic.policies.scores import Combiner


def records(right: list[list[bool]], sure: list[list[bool]], macs: list[float], head: list[float]) -> Records:
    """Two classes, label 0: logits of each stage by whether it is right and sure; rows are inputs."""
    strength = np.where(np.array(sure), 6.0, 0.2)
    sign = np.where(np.array(right), 1.0, -1.0)
    logits = np.stack([sign * strength, np.zeros_like(sign)], axis=-1).astype(np.float32)
    count, stages = sign.shape
    return Records(
        logits,
        np.array([0] * count),
        None,
        np.zeros(count, np.int8),
        (0,) * stages,
        tuple(macs),
        tuple(head),
        tuple(f"s{i}" for i in range(stages)),
        "f",
    )


# exit 0 is sure of half the inputs, and right about those; exit 1 knows nothing beyond that; the last is always right
HALF = [True] * 10 + [False] * 10
BY_HAND = records(
    [[h, h, True] for h in HALF], [[h, h, True] for h in HALF], macs=[10.0, 10.0, 80.0], head=[1.0, 1.0, 0.0]
)


def test_an_exit_that_nobody_takes_goes_by_hand() -> None:
    # with exit 0: half leave at 11, half go on to 101: 56; exit 1 could only delay those (21) and is in nobody's way
    choice = choose_exits(BY_HAND, max_drops=(0.0,))
    assert choice.exits == ("s0",)
    assert choice.cost == pytest.approx(56.0)
    assert [(step.exit, step.after) for step in choice.removals] == [("s1", pytest.approx(56.0))]


def test_a_choice_is_told_in_words() -> None:
    shown = str(choose_exits(BY_HAND, max_drops=(0.0,), exit_cost=90.0)).splitlines()
    assert shown == [
        "s1 removed: a request costs 101 without it, 146 with it",
        "s0 removed: a request costs 100 without it, 101 with it",
        "exits: none. A request costs 100 on average",
    ]


def test_passing_an_exit_has_its_price() -> None:
    # exit 0 saves 100 - 56 = 44 a request, and half of them go past it: at more than 88 it does not pay any more
    paying = choose_exits(BY_HAND, max_drops=(0.0,), exit_cost=80.0)
    assert paying.exits == ("s0",)
    assert paying.cost == pytest.approx(56.0 + 0.5 * 80.0)
    nothing = choose_exits(BY_HAND, max_drops=(0.0,), exit_cost=90.0)
    assert nothing.exits == ()
    assert nothing.cost == pytest.approx(100.0)


def test_only_those_who_go_past_an_exit_pay_for_it() -> None:
    # half leave at 11, a quarter at 21 more, the last quarter after 101 in all; each exit passed costs 5:
    # with both 0.5 x 11 + 0.25 x (11 + 5 + 11) + 0.25 x (11 + 5 + 11 + 5 + 80) = 40.25,
    # with exit 0 alone 0.5 x 11 + 0.5 x (11 + 5 + 90) = 58.5, with exit 1 alone 0.75 x 21 + 0.25 x 106 = 42.25
    first, second = [True] * 10 + [False] * 10, [True] * 15 + [False] * 5
    answers = [[a, b, True] for a, b in zip(first, second, strict=True)]
    both = choose_exits(records(answers, answers, [10.0, 10.0, 80.0], [1.0, 1.0, 0.0]), max_drops=(0.0,), exit_cost=5.0)
    assert both.exits == ("s0", "s1")
    assert both.cost == pytest.approx(40.25)


def test_at_most_so_many_stay() -> None:
    assert choose_exits(BY_HAND, max_drops=(0.0,), count=0).exits == ()
    assert choose_exits(BY_HAND, max_drops=(0.0,), count=1).exits == ("s0",)


def test_the_best_pair_of_four_exits_by_brute_force() -> None:
    random = np.random.default_rng(0)
    hard = random.uniform(size=400)  # each stage is right where the input is easier than the stage is good
    good = np.array([0.45, 0.6, 0.75, 0.85, 1.0])
    strength = np.clip(good - hard[:, None], -0.05, 1) * 8
    logits = np.stack([strength, np.zeros_like(strength)], axis=-1).astype(np.float32)
    macs, head = (15.0, 20.0, 20.0, 15.0, 30.0), (2.0, 2.0, 2.0, 2.0, 0.0)
    names = tuple("abcde")
    found = Records(logits, np.zeros(400, int), None, np.zeros(400, np.int8), (0,) * 5, macs, head, names, "f")

    def cost(gone: frozenset[int]) -> float:
        left, body, heads = without(found, gone, body=macs, head=head)
        combiner = Combiner(fit_temperatures(left), "max_probability", combine="backbones", backbone=left.backbone)
        candidate = Search(left, combiner, body=body, head=heads).cheapest(0.01)
        assert candidate is not None
        return candidate.cost

    pairs = {pair: cost(frozenset(range(4)) - set(pair)) for pair in itertools.combinations(range(4), 2)}
    choice = choose_exits(found, count=2, max_drops=(0.01,))
    assert len(choice.exits) <= 2
    # one at a time, it may miss the best by a little
    assert choice.cost == pytest.approx(min(pairs.values()), rel=0.02)


def test_bodies_are_merged_and_other_backbones_left_alone() -> None:
    left, body, head = without(BY_HAND, frozenset({0}), body=(1.0, 2.0, 4.0), head=(0.5, 0.25, 0.0))
    assert (body, head) == ((3.0, 4.0), (0.25, 0.0))
    assert (left.macs, left.stage_names) == ((20.0, 80.0), ("s1", "s2"))
    two = Records(
        BY_HAND.logits,
        BY_HAND.label,
        None,
        BY_HAND.part,
        (0, 0, 1),
        BY_HAND.macs,
        BY_HAND.head_macs,
        BY_HAND.stage_names,
        "f",
    )
    choice = choose_exits(two, count=0, max_drops=(0.0,))
    assert [step.exit for step in choice.removals] == ["s0"]  # s1 is a network's own answer: no exit


def test_wrong_settings() -> None:
    with pytest.raises(SettingError, match="count=-1"):
        choose_exits(BY_HAND, count=-1)
    with pytest.raises(SettingError, match="exit_cost=nan"):
        choose_exits(BY_HAND, exit_cost=float("nan"))
    with pytest.raises(SettingError, match="max_drops is empty"):
        choose_exits(BY_HAND, max_drops=())
    with pytest.raises(CalibrationError, match="0 labelled records"):
        choose_exits(BY_HAND.select(np.arange(0)))
