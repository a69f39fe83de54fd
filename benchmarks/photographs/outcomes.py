"""What cascades of photographs cost and reach, from records and measured times. It has no command of its own."""

import itertools
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

import dynamic
from dynamic.policies import Combiner, replay
from dynamic.policies.records import split

MOST_MEMBERS, LEVELS = 3, 10
LAST = ("lite1@240", "lite2@224", "lite2@260")  # the largest networks: one of them ends a cascade
ABOVE = 0.01  # of accuracy over the best static network

Cascade = tuple[int, ...]


@dataclass(frozen=True)
class Members:
    """All members on one engine: records with a stage for each, their names, and the mean ms of each."""

    records: dynamic.Records
    names: Sequence[str]
    mean_ms: Sequence[float]

    @property
    def labels(self) -> NDArray[np.int64]:
        """Of the photographs `[N]`."""
        assert self.records.label is not None
        return self.records.label

    @property
    def right(self) -> NDArray[np.bool_]:
        """Which photographs each member gets right `[N, M]`."""
        answers: NDArray[np.int64] = self.records.logits.argmax(2)
        return np.equal(answers, self.labels[:, None])

    def cascades(self) -> list[Cascade]:
        """Up to three members, each slower than the one before. The last is one of `LAST`."""
        order = sorted(range(len(self.names)), key=lambda i: self.mean_ms[i])
        every = [c for k in range(2, MOST_MEMBERS + 1) for c in itertools.combinations(order, k)]
        return [c for c in every if self.names[c[-1]] in LAST]

    def ms_until(self, cascade: Cascade) -> NDArray[np.float64]:
        """Milliseconds of the members up to each `[S]`."""
        return np.cumsum([self.mean_ms[i] for i in cascade])


def on_split(
    possible: "Possible", cascades: Sequence[Cascade], halves: Sequence[NDArray[np.int64]], target: float
) -> dict[str, Any] | None:
    """The cascade that one half chooses and certifies, on the other half beside its opponent. None: no certificate.

    Part 0 of the half chooses the cascade, and thresholds too. Part 1 certifies that one alone.
    """
    members, (half, other) = possible.members, halves
    cascade = possible.cheapest_within(cascades, half[split(None, len(half)) == 0], target)
    ladder = dynamic.certify(_some(members, cascade, half), (target,))
    allowed = [p for p in ladder.points[1:] if p.bound is not None and p.bound <= target]
    if not allowed:
        return None
    point = min(allowed, key=lambda one: float(np.dot(one.shares, members.ms_until(cascade))))
    combiner = Combiner(ladder.temperature, ladder.score, combine=ladder.combine, backbone=ladder.backbone)
    logits = members.records.logits[other][:, list(cascade)]
    answers = replay(logits, combiner, thresholds=point.thresholds, backbone=ladder.backbone)
    accuracy = float((answers.prediction == members.labels[other]).mean())
    cost = float(members.ms_until(cascade)[answers.stage].mean())
    alone = members.right[other].mean(0)
    able = [i for i in range(len(alone)) if alone[i] >= accuracy]
    opponent = min(able or [int(alone.argmax())], key=lambda i: members.mean_ms[i])
    return {
        "cascade": [members.names[i] for i in cascade],
        "accuracy": round(accuracy, 4),
        "drop": round(float(alone[cascade[-1]]) - accuracy, 4),
        "ms": round(cost, 3),
        "opponent": members.names[opponent],
        "opponent_accuracy": round(float(alone[opponent]), 4),
        "more_accurate_than_all": not able,
        "ratio": round(cost / members.mean_ms[opponent], 4),
        "ratio_to_last": round(cost / members.mean_ms[cascade[-1]], 4),
        "ratio_to_slowest": round(cost / max(members.mean_ms), 4),
    }


def _some(members: Members, cascade: Cascade, which: NDArray[np.int64]) -> dynamic.Records:
    """The records of one cascade. Costs are its members' times."""
    return replace(
        members.records,
        logits=members.records.logits[which][:, list(cascade)],
        label=members.labels[which],
        part=split(None, len(which)),
        backbone=tuple(range(len(cascade))),
        macs=tuple(members.mean_ms[i] for i in cascade),
        head_macs=(0.0,) * len(cascade),
        stage_names=tuple(members.names[i] for i in cascade),
    )


def over_splits(outcomes: Sequence[dict[str, Any] | None]) -> dict[str, Any]:
    """Means with the least and the largest of all splits on which a cascade was certified."""
    usable = [one for one in outcomes if one is not None]
    found: dict[str, Any] = {"splits": len(outcomes), "certified": len(usable)}
    for key in ("ratio", "ratio_to_last", "ratio_to_slowest", "accuracy", "opponent_accuracy", "drop", "ms"):
        values = [one[key] for one in usable]
        if values:
            found[key] = {"mean": round(statistics.fmean(values), 4), "least": min(values), "largest": max(values)}
    return found


