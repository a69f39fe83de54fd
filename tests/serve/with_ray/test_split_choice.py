"""Where a cascade is split, by hand: the share that continues times the time of the rest, against a hop."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.policy_cases import INF, make_costs, make_ladder, make_point
from support.serving.ray_cases import blobs, small_bundle
from torch import nn

import dynamic
from dynamic.policies.frontier import Frontier
from dynamic.serve.ray.split.choice import USUAL_HOP_MS, Candidate, candidates, checked_cut, choose_split
from dynamic.serve.ray.split.planning import plan_split

BACKBONE = (0, 1, 1, 2)
# a stage: 1, 2, 4, 10 ms at one row, heads of half a ms
COSTS = make_costs([[1, 3], [2, 4], [4, 8], [10, 30]], batch=(1, 3), head_ms=((0.5, 1.0),) * 4, memory_mb=(1.0,) * 3)


def among(thresholds: tuple[float, ...], shares: tuple[float, ...]) -> list[Candidate]:
    point = make_point("p", thresholds, shares, backbones=(0, 1, 2))
    ladder = make_ladder([point], BACKBONE)
    return candidates(Frontier.of(ladder, COSTS).points[0], COSTS, BACKBONE)


def test_candidates_by_hand() -> None:
    first, second, third = among((0.5, 0.5, 0.5), (0.4, 0.3, 0.1, 0.2))
    # 60% run stage 1 (2 ms), 30% stage 2 (4 ms), 20% stage 3 (10 ms): 1.2 + 1.2 + 2 = 4.4 ms an input
    assert (first.cut, first.share, first.gain_ms) == (1, pytest.approx(0.6), pytest.approx(4.4))
    assert first.rest_ms == pytest.approx(4.4 / 0.6)
    assert (second.cut, second.gain_ms) == (2, pytest.approx(3.2))
    assert (third.cut, third.share, third.rest_ms) == (3, pytest.approx(0.2), pytest.approx(10.0))
    assert [one.repeat_ms for one in (first, second, third)] == [0, pytest.approx(2.0), 0], "stage 1 of backbone 1"


def test_an_exit_that_is_off_is_no_cut() -> None:
    assert [one.cut for one in among((0.5, INF, 0.5), (0.4, 0.0, 0.4, 0.2))] == [1, 3]
    assert among((INF, INF, INF), (0.0, 0.0, 0.0, 1.0)) == [], "nobody exits before"


def test_the_choice_by_hand() -> None:
    cuts = among((0.5, 0.5, 0.5), (0.4, 0.3, 0.1, 0.2))
    split = choose_split(cuts, {1: 1.5, 2: 1.5 + 2.0, 3: 1.5})
    assert (split.cut, split.hop_ms) == (1, 1.5)
    assert split.reason == (
        "split before stage 1: at stage 1, 60.0% of inputs continue for 7.33 ms, which is 4.4 ms an input, more than "
        "a hop of 1.5 ms"
    )
    assert choose_split(cuts, {1: 4.0, 2: 1.5, 3: 1.5}).cut == 2, "3.2 - 1.5 is more than 4.4 - 4"
    dear = choose_split(cuts, {1: 5.0, 2: 5.0, 3: 5.0})
    assert dear.cut is None
    assert dear.reason.startswith("one deployment: at stage 1, 60.0% of inputs continue")
    assert dear.reason.endswith("no more than a hop of 5 ms")
    assert choose_split(cuts, {}).reason.endswith("less than any hop (0.3 ms)")
    assert choose_split([], {}).cut is None


@pytest.mark.parametrize("cut", [0, 4, True, 1.5, "best"])
def test_cuts_that_do_not_exist(cut: Any) -> None:
    with pytest.raises(dynamic.errors.SettingError, match="must be 'auto', None, or a stage from 1 to 3"):
        checked_cut(cut, 4)
    assert [checked_cut(one, 4) for one in ("auto", None, 1, 3)] == ["auto", None, 1, 3]


@pytest.mark.parametrize("cut", [1, "auto"])
def test_stages_that_run_again_count_at_any_cut(tmp_path: Path, cut: Any) -> None:
    """The carry is larger than the input, so the tail runs stage 0 again (20 ms) before stage 1 (100 ms)."""
    torch.manual_seed(0)
    bundle = wide_bundle(tmp_path / "wide")
    mixed = make_point("mixed", (0.5,), (0.5, 0.5))
    bundle = replace(bundle, ladder=replace(bundle.ladder, points=(mixed,)))
    split = plan_split(
        bundle, dynamic.Budget(latency_ms=1e6), cut, None, 1, lambda sizes: dict.fromkeys(sizes, USUAL_HOP_MS)
    )
    assert (split.cut, split.share) == (1, pytest.approx(0.5))
    assert split.hop_ms == pytest.approx(USUAL_HOP_MS + 20.0)
    assert split.rest_ms == pytest.approx(100.0 + 20.0)


def wide_bundle(folder: Path) -> dynamic.Bundle:
    """One network with an exit, whose feature has 64 numbers where the input has 12."""
    label, inputs = torch.arange(1200) % 4, torch.from_numpy(blobs(1200, seed=2))
    network = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4))
    wrapped = dynamic.wrap(network, inputs[:2], exits=["1"])
    dynamic.fit(wrapped, [(inputs[:600], label[:600])], mode="joint", epochs=5, lr=0.02, progress=False)
    bundle = dynamic.build(wrapped, [(inputs[600:], label[600:])], progress=False).save(folder)
    profiled = bundle.profile(batch=(1,), seconds=0.02, threads=1)
    costs = profiled.costs
    assert costs is not None
    table, nothing = ((20.0,), (100.0,)), ((0.0,), (0.0,))
    steady = replace(costs, latency_ms=table, latency_p95_ms=table, head_ms=nothing, noise=0.0)
    return profiled.with_costs(steady, None)


def test_a_bundle_is_planned_with_its_costs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bundle = small_bundle(tmp_path / "shelf")
    mixed = next(point for point in bundle.frontier.points if 0.2 < point.shares[0] < 0.9)
    budget = dynamic.Budget(max_drop=mixed.promised_drop, latency_ms=1e6)
    asked: list[dict[int, int]] = []

    def hop_ms(payloads: Any) -> dict[int, float]:
        asked.append(dict(payloads))
        return dict.fromkeys(payloads, 2.0)

    quick = plan_split(bundle, budget, "auto", None, 1, hop_ms)
    assert (quick.cut, asked) == (None, []), "microseconds: no hop is measured"
    slow = bundle.costs
    assert slow is not None
    table = tuple(tuple(ms for _ in row) for ms, row in zip((1.0, 100.0), slow.latency_ms, strict=True))
    dear = bundle.with_costs(replace(slow, latency_ms=table, latency_p95_ms=table, noise=0.0), None)
    with caplog.at_level(logging.INFO, "dynamic"):
        split = plan_split(dear, budget, "auto", None, 1, hop_ms)
    assert split.cut == 1
    assert split.reason in caplog.text
    (payload,) = asked
    # float32: 12 inputs and 4 classes twice or more, and some whole numbers of 8 bytes
    assert 12 * 4 < payload[1] < 400
    assert plan_split(dear, budget, None, None, 1, hop_ms).cut is None
    given = plan_split(dear, budget, 1, None, 1, hop_ms)
    assert (given.cut, given.share) == (1, pytest.approx(sum(mixed.shares[1:])))
    assert len(asked) == 1
