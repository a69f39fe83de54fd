"""A test, without labels, of whether inputs still look like those of the calibration: a conformal test martingale.

Each input is ranked by its score at the first exit that is evaluated. It is ranked among the calibration inputs and all
inputs before it. The rank, with ties broken by chance, is its p-value. While inputs are exchangeable with those of the
calibration, p-values are independent and uniform, whatever the scores are. Bets against that cannot win: the wealth of
a bettor grows a hundredfold with a probability of one in a hundred. The input then joins the bag in which it was
ranked, because the calibration is a sample. If it were taken for the true distribution, fine bets would win on every
long stream.

Sources: Vovk, Nouretdinov and Gammerman 2003 (Testing exchangeability on-line) for the martingale. Volkhonskiy et al.
2017 (Inductive conformal martingales for change-point detection): the score is fixed beforehand, by the search part.
Vovk et al. 2021 (Retrain or not retrain: conformal test martingales for change-point detection) for deployed models.
Ville 1939 for the probability of a false alarm.
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
# (share of calibration inputs that score lowest, share of strangers that score as low): a few inputs of another kind
TAILS = ((0.05, 0.1), (0.05, 0.3), (0.15, 0.1))


def score_bins(records: Records, combiner: Combiner) -> tuple[ScoreBins, ...]:
    """A histogram of scores for each stage, where it is the first to be evaluated.

    Edges are quantiles of the search part, and the certifying part is counted, so edges are independent of counts. Of
    each group one random record is counted, because records of a group are alike. Where a part is empty, all records
    replace it, and the rate of false alarms of `DriftTest` is only approximate.

    Args:
        records: Calibration records.
        combiner: How logits become scores.

    Returns:
        The histograms `[S]`.
    """
    everything = np.ones(len(records), bool)
    search, certify = (p if p.any() else everything for p in (records.part == SEARCH, records.part == CERTIFY))
    counted = np.flatnonzero(certify)
    if records.group is not None:
        counted = np.random.default_rng(0).permutation(counted)
        counted = counted[np.unique(records.group[counted], return_index=True)[1]]
    bins = []
    for stage in range(records.stages):
        score = combiner.add(combiner.start(), stage, records.logits[:, stage])[1]
        score = np.where(np.isnan(score), -np.inf, score)
        ordered = np.sort(score[search])
        edges = np.unique(ordered[np.arange(1, BINS) * len(ordered) // BINS])
        edges = edges[edges < ordered[-1]]  # no score lies above
        counts = np.bincount(np.searchsorted(edges, score[counted], side="left"), minlength=len(edges) + 1)
        bins.append(ScoreBins(tuple(edges.tolist()), tuple(counts.tolist())))
    return tuple(bins)


class Bag:
    """Inputs that one stage was the first to score, and the rank of each new one among them.

    The bin of an input that exited at this stage is known. Of an input that continued, only an upper limit is known:
    the bin of the threshold, the cut. Calibration inputs are known everywhere. So each cut that ever occurred has a
    bag. It holds the bins up to the next cut above, and one number for everything below. Ties in that number are broken
    by the rank in the bag below. That rank is uniform given the bag above, as a random number is. So p-values are
    independent and uniform however cuts change from input to input, and no cut reduces the resolution of another.

    Args:
        bins: Scores of the calibration inputs.
    """

    def __init__(self, bins: ScoreBins) -> None:
        self._edges = bins.edges
        self._count = list(bins.counts)  # by bin, of inputs that are known down to the next cut below
        self._cuts: list[int] = []  # rising
        self._below: list[int] = []  # by cut: inputs in its bin or lower, of all that are known down to it
        self._above: list[int] = []  # by cut: inputs above it, up to the next cut, a sum of counts

    def rank(self, threshold: float, exits: bool, score: float, chance: float) -> float | None:
        """Add an input, and return its p-value.

        Args:
            threshold: Of the exit.
            exits: Whether the input exits here.
            score: Its score, which counts only where it exits.
            chance: Uniform on [0, 1). It breaks ties.

        Returns:
            The p-value, near 0 for the most confident. None: the threshold is above all scores.
        """
        edges, count, cuts, below, above = self._edges, self._count, self._cuts, self._below, self._above
        cut = bisect_left(edges, threshold)
        if cut == len(edges):
            return None
        at = bisect_left(cuts, cut)
        if at == len(cuts) or cuts[at] != cut:
            self._divide(at, cut)
        p = chance
        own = bisect_left(edges, score) if exits else cut
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
        """Insert a cut as number `at`. Inputs that are known on both sides of it are known down to the cut below."""
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
    """Bets that p-values are not uniform. While they are, the wealth is a martingale that starts at 1.

    The bets are a mixture over densities and over the time at which betting starts. One half of the money is on
    densities `1 + e cos(j pi p)`, for inputs that all shift a little. The other half is on `1 - e + e [p > 1 - w] / w`,
    for a share `e` of inputs that all lie among the `w` of lowest scores. After t p-values the share 1 / log2(t + 2) is
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
    `restart` the same holds again. So at most that share of runs ends in a false alarm, and their mean length is above
    1 / alpha.

    "Without drift" means two things. Inputs are exchangeable with each other and with those of the calibration. And
    thresholds do not depend on scores, while they may depend on load, battery or temperature. The thresholds of a
    ladder depend on the same records, and latencies on depth. No effect of either could be measured. Correlated inputs
    void the promise, in the stream or in the calibration set: video, bursts, or one user at a time.

    Each stage that is the first to be evaluated has bets of its own. Bags of different stages hold the same calibration
    inputs, so their gains are not independent. The k-th stage alarms at k (k + 1) / alpha, and the probabilities add up
    to `alpha`. After an alarm the test does nothing until `restart`. Threads that share a test need a lock.

    Args:
        scores: Histograms of the ladder `[S]`. Where they are unknown, or all scores are equal, `watching` is False.
        alpha: The probability of a false alarm.
        seed: Of the random numbers that break ties.

    Raises:
        SettingError: when `alpha` is not in (0, 1).
    """

    def __init__(self, scores: Sequence[ScoreBins], alpha: float = 0.01, seed: int = 0) -> None:
        alpha = plain(alpha)
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 < alpha < 1:
            raise SettingError(f"alpha={alpha!r} must be a fraction in (0, 1), 0.01 for one false alarm in 100 streams")
        self.alpha = alpha
        self.watching = any(bins.edges for bins in scores)
        self._bags = tuple(Bag(bins) for bins in scores)
        # other numbers than those of a simulation with the same seed
        self._chance = random.Random(f"drift {seed}").random
        self.restart()

    def restart(self) -> None:
        """Start the bets again. Earlier inputs remain in their bags, so later ones are compared with them too."""
        self.alarm = False
        self.inputs = 0  # since the restart
        self.latest = 0.5  # wealth after the last bet. 1 / alpha raises the alarm
        self._bets: dict[int, tuple[Bets, int]] = {}  # by stage, with k (k + 1)

    @property
    def evidence(self) -> float:
        """The largest wealth of a bet. 1 / alpha raises the alarm."""
        return max((bets.wealth / share for bets, share in self._bets.values()), default=0.5)

    def observe(self, first_stage: int, threshold: float, stage: int, score: float) -> bool:
        """Add an input, and return whether there is an alarm.

        Args:
            first_stage: The first stage whose exit was evaluated.
            threshold: Of that exit. -inf where it is the last stage.
            stage: The stage at which the input exited.
            score: Its score there.

        Returns:
            Whether there is an alarm, new or old.
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
