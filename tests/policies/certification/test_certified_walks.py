"""Walks along a path of thresholds against the graph of hypotheses that they stand for."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom
from support.policy_cases import learned, make_records

from dynamic.policies.certification.certificates import certify
from dynamic.policies.certification.ladders import walks
from dynamic.policies.certification.ladders.step_paths import EvidenceSteps
from dynamic.policies.certification.ladders.walks import walk
from dynamic.policies.certification.risks import RISKS, Evidence


@dataclass(frozen=True)
class Step:
    """p-values by target."""

    p: dict[float, float]

    def p_value(self, target: float, _: float) -> float:
        return self.p[target]


def by_graph(steps: list[Step], targets: list[float], level: float) -> dict[float, int]:
    """Bretz et al. 2009, algorithm 1, on the graph of all hypotheses.

    Along a target's steps each hands all it has to the next; the last to the first of the next lower target, of the
    lowest target to the first of the highest.
    """
    falling = sorted(targets, reverse=True)
    nodes = [(t, j) for t in falling for j in range(len(steps))]
    weight = {n: level if n[1] == 0 else 0.0 for n in nodes}
    edge = {(a, b): 0.0 for a in nodes for b in nodes}
    for place, t in enumerate(falling):
        for j in range(len(steps)):
            heir = falling[(place + 1) % len(falling)]
            if j + 1 < len(steps) or heir != t:
                edge[(t, j), (t, j + 1) if j + 1 < len(steps) else (heir, 0)] = 1.0
    left = list(nodes)
    while (gone := next((n for n in left if steps[n[1]].p[n[0]] <= weight[n]), None)) is not None:
        left.remove(gone)
        new = dict(edge)
        for a in left:
            weight[a] += weight[gone] * edge[gone, a]
            for b in left:
                rest = 1 - edge[a, gone] * edge[gone, a]
                new[a, b] = 0.0 if a == b or rest <= 0 else (edge[a, b] + edge[a, gone] * edge[gone, b]) / rest
        edge = new
    return {t: len(steps) - sum(n[0] == t for n in left) for t in targets}


def test_a_walk_is_the_graphs() -> None:
    random = np.random.default_rng(0)
    arrived = 0
    for _ in range(300):
        targets = sorted(random.choice(100, random.integers(1, 5), replace=False) / 100)
        steps = [Step({t: 0.15 * random.random() ** 3 for t in targets}) for _ in range(random.integers(0, 5))]
        found = walk(EvidenceSteps(steps), targets, 0.1 / len(targets))
        assert found == by_graph(steps, targets, 0.1 / len(targets))
        arrived += 0 < sum(n == len(steps) for n in found.values()) < len(targets)
    assert arrived > 30, "levels were handed on"


def test_a_walk_by_hand() -> None:
    steps = [Step({0.0: 0.03, 0.1: 0.001}), Step({0.0: 0.2, 0.1: 0.02})]
    assert walk(EvidenceSteps(steps), [0.0, 0.1], 0.02) == {0.0: 1, 0.1: 2}  # 0.1 arrives, 0 then has 0.04
    assert walk(EvidenceSteps(steps), [0.0, 0.1], 0.019) == {0.0: 0, 0.1: 1}
    assert walk(EvidenceSteps(steps), [0.0], 0.03) == {0.0: 1}
    assert walk(EvidenceSteps([]), [0.0, 0.1], 0.05) == {0.0: 0, 0.1: 0}


@pytest.mark.parametrize("safe", [(0, 0, 0), (4, 0, 0), (0, 0, 4), (4, 4, 0), (0, 4, 4), (4, 2, 4), (2, 1, 0)])
def test_walks_err_no_more_often_than_all_their_levels(safe: tuple[int, int, int]) -> None:
    """`safe`: how many steps of each target are truly below it. Of the others p-values are uniform and independent."""
    random, draws, level = np.random.default_rng(1), 3000, 0.1
    targets = [0.01, 0.02, 0.05]
    erred = 0
    for _ in range(draws):
        p = random.random((4, 3))
        p[np.arange(4)[:, None] < np.array(safe)] = 0.0
        steps = [Step(dict(zip(targets, row, strict=True))) for row in p.tolist()]
        found = walk(EvidenceSteps(steps), targets, level / 3)
        erred += any(found[t] > count for t, count in zip(targets, safe, strict=True))
    low, high = binom.ppf([0.001, 0.999], draws, level)
    assert erred <= high
    if sorted(safe) != [0, 1, 2] and safe != (0, 0, 0):
        assert erred >= low - draws * 0.004, "what others left is spent"


@pytest.mark.parametrize("risk", sorted(RISKS))
@pytest.mark.parametrize("targets", [(0.2,), (0.05, 0.1, 0.2, 0.4)])
def test_levels_add_up_to_delta(risk: str, targets: tuple[float, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    walked: list[float] = []
    asked: list[tuple[float, float]] = []
    plain = Evidence.p_value

    def recorded_walk(steps: Any, over: Any, level: float) -> dict[float, int]:
        walked.append(level)
        found = walk(steps, over, level)
        asked.clear()
        return found

    def p_value(self: Evidence, target: float, level: float, times: float = 1.0) -> float:
        asked.append((target, level))
        return plain(self, target, level, times)

    monkeypatch.setattr(walks, "walk", recorded_walk)
    monkeypatch.setattr(Evidence, "p_value", p_value)
    monkeypatch.setattr(Evidence, "needed", lambda *_: None)
    logits, label = learned(1600, 3, reach=(2.0, 4.0))
    ladder = certify(make_records(logits, label, part=np.arange(1600) % 2), targets, delta=0.2, risk=risk)
    assert ladder.certified
    (level,), ends = walked, {level for _, level in asked}
    assert len(ends) == 1
    # the reference (where it can lose), the most accurate and the cheapest thresholds have bounds of their own
    assert len(targets) * level + 3 * ends.pop() <= 0.2 + 1e-12