@dataclass(frozen=True)
class Fitted:
    """Thresholds of a cascade on the maximum probability, with their mean ms and accuracy on some photographs."""

    cascade: Cascade
    thresholds: tuple[float, ...]
    ms: float
    accuracy: float


class Possible:
    """What thresholds reach that see the labels of the very photographs they are judged on. Nothing is certified."""

    def __init__(self, members: Members) -> None:
        self.members = members
        logits = members.records.logits.astype(np.float64)
        self.score = 1 / np.exp(logits - logits.max(2, keepdims=True)).sum(2)  # [N, M], the maximum probability

    def points(self, cascade: Cascade, which: NDArray[np.int64]) -> Iterator[Fitted]:
        """All combinations of thresholds at `LEVELS` quantiles of each score."""
        ms = self.members.ms_until(cascade)
        first = list(cascade[:-1])
        scores, right = self.score[which][:, first], self.members.right[which][:, list(cascade)]
        levels = np.quantile(scores, np.linspace(0, 1, LEVELS + 1), axis=0)  # [LEVELS + 1, S - 1]
        for thresholds in itertools.product(*levels.T):
            exits = np.append(scores > np.array(thresholds), np.ones((len(which), 1), bool), axis=1)
            stage = exits.argmax(1)
            accuracy = float(right[np.arange(len(which)), stage].mean())
            yield Fitted(cascade, tuple(map(float, thresholds)), float(ms[stage].mean()), accuracy)

    def cheapest(self, cascades: Sequence[Cascade], which: NDArray[np.int64], least: float) -> Fitted | None:
        """The cheapest thresholds of all cascades with an accuracy of at least `least`."""
        able = (p for c in cascades for p in self.points(c, which) if p.accuracy >= least)
        return min(able, key=lambda point: point.ms, default=None)

    def cheapest_within(self, cascades: Sequence[Cascade], which: NDArray[np.int64], drop: float) -> Cascade:
        """The cascade whose thresholds are the cheapest that lose at most `drop` to the most accurate of `LAST`."""
        last = {c[-1] for c in cascades}
        least = max(float(self.members.right[which, i].mean()) for i in last) - drop
        point = self.cheapest(cascades, which, least)
        assert point is not None  # that network alone
        return point.cascade

    def fitted_on_all(self, cascades: Sequence[Cascade]) -> dict[str, Any]:
        """The best thresholds for the accuracy of the most accurate static network, and for one point more."""
        members = self.members
        alone = members.right.mean(0)
        everything = np.arange(len(members.labels))
        found: dict[str, Any] = {}
        for name, least in {"as_accurate": float(alone.max()), "above": float(alone.max()) + ABOVE}.items():
            point = self.cheapest(cascades, everything, least)
            able = [i for i in range(len(alone)) if alone[i] >= least] or [int(alone.argmax())]
            opponent = min(able, key=lambda i: members.mean_ms[i])
            if point:
                found[name] = self._row(point, opponent) | {"oracle_ms": round(self.oracle_ms(point.cascade), 3)}
        return found

    def above(self, cascades: Sequence[Cascade], halves: Sequence[NDArray[np.int64]]) -> dict[str, Any] | None:
        """One point more than the most accurate static network on one half, and what that gives on the other."""
        half, other = halves
        point = self.cheapest(cascades, half, float(self.members.right[half].mean(0).max()) + ABOVE)
        if point is None:
            return None
        exits = np.append(
            self.score[other][:, list(point.cascade[:-1])] > np.array(point.thresholds),
            np.ones((len(other), 1), bool),
            axis=1,
        )
        stage = exits.argmax(1)
        right = self.members.right[other]
        accuracy = float(right[:, list(point.cascade)][np.arange(len(other)), stage].mean())
        ms = float(self.members.ms_until(point.cascade)[stage].mean())
        best = int(right.mean(0).argmax())
        return {
            "gain": round(accuracy - float(right[:, best].mean()), 4),
            "ratio_to_slowest": round(ms / max(self.members.mean_ms), 4),
            "ratio_to_best": round(ms / self.members.mean_ms[best], 4),
        }

    def oracle_ms(self, cascade: Cascade) -> float:
        """Mean ms where each photograph exits at the first member that is right, or at the first where none is."""
        right = self.members.right[:, list(cascade)]
        return float(self.members.ms_until(cascade)[right.argmax(1)].mean())

    def _row(self, point: Fitted, opponent: int) -> dict[str, Any]:
        members = self.members
        return {
            "cascade": [members.names[i] for i in point.cascade],
            "accuracy": round(point.accuracy, 4),
            "ms": round(point.ms, 3),
            "opponent": members.names[opponent],
            "ratio": round(point.ms / members.mean_ms[opponent], 4),
            "ratio_to_slowest": round(point.ms / max(members.mean_ms), 4),
        }
