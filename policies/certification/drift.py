"""A test, without labels, of whether inputs still look like those of the calibration: a conformal test martingale.

Inputs are in order, from usual to strange. An input is stranger the later it exits, and at one stage the less confident
it is there. Each input is ranked in that order, among the calibration inputs and all inputs before it. The rank, with
ties broken by chance, is its p-value. While inputs are exchangeable with those of the calibration, p-values are
independent and uniform, whatever the scores are. Bets against that cannot win: the wealth of a bettor grows a
hundredfold with a probability of one in a hundred. The input then joins the bag in which it was ranked, because the
calibration is a sample. If it were taken for the true distribution, fine bets would win on every long stream.

Sources: Vovk, Nouretdinov and Gammerman 2003 (Testing exchangeability on-line) for the martingale. Volkhonskiy et al.
2017 (Inductive conformal martingales for change-point detection): the order is fixed beforehand, by the search part.
Vovk et al. 2021 (Retrain or not retrain: conformal test martingales for change-point detection) for deployed models.
Ville 1939 for the probability of a false alarm.
"""

import math
import random
from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

from dynamic.policies.certification.replay import replay
from dynamic.policies.errors import SettingError
from dynamic.policies.records import CERTIFY, SEARCH, Records
from dynamic.policies.scores import Combiner, Floats, ScoreBins
from dynamic.policies.validation.numbers import plain

BINS = 64  # of each stage
STRENGTHS = (0.1, -0.1, 0.3, -0.3, 0.7, -0.7)  # for weak and strong shifts, either way
WAVES = 2
# (share of calibration inputs that are the strangest, share of inputs of another kind among them)
TAILS = ((0.01, 0.05), (0.02, 0.05), (0.05, 0.1), (0.15, 0.1))


def exit_bins(
    records: Records, combiner: Combiner, points: Sequence[Sequence[float]]
) -> tuple[tuple[ScoreBins, ...], ...]:
    """For each operating point and stage, a histogram of the scores of the inputs that exit there.

    Edges are quantiles of the search part, and the certifying part is counted, so edges are independent of counts. Of
    each group one random record is counted, because records of a group are alike. Where a part is empty, all records
    replace it, and the rate of false alarms of `DriftTest` is only approximate.

    Args:
        records: Calibration records.
        combiner: How logits become scores.
        points: Thresholds `[S-1]` of each point.

    Returns:
        The histograms, by point and stage `[P, S]`.
    """
    everything = np.ones(len(records), bool)
    search, certify = (p if p.any() else everything for p in (records.part == SEARCH, records.part == CERTIFY))
    if records.group is not None:
        order = np.random.default_rng(0).permutation(np.flatnonzero(certify))
        certify = np.zeros(len(records), bool)
        certify[order[np.unique(records.group[order], return_index=True)[1]]] = True
    histograms = []
    for thresholds in points:
        run = replay(records.logits, combiner, thresholds=thresholds, backbone=records.backbone)
        score = np.where(np.isnan(run.score), -np.inf, run.score)
        own = [run.stage == stage for stage in range(records.stages)]
        histograms.append(tuple(_bins(score[search & here], score[certify & here]) for here in own))
    return tuple(histograms)


