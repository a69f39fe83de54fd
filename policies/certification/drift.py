"""Whether inputs still look like those of the calibration, told without labels: a conformal test martingale.

Each input is ranked by its score, at the first exit that is evaluated, among the calibration inputs and all inputs
before it; the rank, ties broken by chance, is its p-value. While inputs are exchangeable with those of the calibration,
p-values are independent and uniform, whatever the scores are like, and nothing can be won by betting against that:
money grows a hundredfold with a probability of one in a hundred. The input then joins the bag it was ranked in, because
the calibration is a sample: were it taken for the truth, fine enough bets would win on every long stream.

Sources: Vovk, Nouretdinov and Gammerman 2003 (Testing exchangeability on-line): the martingale. Volkhonskiy et al. 2017
(Inductive conformal martingales for change-point detection): how to score is fixed beforehand, by the search part. Vovk
et al. 2021 (Retrain or not retrain: conformal test martingales for change-point detection): watching a deployed model.
Ville 1939: what a gain proves.
"""

import math
import random
from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

from dynamic.policies.errors import SettingError
from dynamic.policies.records import CERTIFY, SEARCH, Records
from dynamic.policies.scores import Combiner, ScoreBins
from dynamic.policies.validation.numbers import plain

BINS = 64
STRENGTHS = (0.1, -0.1, 0.3, -0.3, 0.7, -0.7)  # for weak and strong shifts, either way
WAVES = 2


