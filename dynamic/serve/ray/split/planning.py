"""The split of a bundle under a budget: as given, or as its costs and a hop that is measured say."""

import logging
from collections.abc import Callable, Mapping

import numpy as np

from dynamic.bundle.bundle import Bundle
from dynamic.policies.budget import Budget
from dynamic.policies.control.budget_policy import BudgetPolicy
from dynamic.policies.costs import Costs
from dynamic.policies.frontier import CostedPoint, Frontier
from dynamic.policies.snapshot import Snapshot
from dynamic.serve.ray.split.choice import LEAST_HOP_MS, USUAL_HOP_MS, Candidate, Cut, Split, candidates, chosen

logger = logging.getLogger("dynamic")
HopTime = Callable[[Mapping[int, int]], Mapping[int, float]]


def planned(bundle: Bundle, budget: Budget, cut: Cut, engine: str | None, threads: int, hop_ms: HopTime) -> Split:
    """The split, which is logged.

    Args:
        bundle: The bundle.
        budget: The limits: they say which operating point an idle device runs.
        cut: "auto", a stage, or None for one deployment.
        engine: As for `Bundle.runtime`.
        threads: Of the engine.
        hop_ms: Measures hops, see `dynamic.serve.ray.split.hop_time.hop_ms`.

    Returns:
        The split.
    """
    split = _split(bundle, budget, cut, engine, threads, hop_ms)
    if cut == "auto":
        logger.info("%s: %s", bundle.folder, split.reason)
    return split


def _split(bundle: Bundle, budget: Budget, cut: Cut, engine: str | None, threads: int, hop_ms: HopTime) -> Split:
    if cut is None:
        return Split(None, "one deployment, as asked for (cut=None)")
    costs = _costs(bundle, bundle.engine if engine in (None, "auto") else str(engine), threads)
    if costs is None:
        if cut == "auto":
            return Split(None, "one deployment: there are no costs of this machine. Call profile() on the bundle first")
        return Split(cut, f"split before stage {cut}, as asked for", USUAL_HOP_MS)
    point = _idle_point(bundle, budget, costs)
    among = candidates(point, costs, bundle.ladder.backbone)
    if cut != "auto":
        one = next((one for one in among if one.cut == cut), Candidate(cut, sum(point.shares[cut:]), 0.0, 0.0))
        return Split(cut, f"split before stage {cut}, as asked for", USUAL_HOP_MS, one.share, one.rest_ms)
    worth = [one for one in among if one.gain_ms > LEAST_HOP_MS]
    return chosen(among, _hops(bundle, engine, threads, point, worth, hop_ms) if worth else {})


def _costs(bundle: Bundle, engine: str, threads: int) -> Costs | None:
    """Costs of the engine on so many threads, else those that the bundle has. None: it has none."""
    costs = bundle.costs
    if costs is not None and (costs.engine, costs.threads) == (engine, threads):
        return costs
    return bundle.costs_on(engine, bundle.precision_on(engine), threads) or costs


def _idle_point(bundle: Bundle, budget: Budget, costs: Costs) -> CostedPoint:
    """The operating point that an idle device runs."""
    policy = BudgetPolicy()
    frontier = Frontier.of(bundle.ladder, costs)
    return policy.decide(frontier, budget, Snapshot(time_s=0.0), policy.initial())[0].point


def _hops(
    bundle: Bundle, engine: str | None, threads: int, point: CostedPoint, among: list[Candidate], hop_ms: HopTime
) -> dict[int, float]:
    """By cut, a hop with what a row takes along, and the stages that it repeats."""
    sizes, repeats = {}, {}
    opened = bundle.open(engine, threads=threads)
    try:
        limits = np.where(np.isposinf(point.thresholds), point.thresholds, np.float32(3e38))  # nobody exits
        row = {one.name: np.zeros((1, *one.shape), one.dtype) for one in bundle.spec.inputs}
        for one in among:
            (rest,) = opened.stages.run(row, limits, until=one.cut).rests
            sizes[one.cut] = sum(array.nbytes for array in rest.arrays.values())
            has_carry = any(name.startswith("carry.") for name in rest.arrays)
            repeats[one.cut] = 0.0 if has_carry else one.repeat_ms
    finally:
        opened.close()
    try:
        measured = hop_ms(sizes)
    except Exception as error:
        logger.warning("a hop of Ray Serve cannot be measured (%s): %g ms is taken for it", error, USUAL_HOP_MS)
        measured = dict.fromkeys(sizes, USUAL_HOP_MS)
    return {cut: measured[cut] + repeats[cut] for cut in sizes}