def _bins(search: Floats, counted: Floats) -> ScoreBins:
    """A histogram of `counted` scores, between quantiles of those of the search part."""
    ordered = np.sort(search)
    edges = np.unique(ordered[np.arange(1, BINS) * len(ordered) // BINS]) if len(ordered) else ordered
    edges = edges[edges < ordered[-1:]]  # no score lies above
    counts = np.bincount(np.searchsorted(edges, counted, side="left"), minlength=len(edges) + 1)
    return ScoreBins(tuple(edges.tolist()), tuple(counts.tolist()))


class Bag:
    """Inputs that ran under one operating point, and the rank of each new one among them.

    Each stage has a bag of the inputs that reached it: of those that exited there the bin of their score, and one
    number for those that continued. Ties in that number are broken by the rank in the bag of the next stage. That rank
    is uniform given the bag before, as a random number is. An input that a deadline cut is known to continue, and no
    more: a random number breaks its ties, and it joins no later bag. So p-values are independent and uniform whether
    inputs are cut or not.

    Args:
        bins: Of each stage, the scores of calibration inputs that exit there `[S]`.
    """

    def __init__(self, bins: Sequence[ScoreBins]) -> None:
        self._edges = [own.edges for own in bins]
        self._exits = [list(own.counts) for own in bins]
        self._total = [sum(own.counts) for own in bins]  # inputs that exited at each stage
        self._later = [sum(self._total[stage + 1 :]) for stage in range(len(bins))]  # inputs that continued

    def rank(self, stage: int, score: float, is_cut: bool, chance: float, joins: bool = True) -> float:
        """Return the p-value of an input.

        Args:
            stage: The last stage that answered it.
            score: Its score there.
            is_cut: Whether it would have continued behind that stage.
            chance: Uniform on [0, 1). It breaks ties.
            joins: Whether the input joins the bag.

        Returns:
            The p-value, near 0 for the most usual input.
        """
        p, last = chance, stage + 1 if is_cut else stage  # the stages before `last` are those behind which it continued
        if not is_cut:
            exits = self._exits[stage]
            own = bisect_left(self._edges[stage], score) if score == score else 0  # NaN lies in the lowest
            inputs = self._total[stage] + self._later[stage] + 1
            p = (sum(exits[own + 1 :]) + p * (exits[own] + 1)) / inputs
            if joins:
                exits[own] += 1
                self._total[stage] += 1
        for before in range(last - 1, -1, -1):
            later = self._later[before] + 1
            p = (self._total[before] + p * later) / (self._total[before] + later)
            if joins:
                self._later[before] = later
        return p


class Bets:
    """Bets that p-values are not uniform. While they are, the wealth is a martingale that starts at 1.

    The bets are a mixture over densities and over the time at which betting starts. One half of the money is on
    densities `1 + e cos(j pi p)`, for inputs that all shift a little. The other half is on `1 - e + e [p > 1 - w] / w`,
    for a share `e` of inputs of another kind among the strangest `w`. After t p-values the share 1 / log2(t + 2) is
    not staked yet. So some wealth is fresh whenever a change occurs, and the delay of the alarm grows as the logarithm
    of the time before the change.
    """

    def __init__(self) -> None:
        self.wealth = 1.0
        self._stakes = [0.0] * (WAVES * len(STRENGTHS) + len(TAILS))
        self._idle = 1.0
        self._count = 0

    def bet(self, p: float) -> float:
        """Return the wealth after one more p-value."""
        self._count += 1
        before, self._idle = self._idle, 1.0 / math.log2(self._count + 2)
        fresh = before - self._idle
        one = math.cos(math.pi * p)
        two = 2.0 * one * one - 1.0  # of twice the angle
        densities = [1.0 + e * wave for wave in (one, two) for e in STRENGTHS]
        densities += [1.0 - e + (e / w if p > 1.0 - w else 0.0) for w, e in TAILS]
        self._stakes = [(stake + fresh) * density for stake, density in zip(self._stakes, densities, strict=True)]
        shifts, strangers = self._stakes[: -len(TAILS)], self._stakes[-len(TAILS) :]
        self.wealth = (sum(shifts) / len(shifts) + sum(strangers) / len(strangers)) / 2.0 + self._idle
        return self.wealth


class DriftTest:
    """A sequential test of whether inputs are exchangeable with those of the calibration. It gets one input at a time.

    Without drift the probability of any alarm is at most `alpha`, on a stream of any length (Ville 1939). After a
    `restart` the same holds again for points that ran before: their bags have grown. Another point meets the same
    calibration inputs as the first did, which may be the reason for a false alarm.

    "Without drift" means two things. Inputs are exchangeable with each other and with those of the calibration. And
    neither operating points nor deadlines depend on scores, while they may depend on load, battery or temperature. The
    thresholds of a ladder depend on the same records, and latencies on depth. The effect of that was not measured.
    Correlated inputs void the promise, in the stream or in the calibration set: video, bursts, or one user at a time.

    Each operating point has bets of its own. Bags of different points hold the same calibration inputs, so their gains
    are not independent. The k-th point that runs alarms at k (k + 1) / alpha, and the probabilities add up to `alpha`.
    A point keeps its k in a `restart`. After an alarm the test does nothing until `restart`. Threads that share a test
    need a lock.

    Args:
        exits: Histograms of the ladder, by point and stage `[P, S]`. Where they are unknown, or all inputs exit alike,
            `watching` is False.
        alpha: The probability of a false alarm.
        seed: Of the random numbers that break ties.

    Raises:
        SettingError: when `alpha` is not in (0, 1).
    """

    def __init__(self, exits: Sequence[Sequence[ScoreBins]], alpha: float = 0.01, seed: int = 0) -> None:
        alpha = plain(alpha)
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 < alpha < 1:
            raise SettingError(f"alpha={alpha!r} must be a fraction in (0, 1), 0.01 for one false alarm in 100 streams")
        self.alpha = alpha
        self._bags = tuple(Bag(bins) if exits_differ(bins) else None for bins in exits)
        self.watching = any(bag is not None for bag in self._bags)
        # other numbers than those of a simulation with the same seed
        self._chance = random.Random(f"drift {seed}").random
        self._shares: dict[int, int] = {}  # k (k + 1) of the k-th point that ran
        self.restart()

    def restart(self) -> None:
        """Start the bets again. Earlier inputs remain in their bags, so later ones are compared with them too."""
        self.alarm = False
        self.inputs = 0  # since the restart
        self.latest = 0.5  # wealth after the last bet. 1 / alpha raises the alarm
        self._bets: dict[int, Bets] = {}  # by point

    @property
    def evidence(self) -> float:
        """The largest wealth of a bet. 1 / alpha raises the alarm."""
        return max((bets.wealth / self._shares[point] for point, bets in self._bets.items()), default=0.5)

    def observe(self, point: int, stage: int, score: float, is_cut: bool = False) -> bool:
        """Add an input, and return whether there is an alarm.

        Args:
            point: Number of the operating point under which it ran.
            stage: The last stage that answered it.
            score: Its score there.
            is_cut: Whether a deadline ended it there, while its score would have let it continue.

        Returns:
            Whether there is an alarm, new or old.
        """
        if self.alarm or not self.watching:
            return self.alarm
        bag = self._bags[point]
        if bag is None:
            return False
        self.inputs += 1
        p = bag.rank(stage, score, is_cut, self._chance())
        if point not in self._bets:
            k = len(self._shares) + 1
            self._shares.setdefault(point, k * (k + 1))
            self._bets[point] = Bets()
        self.latest = self._bets[point].bet(p) / self._shares[point]
        self.alarm = self.latest >= 1 / self.alpha
        return self.alarm


def exits_differ(bins: Sequence[ScoreBins]) -> bool:
    """Whether inputs exit in more than one way."""
    return sum(len(own.counts) for own in bins if any(own.counts)) > 1