def score_bins(records: Records, combiner: Combiner) -> tuple[ScoreBins, ...]:
    """For each stage `[S]`, what the records score there where it is the first to be evaluated.

    Edges are quantiles of the search part, and the certify part is counted, so that bins know nothing of what is
    counted in them. Of a group one record is counted, by lot: those of one group are alike. Where either part is empty
    all records stand in for it, and what `DriftTest` says of false alarms holds only nearly.
    """
    everything = np.ones(len(records), bool)
    search, certify = (p if p.any() else everything for p in (records.part == SEARCH, records.part == CERTIFY))
    counted = np.flatnonzero(certify)
    if records.group is not None:
        counted = np.random.default_rng(0).permutation(counted)
        counted = counted[np.unique(records.group[counted], return_index=True)[1]]
    found = []
    for stage in range(records.stages):
        score = combiner.add(combiner.start(), stage, records.logits[:, stage])[1]
        score = np.where(np.isnan(score), -np.inf, score)
        ordered = np.sort(score[search])
        edges = np.unique(ordered[np.arange(1, BINS) * len(ordered) // BINS])
        edges = edges[edges < ordered[-1]]  # nothing would lie above
        counts = np.bincount(np.searchsorted(edges, score[counted], side="left"), minlength=len(edges) + 1)
        found.append(ScoreBins(tuple(edges.tolist()), tuple(counts.tolist())))
    return tuple(found)


class Bag:
    """Inputs that one stage was the first to score, and the rank of each newcomer among them.

    Of an input that left at this stage its bin is known; of one that went on, only that it lies no higher than the
    threshold's, the cut. Calibration inputs are known everywhere. So there is a bag for each cut that ever was, which
    holds what is known down to it: bins up to the next cut above, and one number for everything below. Ties among the
    latter are broken by the rank in the bag below, which is uniform given all that the bag above knows, as chance
    itself would be: p-values stay independent and uniform however cuts change from input to input, and none loses
    resolution by another's cut.
    """

    def __init__(self, bins: ScoreBins) -> None:
        self._edges = bins.edges
        self._count = list(bins.counts)  # by bin, of those known down to the next cut below
        self._cuts: list[int] = []  # rising
        self._below: list[int] = []  # by cut: those in its bin or lower, of all that are known down to it
        self._above: list[int] = []  # by cut: those above it, up to the next: a sum of counts

    def rank(self, threshold: float, left: bool, score: float, chance: float) -> float | None:
        """The p-value of an input, near 0 for the surest, and take it in; None where nothing can be told of any.

        `chance`: uniform on [0, 1); it breaks ties.
        """
        edges, count, cuts, below, above = self._edges, self._count, self._cuts, self._below, self._above
        cut = bisect_left(edges, threshold)
        if cut == len(edges):
            return None
        at = bisect_left(cuts, cut)
        if at == len(cuts) or cuts[at] != cut:
            self._divide(at, cut)
        p = chance
        own = bisect_left(edges, score) if left else cut
        if own > cut:
            at = bisect_left(cuts, own)
            higher = sum(count[own + 1 : (cuts[at] if at < len(cuts) else len(edges)) + 1])
            count[own] += 1
            above[at - 1] += 1
            p = (higher + p * count[own]) / (above[at - 1] + below[at - 1])
        for k in range(at, len(cuts)):
            below[k] += 1
            p = (above[k] + p * below[k]) / (above[k] + below[k])
        return p

    def _divide(self, at: int, cut: int) -> None:
        """Enter a cut as number `at`. All that are known on both sides of it are known down to the cut below."""
        low = self._cuts[at - 1] + 1 if at else 0
        high = self._cuts[at] if at < len(self._cuts) else len(self._edges)
        under, over = sum(self._count[low : cut + 1]), sum(self._count[cut + 1 : high + 1])
        if at:
            self._above[at - 1] = under
            under += self._below[at - 1]
        self._cuts.insert(at, cut)
        self._below.insert(at, under)
        self._above.insert(at, over)


class Bets:
    """Money put on p-values not being uniform: a martingale that starts at 1 while they are.

    A mixture over densities `1 + e cos(j pi p)` and over the time from which to bet: after t p-values the share
    1 / log2(t + 2) has not been staked yet. Whenever a change comes, some of the money is fresh, so that the delay
    grows as the logarithm of the quiet stretch before it.
    """

    def __init__(self) -> None:
        self.money = 1.0
        self._stakes = [0.0] * (WAVES * len(STRENGTHS))
        self._idle = 1.0
        self._seen = 0

    def bet(self, p: float) -> float:
        """The money after one more p-value."""
        self._seen += 1
        before, self._idle = self._idle, 1.0 / math.log2(self._seen + 2)
        fresh = before - self._idle
        one = math.cos(math.pi * p)
        two = 2.0 * one * one - 1.0  # of twice the angle
        densities = [1.0 + e * wave for wave in (one, two) for e in STRENGTHS]
        self._stakes = [(stake + fresh) * density for stake, density in zip(self._stakes, densities, strict=True)]
        self.money = sum(self._stakes) / len(densities) + self._idle
        return self.money


class DriftTest:
    """A sequential test of whether inputs are exchangeable with those of the calibration, fed one input at a time.

    `scores [S]`: the ladder's; where they are unknown, or all alike, nothing is `watching`.

    Without drift the probability that it ever alarms is at most `alpha`, on a stream of any length (Ville 1939). After
    a `restart` the same holds again, whatever was before: of runs that begin with one, at most that share ends in a
    false alarm, so that their mean length is more than 1 / alpha. "Without drift" means that inputs are exchangeable
    with each other and with the calibration's, and that thresholds are not chosen by looking at scores (by load,
    battery or temperature they may be; those of a ladder are, on the same records, and latencies follow depth: no
    effect of either could be measured). Correlated inputs, such as video, bursts or one user at a time, in the stream
    or in the calibration set, void all of it.

    Each stage that comes to be the first one evaluated has bets of its own: bags of different stages hold the same
    calibration inputs, so that gains are not independent. Those of the k-th to come up alarm at k (k + 1) / alpha:
    the probabilities add up to `alpha`.

    Once alarmed it does no work until `restart`. Threads that share one need a lock. Raises SettingError where `alpha`
    is not in (0, 1).
    """

    def __init__(self, scores: Sequence[ScoreBins], alpha: float = 0.01, seed: int = 0) -> None:
        alpha = plain(alpha)
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 < alpha < 1:
            raise SettingError(f"alpha={alpha!r} must be a fraction in (0, 1), 0.01 for one false alarm in 100 streams")
        self.alpha = alpha
        self.watching = any(bins.edges for bins in scores)
        self._bags = tuple(Bag(bins) for bins in scores)
        # not the numbers that a simulation draws its scores from with the same seed
        self._chance = random.Random(f"drift {seed}").random
        self.restart()

    def restart(self) -> None:
        """Bet anew. Inputs seen so far stay in their bags: those to come are compared with them too."""
        self.alarm = False
        self.inputs = 0  # since then
        self.latest = 0.5  # what the last bet has grown to, in money of which 1 / alpha alarms
        self._bets: dict[int, tuple[Bets, int]] = {}  # by stage, with k (k + 1)

    @property
    def evidence(self) -> float:
        """How far the bets have grown, in money of which 1 / alpha alarms."""
        return max((bets.money / share for bets, share in self._bets.values()), default=0.5)

    def observe(self, first_stage: int, threshold: float, stage: int, score: float) -> bool:
        """Take in an input that left at `stage` with `score`: whether there is an alarm, now or since before.

        `first_stage`: the first whose exit was evaluated, with its `threshold` (-inf where it is the last of all).
        """
        if self.alarm or not self.watching:
            return self.alarm
        self.inputs += 1
        p = self._bags[first_stage].rank(threshold, stage == first_stage, score, self._chance())
        if p is None:
            return False
        if first_stage not in self._bets:
            k = len(self._bets) + 1
            self._bets[first_stage] = Bets(), k * (k + 1)
        bets, share = self._bets[first_stage]
        self.latest = bets.bet(p) / share
        self.alarm = self.latest >= 1 / self.alpha
        return self.alarm
